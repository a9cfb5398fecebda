"""The last quarter of an hour of everything worth drawing, in memory, at one second a point."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import takewhile

from serving.ledger.telemetry import SeriesSpec

WINDOW_S = 900.0
STEP_S = 1.0

_BASE: dict[str, tuple[str, bool, str]] = {
    "power_w": ("W", False, "Power of all devices together."),
    "power_limit_w": ("W", False, "Power limit in force."),
    "sm_clock_mhz": ("MHz", False, "SM clock."),
    "asked_clock_mhz": ("MHz", False, "Clock the policy asks for; a gap where it asks for the driver's default."),
    "temperature_c": ("°C", False, "Temperature."),
    "energy_j": ("J", True, "Joules by phase since the start."),
    "intensity_g_per_kwh": ("g/kWh", False, "Carbon intensity used."),
    "grams_total": ("g", True, "Grams of CO2e charged to requests since the start."),
    "running": ("sequences", False, "Sequences running in the engine."),
    "waiting": ("sequences", False, "Sequences waiting in the engine."),
    "kv_usage_ratio": ("1", False, "Used share of the KV blocks."),
    "output_tokens_per_s": ("1/s", False, "Generated tokens a second over the last 10 s."),
    "requests_per_s": ("1/s", False, "Requests finished a second over the last 10 s."),
    "joules_per_token": ("J", False, "Joules of all devices for each generated token over the last 10 s."),
    "ttft_p95_s": ("s", False, "95th percentile of the time to the first token over the last minute."),
    "ttft_p99_s": ("s", False, "99th percentile of the time to the first token over the last minute."),
    "tpot_p99_s": ("s", False, "99th percentile of the time between tokens over the last minute."),
}


def spec_of(name: str) -> SeriesSpec:
    """Unit and kind of a series by its name, labels in braces. Raises `KeyError` for an unknown one."""
    unit, is_counter, _ = _BASE[name.partition("{")[0]]
    return SeriesSpec(name, unit, is_counter)


def help_of(name: str) -> str:
    return _BASE[name.partition("{")[0]][2]


@dataclass(frozen=True, slots=True)
class Bucketed:
    """Parallel lists; `low` and `high` are None where each point is a single sample."""

    start_unix_s: list[float]
    mean: list[float | None]
    low: list[float | None] | None
    high: list[float | None] | None


class LiveSeries:
    """Rings of `(time, value)`; a series that was not put for a while has a gap there."""

    def __init__(self, window_s: float = WINDOW_S, step_s: float = STEP_S) -> None:
        self.window_s = window_s
        self.step_s = step_s
        self._rings: dict[str, deque[tuple[float, float]]] = {}
        self._size = round(window_s / step_s) + 1

    def put(self, at_unix_s: float, values: Mapping[str, float | None]) -> None:
        for name, value in values.items():
            if value is not None:
                self._rings.setdefault(name, deque(maxlen=self._size)).append((at_unix_s, value))

    @property
    def names(self) -> list[str]:
        return sorted(self._rings)

    def latest(self, name: str) -> float | None:
        ring = self._rings.get(name)
        return ring[-1][1] if ring else None

    def covers(self, since_unix_s: float, now_unix_s: float) -> bool:
        return since_unix_s >= now_unix_s - self.window_s - self.step_s

    def data(self, name: str, since_unix_s: float, until_unix_s: float, points: int) -> Bucketed:
        """At most `points` buckets of `[since, until)`. Raises `KeyError` for a series there is not."""
        # From the newest back: a dashboard asks each second for the last few.
        newest_first = takewhile(lambda point: point[0] >= since_unix_s, reversed(self._rings[name]))
        inside = [point for point in newest_first if point[0] < until_unix_s][::-1]
        width_s = (until_unix_s - since_unix_s) / points
        if width_s <= self.step_s:
            return self._with_gaps(inside)
        buckets: dict[int, list[float]] = {}
        for at, value in inside:
            buckets.setdefault(int((at - since_unix_s) // width_s), []).append(value)
        order = sorted(buckets)
        return Bucketed(
            [since_unix_s + index * width_s for index in order],
            [sum(buckets[index]) / len(buckets[index]) for index in order],
            [min(buckets[index]) for index in order],
            [max(buckets[index]) for index in order],
        )

    def _with_gaps(self, inside: Iterable[tuple[float, float]]) -> Bucketed:
        """Single samples, with one null wherever more than two steps are missing."""
        starts: list[float] = []
        values: list[float | None] = []
        for at, value in inside:
            if starts and at - starts[-1] > 2.5 * self.step_s:
                starts.append(starts[-1] + self.step_s)
                values.append(None)
            starts.append(at)
            values.append(value)
        return Bucketed(starts, values, None, None)
