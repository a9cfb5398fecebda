"""A zone's intensity over time: intervals in order, without overlap, gaps kept as gaps."""

from __future__ import annotations

import bisect
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from carbon.intensity import CarbonIntensity, Kind, Methodology, check_g_per_kwh, require_comparable

STEPS_S = (300, 900, 1800, 3600)


class IntensitySeries:
    """Immutable; built from points in any order.

    Duplicates collapse: of two values for one interval the later issued wins, then the later given. An interval that
    reaches into the next one is cut at the next one's start. Raises `IncomparableError` for mixed methodology
    and `ValueError` for mixed zones.
    """

    def __init__(self, points: Iterable[CarbonIntensity]) -> None:
        by_start: dict[datetime, CarbonIntensity] = {}
        first: CarbonIntensity | None = None
        for point in points:
            first = first or point
            if point.zone != first.zone:
                raise ValueError(f"one series holds one zone; got {first.zone!r} and {point.zone!r}")
            require_comparable(first.methodology, point.methodology)
            known = by_start.get(point.start)
            if known is None or not _issued_before(point, known):
                by_start[point.start] = point
        ordered = [by_start[start] for start in sorted(by_start)]
        for index in range(len(ordered) - 1):
            if ordered[index].end > ordered[index + 1].start:
                ordered[index] = _with_end(ordered[index], ordered[index + 1].start)
        self._points = tuple(ordered)
        self._starts = [point.start for point in ordered]

    def __len__(self) -> int:
        return len(self._points)

    def __iter__(self) -> Iterator[CarbonIntensity]:
        return iter(self._points)

    def __getitem__(self, index: int) -> CarbonIntensity:
        return self._points[index]

    def __bool__(self) -> bool:
        return bool(self._points)

    @property
    def methodology(self) -> Methodology:
        return self._points[0].methodology

    def values(self) -> NDArray[np.float64]:
        """g/kWh of each interval, shape `[len(self)]`."""
        return np.array([point.g_per_kwh for point in self._points], dtype=np.float64)

    def at(self, moment: datetime) -> CarbonIntensity | None:
        """The value that holds at `moment`; None in a gap or outside."""
        index = bisect.bisect_right(self._starts, moment) - 1
        if index >= 0 and self._points[index].holds_at(moment):
            return self._points[index]
        return None

    def latest_before(self, moment: datetime) -> CarbonIntensity | None:
        """The last value that began at or before `moment`, whether or not it still holds."""
        index = bisect.bisect_right(self._starts, moment) - 1
        return self._points[index] if index >= 0 else None

    def between(self, start: datetime, end: datetime) -> IntensitySeries:
        """Intervals that touch `[start, end)`, uncut."""
        low = bisect.bisect_right(self._starts, start) - 1
        if low < 0 or self._points[low].end <= start:
            low += 1
        return IntensitySeries(self._points[low : bisect.bisect_left(self._starts, end)])

    def gaps(self) -> list[tuple[datetime, datetime]]:
        """Half-open stretches between first and last value for which there is no value."""
        pairs = itertools.pairwise(self._points)
        return [(before.end, after.start) for before, after in pairs if before.end < after.start]

    def mean(self) -> float:
        """Time-weighted mean in g/kWh. Raises `ValueError` when empty."""
        if not self._points:
            raise ValueError("an empty series has no mean; check that the feed returned values")
        weights = np.array([point.duration_s for point in self._points])
        return float(np.average(self.values(), weights=weights))

    def resampled(self, step_s: int) -> IntensitySeries:
        """Time-weighted means over steps of `step_s` aligned to the hour; a step with any missing second is a gap."""
        if step_s <= 0 or 86400 % step_s:
            raise ValueError(f"step must divide a day, got {step_s} s")
        step = timedelta(seconds=step_s)
        steps: dict[datetime, _StepSum] = {}
        for point in self._points:
            begin = point.start
            while begin < point.end:
                floor = _floor(begin, step_s)
                stop = min(point.end, floor + step)
                steps.setdefault(floor, _StepSum()).add(point, (stop - begin).total_seconds())
                begin = stop
        return IntensitySeries(
            entry.result(start, start + step) for start, entry in steps.items() if abs(entry.seconds - step_s) < 1e-6
        )


@dataclass(slots=True)
class _StepSum:
    seconds: float = 0.0
    weighted: float = 0.0
    parts: list[CarbonIntensity] = field(default_factory=list)

    def add(self, point: CarbonIntensity, seconds: float) -> None:
        self.seconds += seconds
        self.weighted += seconds * point.g_per_kwh
        self.parts.append(point)

    def result(self, start: datetime, end: datetime) -> CarbonIntensity:
        last = self.parts[-1]
        kinds = {part.kind for part in self.parts}
        kind = last.kind if len(kinds) == 1 else _weakest(kinds)
        value = check_g_per_kwh(self.weighted / self.seconds)
        return CarbonIntensity(
            last.zone,
            start,
            end,
            value,
            last.methodology,
            kind,
            last.source,
            last.fetched_at,
            last.issued_at,
            last.method,
        )


def _weakest(kinds: Iterable[Kind]) -> Kind:
    strength = (Kind.MEASURED, Kind.ESTIMATED, Kind.REPLAYED, Kind.FORECAST, Kind.ASSUMED)
    return max(kinds, key=strength.index)


def _floor(moment: datetime, step_s: int) -> datetime:
    midnight = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    return midnight + timedelta(seconds=(moment - midnight).total_seconds() // step_s * step_s)


def _issued_before(point: CarbonIntensity, known: CarbonIntensity) -> bool:
    return point.issued_at is not None and known.issued_at is not None and point.issued_at < known.issued_at


def _with_end(point: CarbonIntensity, end: datetime) -> CarbonIntensity:
    return CarbonIntensity(
        point.zone, point.start, end, point.g_per_kwh, point.methodology, point.kind, point.source,
        point.fetched_at, point.issued_at, point.method, point.low, point.high,
    )  # fmt: skip


def infer_step(starts: Sequence[datetime]) -> timedelta:
    """The commonest distance between consecutive starts, which must be 5, 15, 30 or 60 minutes.

    Gaps make some distances longer and duplicates give zeros, so neither the mean nor the minimum would do.
    """
    ordered = sorted(set(starts))
    distances = Counter((b - a).total_seconds() for a, b in itertools.pairwise(ordered))
    if not distances:
        raise ValueError("at least two points are needed to tell a series' step; state the step")
    step_s = distances.most_common(1)[0][0]
    if step_s not in STEPS_S:
        raise ValueError(f"step of {step_s:g} s is none of {', '.join(map(str, STEPS_S))}; state the step")
    return timedelta(seconds=step_s)
