"""Telemetry's side of the writer: samples by series, flushed a few times a second, first to give way.

A counter (joules) is stored as it counts; roll-ups keep what it grew by, so that no joule is lost when samples go.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sqlalchemy import Connection, insert, select
from sqlalchemy.exc import DBAPIError

from serving.ledger.engine import Location, writer_engine
from serving.ledger.migrate import upgrade
from serving.ledger.partitions import Partitions
from serving.ledger.rollup import LAG_US, Retention, prune, roll_up
from serving.ledger.tables import SERIES

logger = logging.getLogger(__name__)

ROLL_UP_EVERY_S = 10.0
PRUNE_EVERY_S = 600.0
FIRST_PRUNE_S = 60.0
MAX_BATCH = 20_000


@dataclass(frozen=True, slots=True)
class SeriesSpec:
    """A series: its name with labels (`gpu_energy_joules{gpu="0"}`), its unit, and whether it only ever counts up."""

    name: str
    unit: str
    is_counter: bool = False


class TelemetryWriter:
    """One thread and one connection. `yields()`: whether the ledger needs the disk more."""

    def __init__(
        self,
        location: Location,
        *,
        max_queued: int,
        flush_s: float,
        max_bytes: int | None,
        yields: Callable[[], bool],
        on_change: Callable[[], None],
        retention: Retention = Retention(),  # noqa: B008 - frozen
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self.written = self.dropped = 0
        self.trouble: str | None = None
        self._flush_s = flush_s
        self._yields = yields
        self._on_change = on_change
        self._retention = retention
        self._now_us = now_us
        self._samples: deque[tuple[SeriesSpec, int, float]] = deque()
        self._max_queued = max_queued
        self._ids: dict[str, int] = {}
        self._partitions = Partitions()
        self._engine = writer_engine(location, "telemetry", max_bytes)
        self._mark = "?" if location.is_sqlite else "%s"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="telemetry-writer", daemon=True)

    @property
    def queued(self) -> int:
        return len(self._samples)

    def open(self) -> None:
        upgrade(self._engine, "telemetry")

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        self._engine.dispose()

    def put(self, series: SeriesSpec, at_us: int, value: float) -> None:
        if len(self._samples) >= self._max_queued:
            self.dropped += 1
            return
        self._samples.append((series, at_us, value))

    def _run(self) -> None:
        next_roll_s = time.monotonic() + ROLL_UP_EVERY_S
        next_prune_s = time.monotonic() + FIRST_PRUNE_S
        while True:
            stopping = self._stop.wait(self._flush_s)
            self.flush()
            now_s = time.monotonic()
            if not self.trouble and not self._yields():
                if now_s >= next_roll_s:
                    next_roll_s = now_s + ROLL_UP_EVERY_S
                    self.roll_up()
                if now_s >= next_prune_s:
                    next_prune_s = now_s + PRUNE_EVERY_S
                    self.prune()
            if stopping:
                return

    def flush(self) -> None:
        """Write what is queued, or drop it where the ledger needs the disk or the disk does not take it."""
        while self._samples:
            batch = [self._samples.popleft() for _ in range(min(MAX_BATCH, len(self._samples)))]
            if self._yields():
                self._drop(batch, "telemetry is dropped: the ledger needs the disk")
                continue
            try:
                with self._engine.begin() as connection:
                    self._write(connection, batch)
            except DBAPIError as error:
                self._partitions.forget()
                self._ids.clear()
                self._drop(batch, f"telemetry is dropped: {str(error.orig).splitlines()[0]}")
                return
            self.written += len(batch)
            self._say(None)

    def roll_up(self) -> None:
        """Take finished seconds and minutes into the roll-ups."""
        with self._guarded("roll-ups wait"), self._engine.begin() as connection:
            roll_up(connection, self._now_us() - LAG_US)

    def prune(self) -> None:
        """Remove what is older than the retention; only what has been rolled up."""
        with self._guarded("old telemetry stays"), self._engine.begin() as connection:
            prune(connection, self._now_us(), self._retention)

    def _write(self, connection: Connection, batch: list[tuple[SeriesSpec, int, float]]) -> None:
        rows, newest = [], {}
        for spec, at_us, value in batch:
            identity = self._ids.get(spec.name)
            if identity is None:
                identity = self._identify(connection, spec)
            rows.append((identity, at_us, value))
            newest[identity] = (at_us, value, identity, at_us)
        self._partitions.ensure(connection, "samples", (row[1] for row in rows))
        mark = self._mark
        connection.exec_driver_sql(
            f"INSERT INTO samples (series, at_us, value) "  # noqa: S608 - a parameter mark
            f"VALUES ({mark}, {mark}, {mark}) ON CONFLICT DO NOTHING",
            rows,
        )
        connection.exec_driver_sql(
            f"UPDATE series SET latest_us = {mark}, latest = {mark} "  # noqa: S608 - a parameter mark
            f"WHERE id = {mark} AND (latest_us IS NULL OR latest_us <= {mark})",
            list(newest.values()),
        )

    def _identify(self, connection: Connection, spec: SeriesSpec) -> int:
        found = connection.execute(select(SERIES.c.id).where(SERIES.c.name == spec.name)).scalar()
        if found is None:
            made = insert(SERIES).values(name=spec.name, unit=spec.unit, is_counter=spec.is_counter)
            found = connection.execute(made.returning(SERIES.c.id)).scalar_one()
        self._ids[spec.name] = int(found)
        return int(found)

    @contextlib.contextmanager
    def _guarded(self, what: str) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            self._say(f"{what}: {str(error.orig).splitlines()[0]}")

    def _drop(self, batch: list[tuple[SeriesSpec, int, float]], why: str) -> None:
        self.dropped += len(batch)
        self._say(why)

    def _say(self, trouble: str | None) -> None:
        if trouble != self.trouble:
            self.trouble = trouble
            logger.log(
                logging.INFO if trouble is None else logging.WARNING, "%s", trouble or "telemetry is written again"
            )
            self._on_change()
