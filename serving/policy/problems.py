"""What is wrong with a policy, where, and what was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

Path = tuple[str | int, ...]


class Severity(StrEnum):
    """An ERROR refuses the policy; a WARNING is shown and does not."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Problem:
    """`line` and `column` count from 1. `path`: the setting, dotted; empty for the file as a whole."""

    file: str
    line: int
    column: int
    path: str
    message: str
    severity: Severity = Severity.ERROR

    def __str__(self) -> str:
        where = f"{self.path}: " if self.path else ""
        mark = "warning: " if self.severity is Severity.WARNING else ""
        return f"{self.file}:{self.line}:{self.column}: {mark}{where}{self.message}"


class PolicyError(ValueError):
    """A policy that is refused; `problems` are all that was found, one line each in `str()`."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


def dotted(path: Path) -> str:
    return ".".join(map(str, path))


def suggestion(word: str, known: Sequence[str]) -> str:
    """`; did you mean 'x'?` for a near miss, else the choices where they are few, else nothing."""
    near = difflib.get_close_matches(word.lower(), {name.lower(): name for name in known}, n=1, cutoff=0.6)
    if near:
        match = next(name for name in known if name.lower() == near[0])
        return f"; did you mean {match!r}?"
    return f"; known: {', '.join(known)}" if 0 < len(known) <= 24 else ""
