"""The carbon intensity a simulation runs under: an hourly series laid under virtual time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from carbon.feeds.recorded import electricity_maps_format, gridserve_format, read_series
from carbon.intensity import Basis, Boundary, CarbonIntensity, IntensityReading, Methodology, Tier
from carbon.series import IntensitySeries
from power.governors import GridSignal

WINDOW_H = 720
LOW_QUANTILE, HIGH_QUANTILE = 0.1, 0.9


class Grid:
    """`started_at` is virtual second 0. Raises `ValueError` where the series does not reach that moment."""

    def __init__(self, series: IntensitySeries, started_at: datetime, source: str) -> None:
        self.series = series.resampled(3600)
        self.started_at = started_at.astimezone(UTC)
        self.source = source
        if self.series.at(self.started_at) is None:
            first, last = self.series[0].start, self.series[len(self.series) - 1].end
            raise ValueError(f"{source} holds {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M}, not {started_at}")
        self._hour: tuple[float, float, CarbonIntensity | None] = (0.0, 0.0, None)
        self._signal: tuple[CarbonIntensity, GridSignal] | None = None

    def at(self, time_s: float) -> CarbonIntensity | None:
        """The value of the hour; None beyond the series."""
        start_s, end_s, value = self._hour
        if not start_s <= time_s < end_s:
            value = self.series.at(self.started_at + timedelta(seconds=time_s))
            if value is None:
                return None
            start_s = (value.start - self.started_at).total_seconds()
            self._hour = (start_s, start_s + value.duration_s, value)
        return value

    def g_per_kwh(self, time_s: float) -> float | None:
        value = self.at(time_s)
        return None if value is None else value.g_per_kwh

    def reading(self, time_s: float) -> IntensityReading:
        """As a feed chain would answer at this moment."""
        value = self.at(time_s)
        if value is None:
            return IntensityReading(None, Tier.UNKNOWN, reason="the recorded series does not cover this moment")
        return IntensityReading(value, Tier.LIVE, 0.0)

    def trailing(self, time_s: float, hours: int = WINDOW_H) -> list[float]:
        """Hourly values of the last `hours` hours, the present one last: what an online policy may know."""
        now = self.started_at + timedelta(seconds=time_s)
        points = self.series.between(now - timedelta(hours=hours - 1), now + timedelta(seconds=1))
        return [point.g_per_kwh for point in points]

    def signal(self, time_s: float) -> GridSignal | None:
        """For governors: now, within the 10 % and 90 % quantiles of the trailing month."""
        value = self.at(time_s)
        if value is None:
            return None
        if self._signal is None or self._signal[0] is not value:
            low, high = np.quantile(self.trailing(time_s), [LOW_QUANTILE, HIGH_QUANTILE])
            self._signal = (value, GridSignal(value.g_per_kwh, float(low), float(high)))
        return self._signal[1]


def read_grid(path: Path, started_at: datetime | None) -> Grid:
    """A recorded series: an Electricity Maps hourly file (direct emissions), or our own two columns.

    `started_at` None: two days after the series begins, so that a trailing window exists.
    """
    with path.open(encoding="utf-8-sig") as stream:
        header = stream.readline()
    ours = header.startswith("start,")
    layout = (
        gridserve_format(Methodology(Basis.AVERAGE, Boundary.DIRECT), path.stem)
        if ours
        else electricity_maps_format(Boundary.DIRECT)
    )
    series = read_series(path, layout, datetime.now(UTC))
    start = started_at or series[0].start + timedelta(days=2)
    return Grid(series, start, path.name)
