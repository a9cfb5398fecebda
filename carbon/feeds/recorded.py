"""Recorded intensity from a CSV or Parquet file: history as it was, or replayed as if it were now."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from carbon.feeds.feed import FeedError
from carbon.intensity import (
    Basis,
    Boundary,
    CarbonIntensity,
    Kind,
    Methodology,
    Mix,
    as_utc,
    to_g_per_kwh,
)
from carbon.series import IntensitySeries, infer_step

_ESTIMATED_WORDS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False, "": False}


@dataclass(frozen=True, slots=True)
class FileFormat:
    """Which columns hold what. `time_zone`: of times without offset; None refuses such times.

    `step_s`: length of an interval; None tells it from the times. `estimated_column`: true/false for a value.
    """

    time_column: str
    value_column: str
    unit: str
    methodology: Methodology
    time_zone: str | None = None
    zone: str | None = None
    zone_column: str | None = None
    estimated_column: str | None = None
    method_column: str | None = None
    step_s: int | None = None


def electricity_maps_format(boundary: Boundary) -> FileFormat:
    """The hourly CSV of the Electricity Maps data portal (2021-2024 header)."""
    suffix = "(direct)" if boundary is Boundary.DIRECT else "(LCA)"
    return FileFormat(
        time_column="Datetime (UTC)",
        value_column=f"Carbon Intensity gCO₂eq/kWh {suffix}",
        unit="gCO2eq/kWh",
        methodology=Methodology(Basis.AVERAGE, boundary, Mix.CONSUMPTION),
        time_zone="UTC",
        zone_column="Zone Id",
        estimated_column="Data Estimated",
        method_column="Data Estimation Method",
    )


def gridserve_format(methodology: Methodology, zone: str | None = None) -> FileFormat:
    """Our own two columns, `start` (with offset) and `g_per_kwh`."""
    return FileFormat("start", "g_per_kwh", "g/kWh", methodology, zone=zone)


def read_series(path: Path, layout: FileFormat, fetched_at: datetime) -> IntensitySeries:
    """Read a whole file. Raises `ValueError` naming file and row for anything it cannot take at face value.

    A row without a value is a gap. Times of a zone with daylight saving follow the clock: of an hour that occurs
    twice the first row is the earlier, and an hour that does not exist is refused.
    """
    rows = list(_rows(path))
    if not rows:
        raise ValueError(f"{path}: no rows")
    for column in (layout.time_column, layout.value_column):
        if column not in rows[0]:
            raise ValueError(f"{path}: no column {column!r}; it has {', '.join(map(str, rows[0]))}")
    starts = list(_utc_times(path, (row[layout.time_column] for row in rows), layout.time_zone))
    step = timedelta(seconds=layout.step_s) if layout.step_s else infer_step(starts)
    points = []
    for number, (row, start) in enumerate(zip(rows, starts), start=2):
        text = str(row[layout.value_column]).strip()
        if text in ("", "None", "nan"):
            continue
        try:
            value = to_g_per_kwh(float(text), layout.unit)
        except ValueError as error:
            raise ValueError(f"{path} row {number}: {error}") from None
        estimated = layout.estimated_column is not None and _truth(path, number, str(row[layout.estimated_column]))
        points.append(
            CarbonIntensity(
                zone=_zone(path, row, layout),
                start=start,
                end=start + step,
                g_per_kwh=value,
                methodology=layout.methodology,
                kind=Kind.ESTIMATED if estimated else Kind.MEASURED,
                source=f"file:{path.name}",
                fetched_at=fetched_at,
                method=(str(row[layout.method_column]) or None) if layout.method_column else None,
            )
        )
    return IntensitySeries(points)


def _rows(path: Path) -> Iterator[dict[str, object]]:
    if path.suffix == ".parquet":
        import pyarrow.parquet

        yield from pyarrow.parquet.read_table(path).to_pylist()
        return
    with path.open(encoding="utf-8-sig", newline="") as file:
        yield from csv.DictReader(file)


def _zone(path: Path, row: dict[str, object], layout: FileFormat) -> str:
    if layout.zone is not None:
        return layout.zone
    if layout.zone_column is not None:
        return str(row[layout.zone_column])
    return path.stem


def _truth(path: Path, number: int, word: str) -> bool:
    truth = _ESTIMATED_WORDS.get(word.strip().lower())
    if truth is None:
        raise ValueError(f"{path} row {number}: {word!r} is neither true nor false")
    return truth


def _utc_times(path: Path, values: Iterable[object], time_zone: str | None) -> Iterator[datetime]:
    zone = ZoneInfo(time_zone) if time_zone else None
    previous: datetime | None = None
    for number, value in enumerate(values, start=2):
        try:
            moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value).strip())
            if moment.tzinfo is None and zone is not None:
                moment = _resolve(moment, zone, previous)
            previous = as_utc(moment)
        except ValueError as error:
            raise ValueError(f"{path} row {number}: {error}") from None
        yield previous


def _resolve(local: datetime, zone: ZoneInfo, previous: datetime | None) -> datetime:
    early = local.replace(tzinfo=zone, fold=0).astimezone(UTC)
    if early.astimezone(zone).replace(tzinfo=None) != local:
        raise ValueError(f"{local} does not exist in {zone.key} (clocks went forward)")
    late = local.replace(tzinfo=zone, fold=1).astimezone(UTC)
    return late if previous is not None and late != early and previous >= early else early


class RecordedFeed:
    """A series in memory as a feed.

    `offset`: how far the recording lies behind the clock; with None (history) the file's times are taken as they
    are. With an offset (replay) the value recorded at `now - offset` is served as current, its interval moved to
    now, its kind `replayed` and its true time in `method`. The recording ahead of `now` is what `forecast` answers:
    a perfect forecast, and labelled so.
    """

    def __init__(
        self,
        series: IntensitySeries,
        name: str = "csv",
        offset: timedelta | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        if not series:
            raise ValueError("the recording holds no value; check the file's value column")
        self.name = name
        self.methodology = series.methodology
        self._series = series
        self._offset = offset
        self._now = now

    @classmethod
    def replay_from(
        cls, series: IntensitySeries, start: datetime, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> RecordedFeed:
        """A replay in which the recording's `start` is this moment."""
        return cls(series, name="csv_replay", offset=now() - as_utc(start), now=now)

    def _shifted(self, point: CarbonIntensity, kind: Kind | None = None) -> CarbonIntensity:
        if self._offset is None:
            return point
        return CarbonIntensity(
            point.zone,
            point.start + self._offset,
            point.end + self._offset,
            point.g_per_kwh,
            point.methodology,
            kind or Kind.REPLAYED,
            point.source,
            point.fetched_at,
            method=f"recorded {point.start:%Y-%m-%dT%H:%MZ}",
        )

    def _recorded(self, moment: datetime) -> datetime:
        return as_utc(moment) - (self._offset or timedelta(0))

    def _check_zone(self, zone: str) -> None:
        if zone != self._series[0].zone:
            raise FeedError(f"the file holds zone {self._series[0].zone!r}, not {zone!r}", permanent=True)

    async def current(self, zone: str) -> CarbonIntensity:
        self._check_zone(zone)
        found = self._series.latest_before(self._recorded(self._now()))
        if found is None:
            raise FeedError(f"the recording begins at {self._series[0].start:%Y-%m-%d %H:%MZ}, after now")
        return self._shifted(found)

    async def forecast(self, zone: str, until: datetime) -> IntensitySeries:
        self._check_zone(zone)
        ahead = self._series.between(self._recorded(self._now()), self._recorded(until))
        if not ahead:
            raise FeedError("the recording ends before now; nothing lies ahead")
        return IntensitySeries(self._shifted(point, Kind.FORECAST) for point in ahead)

    async def history(self, zone: str, start: datetime, end: datetime) -> IntensitySeries:
        self._check_zone(zone)
        last = min(self._recorded(end), self._recorded(self._now()))
        return IntensitySeries(self._shifted(point) for point in self._series.between(self._recorded(start), last))

    async def close(self) -> None:
        return None
