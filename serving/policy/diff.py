"""What differs between two policies, setting by setting, defaults included."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from serving.policy.model import Policy

ABSENT = "(absent)"


@dataclass(frozen=True, slots=True)
class Change:
    """`old` or `new` is `ABSENT` for a setting only one policy has."""

    path: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.path}: {_shown(self.old)} -> {_shown(self.new)}"


def diff(old: Policy, new: Policy) -> list[Change]:
    """Changes in the order of the file. Items of a list that have a name or an id are matched by it."""
    before, after = dict(_flat(old.plain(), "")), dict(_flat(new.plain(), ""))
    paths = [*before, *(path for path in after if path not in before)]
    return [
        Change(path, before.get(path, ABSENT), after.get(path, ABSENT))
        for path in paths
        if before.get(path, ABSENT) != after.get(path, ABSENT)
    ]


def _flat(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value:
        for index, inner in enumerate(value):
            label = (inner.get("name") or inner.get("id") or index) if isinstance(inner, dict) else index
            yield from _flat(inner, f"{path}[{label}]")
    else:
        yield path, value


def _shown(value: Any) -> str:
    if value == ABSENT:
        return ABSENT
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
