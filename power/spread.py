"""How the joules of one interval of the counter fall upon the steps in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice

SMALLEST_W = 1e-3


@dataclass(slots=True)
class Interval:
    """Joules between two movements of the counter; `powers[i]` holds from the time before `times[i]` to it."""

    start_s: float
    end_s: float
    joules: float
    times: list[float] = field(default_factory=list)
    powers: list[float] = field(default_factory=list)
    estimated: bool = False
    gap: bool = False
    foreign: bool = False


Piece = tuple[float, float, float]
"""The part of a step that lies in an interval: its start and end, s, and the power expected of it, W."""


def spread(interval: Interval, pieces: list[Piece]) -> list[float]:
    """Joules of each piece; pieces are in order and do not overlap.

    The samples say how much falls into each of their spans, and the time that steps cover says how much of it is
    theirs. Within a span, where the samples tell nothing, steps share by their expected energy: a prefill step
    between decode steps would else be priced like them.
    """
    flat = max(interval.powers, default=0.0) < SMALLEST_W
    total, left = 0.0, interval.start_s
    for right, power in zip(interval.times, interval.powers, strict=True):
        total += (1.0 if flat else power) * (right - left)
        left = right
    joules = [0.0] * len(pieces)
    if total <= 0.0:
        return joules
    scale, left, first = interval.joules / total, interval.start_s, 0
    for right, power in zip(interval.times, interval.powers, strict=True):
        watts = scale * (1.0 if flat else power)
        first = _spread_span(left, right, watts, pieces, first, joules)
        left = right
    return joules


def integral(interval: Interval) -> float:
    """The power samples' own account of the interval's joules."""
    total, left = 0.0, interval.start_s
    for right, power in zip(interval.times, interval.powers, strict=True):
        total += power * (right - left)
        left = right
    return total


def _spread_span(left: float, right: float, watts: float, pieces: list[Piece], first: int, joules: list[float]) -> int:
    """Add the joules of one span to its pieces; returns the first piece that goes on after it."""
    cells, covered_s, expected_j, index = list[float](), 0.0, 0.0, first
    for begin, end, expected_w in islice(pieces, first, None):
        if begin >= right:
            break
        seconds = (right if end > right else end) - (left if begin < left else begin)
        expected = 0.0
        if seconds > 0.0:
            expected = seconds * expected_w
            covered_s += seconds
            expected_j += expected
        cells.append(expected)
        if end > right:
            break
        index += 1
    if expected_j > 0.0:
        here_j = watts * covered_s
        for found, expected in enumerate(cells, first):
            joules[found] += here_j * (expected / expected_j)
    return index
