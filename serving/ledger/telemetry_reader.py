"""Telemetry for charts: never more points than asked for, from the finest resolution that covers the range."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import case, func, null, select

from serving.ledger.engine import Location, reader_engine
from serving.ledger.rollup import MINUTE_US, SECOND_US, Retention
from serving.ledger.rows import DAY_US
from serving.ledger.tables import MINUTES, SAMPLES, SECONDS, SERIES

MAX_POINTS = 2000
RAW_RANGE_US = 2 * 3600 * SECOND_US
"""Up to this long raw samples are read: they hold the newest seconds, which are not rolled up yet."""


@dataclass(frozen=True, slots=True)
class Point:
    """One bucket. `increase`: what a counter grew by; `None` for gauges and for raw samples."""

    start_us: int
    min: float
    max: float
    mean: float
    last: float
    increase: float | None


@dataclass(frozen=True, slots=True)
class Latest:
    name: str
    unit: str
    is_counter: bool
    at_us: int | None
    value: float | None


class TelemetryReader:
    """Thread-safe, read-only."""

    def __init__(
        self,
        location: Location,
        retention: Retention = Retention(),  # noqa: B008 - frozen
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._retention = retention
        self._now_us = now_us
        self._engine = reader_engine(location, "telemetry")

    def close(self) -> None:
        self._engine.dispose()

    def latest(self) -> list[Latest]:
        """The newest sample of every series."""
        columns = (SERIES.c.name, SERIES.c.unit, SERIES.c.is_counter, SERIES.c.latest_us, SERIES.c.latest)
        with self._engine.connect() as connection:
            return [Latest(*row) for row in connection.execute(select(*columns).order_by(SERIES.c.name))]

    def range(self, name: str, since_us: int, until_us: int, points: int = 600) -> list[Point]:
        """At most `points` buckets of `[since, until)`, empty ones left out.

        Raises `ValueError` for an unknown series, an empty range, or more than 2000 points.
        """
        if not 1 <= points <= MAX_POINTS or until_us <= since_us:
            raise ValueError(f"ask for 1 to {MAX_POINTS} points of a range that is not empty")
        width_us = -(-(until_us - since_us) // points)
        with self._engine.connect() as connection:
            identity = connection.execute(select(SERIES.c.id).where(SERIES.c.name == name)).scalar()
            if identity is None:
                raise ValueError(f"there is no series {name!r}")
            age_days = (self._now_us() - since_us) / DAY_US
            if until_us - since_us <= RAW_RANGE_US and age_days <= self._retention.raw_days:
                query = _raw(identity, since_us, until_us, width_us)
            elif width_us < MINUTE_US and age_days <= self._retention.second_days:
                query = _rolled(SECONDS, identity, since_us, until_us, max(width_us, SECOND_US))
            else:
                query = _rolled(MINUTES, identity, since_us, until_us, max(width_us, MINUTE_US))
            return [Point(*row) for row in connection.execute(query)]

    def increase(self, name: str, since_us: int, until_us: int) -> float | None:
        """What a counter grew by in whole minutes of the range, of what is rolled up; `None` for gauges."""
        query = (
            select(func.sum(MINUTES.c.increase))
            .select_from(SERIES.join(MINUTES, MINUTES.c.series == SERIES.c.id))
            .where(SERIES.c.name == name, MINUTES.c.start_us >= since_us, MINUTES.c.start_us < until_us)
        )
        with self._engine.connect() as connection:
            found = connection.execute(query).scalar()
            return None if found is None else float(found)


def _raw(identity: int, since_us: int, until_us: int, width_us: int) -> Any:
    start = SAMPLES.c.at_us - (SAMPLES.c.at_us - since_us) % width_us
    spans = (
        select(
            start.label("start_us"),
            SAMPLES.c.value,
            func.row_number().over(partition_by=start, order_by=SAMPLES.c.at_us.desc()).label("newest"),
        )
        .where(SAMPLES.c.series == identity, SAMPLES.c.at_us >= since_us, SAMPLES.c.at_us < until_us)
        .subquery()
    )
    value = spans.c.value
    last = func.max(case((spans.c.newest == 1, value)))
    columns = (spans.c.start_us, func.min(value), func.max(value), func.avg(value), last)
    return select(*columns, null()).group_by(spans.c.start_us).order_by(spans.c.start_us)


def _rolled(table: Any, identity: int, since_us: int, until_us: int, width_us: int) -> Any:
    start = table.c.start_us - (table.c.start_us - since_us) % width_us
    newest = func.row_number().over(partition_by=start, order_by=table.c.start_us.desc())
    spans = (
        select(table, start.label("bucket_us"), newest.label("newest"))
        .where(table.c.series == identity, table.c.start_us >= since_us, table.c.start_us < until_us)
        .subquery()
    )
    columns = (
        spans.c.bucket_us,
        func.min(spans.c.min),
        func.max(spans.c.max),
        func.sum(spans.c.sum) / func.sum(spans.c.count),
        func.max(case((spans.c.newest == 1, spans.c.last))),
        func.sum(spans.c.increase),
    )
    return select(*columns).group_by(spans.c.bucket_us).order_by(spans.c.bucket_us)
