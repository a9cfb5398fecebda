"""Arrival times drawn from a rate that changes over time.

A renewal process with mean 1 runs in operational time; the integral of the rate maps it to seconds. So the expected
number of arrivals of a window is exactly its rate times its length, whatever the burstiness.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Family = Literal["gamma", "weibull"]
_DRAWS = 1024
SECONDS_AN_HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class RateWindow:
    """From `start_s` to `end_s` requests arrive at `rate_rps`; gaps follow the family with this shape.

    Gamma of shape 1 is Poisson, and its inter-arrival CV is `1 / sqrt(shape)`.
    """

    start_s: float
    end_s: float
    rate_rps: float
    family: Family = "gamma"
    shape: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.rate_rps) and self.rate_rps >= 0):
            raise ValueError(f"rate_rps must be a finite number of at least 0, got {self.rate_rps}")
        if not self.start_s < self.end_s:
            raise ValueError(f"a rate window must end after its start, got {self.start_s:g} .. {self.end_s:g} s")
        if not (math.isfinite(self.shape) and self.shape > 0):
            raise ValueError(f"the shape of {self.family} gaps must be above 0, got {self.shape}")


def gamma_shape(interarrival_cv: float) -> float:
    """Shape of gamma gaps with this coefficient of variation."""
    if not (math.isfinite(interarrival_cv) and interarrival_cv > 0):
        raise ValueError(f"interarrival_cv must be above 0 (1 is Poisson), got {interarrival_cv}")
    return 1.0 / (interarrival_cv * interarrival_cv)


def hourly_windows(
    rates_rps: Sequence[float],
    duration_s: float,
    interarrival_cv: float = 1.0,
    start_s: float = 0.0,
    period_s: float = SECONDS_AN_HOUR,
) -> Iterator[RateWindow]:
    """One window for each hour from `start_s` (seconds of the day) on; the list of rates repeats from its start.

    `period_s`: how long each rate lasts; less than an hour compresses the day, and makes its ramps steeper.
    """
    if not rates_rps:
        raise ValueError("rates by hour: give at least one rate")
    shape = gamma_shape(interarrival_cv)
    at_s = 0.0
    while at_s < duration_s:
        hour = int((start_s + at_s) // period_s)
        end_s = min(duration_s, (hour + 1) * period_s - start_s)
        yield RateWindow(at_s, end_s, rates_rps[hour % len(rates_rps)], "gamma", shape)
        at_s = end_s


def arrivals(windows: Iterable[RateWindow], rng: np.random.Generator) -> Iterator[float]:
    """Arrival times in seconds, increasing; each window must start where the last one ended, or later."""
    gaps: dict[tuple[Family, float], Iterator[float]] = {}
    left: float | None = None
    for window in windows:
        key = (window.family, window.shape)
        draw = gaps.get(key)
        if draw is None:
            draw = gaps[key] = _unit_gaps(window.family, window.shape, rng)
        if left is None:
            left = next(draw)
        at_s = window.start_s
        while left <= window.rate_rps * (window.end_s - at_s):
            if window.rate_rps == 0.0:
                break
            at_s += left / window.rate_rps
            left = next(draw)
            yield at_s
        left = max(0.0, left - window.rate_rps * (window.end_s - at_s))


def _unit_gaps(family: Family, shape: float, rng: np.random.Generator) -> Iterator[float]:
    while True:
        if family == "gamma":
            batch = rng.gamma(shape, 1.0 / shape, _DRAWS)
        else:
            batch = rng.weibull(shape, _DRAWS) / math.gamma(1.0 + 1.0 / shape)
        yield from batch.tolist()
