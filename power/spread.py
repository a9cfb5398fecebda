"""How the joules of one interval of the counter fall upon the steps in it."""

from __future__ import annotations

from dataclasses import dataclass, field

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


@dataclass(frozen=True, slots=True)
class Piece:
    """The part of a step that lies in an interval, and its expected power, W."""

    start_s: float
    end_s: float
    expected_w: float


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
    cells, covered_s, expected_j, index = [], 0.0, 0.0, first
    while index < len(pieces) and pieces[index].start_s < right:
        piece = pieces[index]
        seconds = min(piece.end_s, right) - max(piece.start_s, left)
        if seconds > 0.0:
            cells.append((index, seconds * piece.expected_w))
            covered_s += seconds
            expected_j += seconds * piece.expected_w
        if piece.end_s > right:
            break
        index += 1
    if expected_j > 0.0:
        unit = watts * covered_s / expected_j
        for found, expected in cells:
            joules[found] += expected * unit
    return index
