"""Energy as a function of time within one interval of the counter."""

from __future__ import annotations

import bisect
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


class Spread:
    """An interval's joules as a function of time, proportional to its power samples."""

    def __init__(self, interval: Interval) -> None:
        self._times = [interval.start_s]
        self._cumulative = [0.0]
        total, left = 0.0, interval.start_s
        flat = max(interval.powers, default=0.0) < SMALLEST_W
        for right, power in zip(interval.times, interval.powers, strict=True):
            total += (1.0 if flat else power) * (right - left)
            left = right
            self._times.append(right)
            self._cumulative.append(total)
        self._scale = interval.joules / total if total > 0 else 0.0

    def joules(self, start: float, end: float) -> float:
        return (self._at(end) - self._at(start)) * self._scale

    def _at(self, moment: float) -> float:
        times, cumulative = self._times, self._cumulative
        right = bisect.bisect_left(times, moment)
        if right == 0:
            return 0.0
        if right >= len(times):
            return cumulative[-1]
        left = right - 1
        share = (moment - times[left]) / (times[right] - times[left])
        return cumulative[left] + share * (cumulative[right] - cumulative[left])


def integral(interval: Interval) -> float:
    total, left = 0.0, interval.start_s
    for right, power in zip(interval.times, interval.powers, strict=True):
        total += power * (right - left)
        left = right
    return total
