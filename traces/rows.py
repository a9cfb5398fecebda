"""Rows as they come from a file: what to do with bad ones, and what was seen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

TimeUnit = Literal["s", "ms", "us"]
SECONDS_PER: Mapping[TimeUnit, float] = {"s": 1.0, "ms": 1e-3, "us": 1e-6}

# Fewer requests a second than this over more than two weeks, at whole numbers: an hour of milliseconds looks so.
SUSPICIOUS_RATE_RPS = 0.02
SUSPICIOUS_SPAN_S = 14 * 86_400.0
SUSPICIOUS_MIN_ROWS = 20


class BadField(Exception):  # noqa: N818  (caught by the reader, which adds the place)
    """One field of one row cannot be used: which column (None: the whole row) and why."""

    def __init__(self, column: str | None, reason: str) -> None:
        super().__init__(reason)
        self.column = column
        self.reason = reason


class RowError(ValueError):
    """A row that cannot be used, with file, line and column (both from 1)."""

    def __init__(self, path: Path, line: int, column: int, name: str | None, reason: str) -> None:
        what = f"column {name!r}: " if name else ""
        super().__init__(f"{path}:{line}:{column}: {what}{reason}")
        self.path = path
        self.line = line
        self.column = column
        self.name = name
        self.reason = reason


class Row(NamedTuple):
    """What every format gives: a stamp in seconds of the file's own clock, two lengths, and the rest by name."""

    stamp_s: float
    input_tokens: int
    output_tokens: int
    extras: Mapping[str, Any]


NO_EXTRAS: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How to read. Everything dropped, clipped or repaired is counted in `RowCounts`.

    `time_unit`: overrides the format's own unit of stamps. `backwards`: a stamp below its predecessor is an error,
    or `continue` (the clock restarted: go on from the latest stamp), or `clamp` (small disorder: arrive with the
    predecessor). `window_tokens`: the model's window (prompt and answer together); rows over it are clipped or
    dropped, or an error. `rebase`: the first row arrives at 0.
    """

    skip_bad: bool = False
    time_unit: TimeUnit | None = None
    backwards: Literal["error", "continue", "clamp"] = "error"
    zero_output: Literal["keep", "drop"] = "keep"
    window_tokens: int | None = None
    over_window: Literal["clip", "drop", "error"] = "error"
    rebase: bool = True

    def __post_init__(self) -> None:
        if self.window_tokens is not None and self.window_tokens < 2:
            raise ValueError(f"window_tokens must be at least 2 (a prompt and an answer), got {self.window_tokens}")


@dataclass(slots=True)
class RowCounts:
    """What a pass over a file saw. `rows` = `requests` + `bad` + `dropped_zero_output` + `dropped_over_window`."""

    rows: int = 0
    requests: int = 0
    bad: int = 0
    bad_reasons: dict[str, int] = field(default_factory=dict)
    zero_outputs: int = 0
    dropped_zero_output: int = 0
    clipped_over_window: int = 0
    clipped_input_tokens: int = 0
    clipped_output_tokens: int = 0
    dropped_over_window: int = 0
    backwards_stamps: int = 0
    equal_stamps: int = 0
    without_session: int = 0


def whole_number(column: str, text: str, least: int = 0) -> int:
    """A token count in a text field; raises `BadField` for anything but a whole number of at least `least`."""
    if not (text.isascii() and text.isdigit()):
        raise BadField(column, f"{text!r} is not a whole number of at least {least}")
    value = int(text)
    if value < least:
        raise BadField(column, f"{value} is below {least}")
    return value


def real_number(column: str, text: str | float, least: float = 0.0) -> float:
    """A finite number of at least `least` in a text field; raises `BadField` for anything else."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= least):
        raise BadField(column, f"{text!r} is not a finite number of at least {least:g}")
    return value


def suspicious_time_unit(requests: int, span_s: float, whole_stamps: bool) -> str | None:
    """A warning where the stamps look like milliseconds that were read as seconds, else None."""
    if requests < SUSPICIOUS_MIN_ROWS or span_s < SUSPICIOUS_SPAN_S or not whole_stamps:
        return None
    rate_rps = requests / span_s
    if rate_rps >= SUSPICIOUS_RATE_RPS:
        return None
    return (
        f"{requests} requests over {span_s / 86400:.1f} days ({rate_rps:.2g} a second), all at whole numbers: "
        "are the stamps milliseconds? Then read with --time-unit ms"
    )
