"""The ledger's single writer: bounded queues in front of two threads, one for each database.

Serving never waits: `put` and `sample` only append to a queue. `submit` gives a future that is done when the row is
on disk. When the disk is slow, full or gone, telemetry is dropped first; ledger rows wait in their queue and are
written when it is back; only when that queue is full are new rows refused. Every loss is counted and said.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, InterfaceError, ProgrammingError, SQLAlchemyError

from serving.ledger.batch import BatchWriter
from serving.ledger.engine import LedgerError, Location, writer_engine, writer_lock
from serving.ledger.migrate import upgrade
from serving.ledger.retention import LedgerRetention, prune_slice
from serving.ledger.rows import Record
from serving.ledger.telemetry import SeriesSpec, TelemetryWriter

logger = logging.getLogger(__name__)

MAX_RETRY_S = 5.0

Queued = tuple[Record, Future[None] | None]


@dataclass(frozen=True, slots=True)
class WriterSettings:
    """`gather_s`: how long a batch collects rows; `flush_s`: the same for telemetry, and the most of it a crash can
    lose. `*_max_bytes`: limits of the SQLite files. `degrade_at`: share of the ledger's queue at which telemetry is
    dropped so that the ledger can catch up."""

    gather_s: float = 0.05
    flush_s: float = 0.2
    max_batch: int = 5000
    max_queued_rows: int = 100_000
    max_queued_samples: int = 100_000
    degrade_at: float = 0.5
    close_timeout_s: float = 10.0
    ledger_max_bytes: int | None = None
    telemetry_max_bytes: int | None = None


class LedgerFullError(LedgerError):
    """The row was not taken: the queue is full because the database cannot keep up, or the writer is closed."""


@dataclass(frozen=True, slots=True)
class WriterStatus:
    """Counts since the start. `trouble`: what is wrong with the ledger now; `telemetry_trouble` likewise."""

    queued_rows: int
    queued_samples: int
    written_rows: int
    written_samples: int
    refused_rows: int
    rejected_rows: int
    dropped_samples: int
    trouble: str | None
    telemetry_trouble: str | None
    last_commit_s: float | None

    @property
    def alarm(self) -> str | None:
        """What an operator must know, in one line; `None` when all is well."""
        parts = [part for part in (self.trouble, self.telemetry_trouble) if part]
        if self.refused_rows:
            parts.append("ledger rows were refused since the start")
        if self.dropped_samples:
            parts.append("telemetry samples were dropped since the start")
        return "; ".join(parts) or None


@dataclass(slots=True)
class _Queue:
    items: deque[Queued] = field(default_factory=deque)
    urgent: int = 0
    closing: bool = False


class LedgerWriter:
    """Use as a context manager, in one process for each database (`LedgerError` in a second one).

    `keep_text`: whether a tenant agreed to have prompts and answers kept; nobody, by default.
    """

    def __init__(
        self,
        location: Location,
        settings: WriterSettings = WriterSettings(),
        *,
        keep_text: Callable[[str | None], bool] = lambda _tenant: False,
        on_alarm: Callable[[str | None], None] | None = None,
    ) -> None:
        self.location = location
        self.settings = settings
        self._on_alarm = on_alarm
        self._alarm: str | None = None
        self._queue = _Queue()
        self._wake = threading.Condition()
        self._trouble: str | None = None
        self._crowded = False
        self._written = self._refused = self._rejected = 0
        self._last_commit_s: float | None = None
        self._giving_up = threading.Event()
        self._batches = BatchWriter("sqlite" if location.is_sqlite else "postgresql", keep_text)
        self._engine = writer_engine(location, "ledger", settings.ledger_max_bytes)
        self._telemetry = TelemetryWriter(
            location,
            max_queued=settings.max_queued_samples,
            flush_s=settings.flush_s,
            max_bytes=settings.telemetry_max_bytes,
            yields=self._must_catch_up,
            on_change=self._check_alarm,
        )
        self._thread = threading.Thread(target=self._run, name="ledger-writer", daemon=True)
        self._lock: contextlib.ExitStack | None = None

    def __enter__(self) -> LedgerWriter:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def start(self) -> None:
        """Take the writer's lock, bring both databases to the present schema, start the threads.

        Raises `LedgerError` when another process writes, or when a database cannot be opened.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(writer_lock(self.location))
            try:
                upgrade(self._engine, "ledger")
                with self._engine.connect() as connection:
                    self._batches.load_head(connection)
                self._telemetry.open()
            except SQLAlchemyError as error:
                raise LedgerError(f"the ledger at {self.location} cannot be opened: {_first_line(error)}") from error
            self._lock = stack.pop_all()
        self._thread.start()
        self._telemetry.start()

    def close(self) -> None:
        """Write what is queued, for at most `close_timeout_s`, and give the lock back."""
        with self._wake:
            self._queue.closing = True
            self._wake.notify()
        self._telemetry.stop(self.settings.close_timeout_s)
        self._thread.join(self.settings.close_timeout_s)
        self._giving_up.set()
        self._thread.join()
        self._engine.dispose()
        if self._lock is not None:
            self._lock.close()

    def put(self, record: Record) -> bool:
        """Queue a row and go on. False when the queue is full: the row is counted as refused."""
        return self._append(record, None)

    def submit(self, record: Record) -> Future[None]:
        """Queue a row; the future is done when it is on disk. It fails with `LedgerFullError` when it is not taken,
        and with `LedgerError` when the row is one the database rejects or the writer closes before it is written."""
        future: Future[None] = Future()
        if not self._append(record, future):
            why = "writer is closed" if self._queue.closing else "queue is full"
            future.set_exception(LedgerFullError(f"the ledger's {why}; the row was not taken"))
        return future

    def sample(self, series: SeriesSpec, at_us: int, value: float) -> None:
        """Queue a telemetry sample; under pressure it is dropped and counted."""
        self._telemetry.put(series, at_us, value)

    def prune(self, now_us: int, retention: LedgerRetention = LedgerRetention()) -> None:  # noqa: B008 - frozen
        """Forget what is older than the retention, an hour at a time between the batches; a job for the night.

        Raises `LedgerError` when the database cannot be reached."""
        try:
            more = True
            while more:
                with self._engine.begin() as connection:
                    more = prune_slice(connection, now_us, retention)
        except SQLAlchemyError as error:
            raise LedgerError(f"the ledger could not be pruned: {_first_line(error)}") from error

    @property
    def telemetry(self) -> TelemetryWriter:
        return self._telemetry

    @property
    def status(self) -> WriterStatus:
        return WriterStatus(
            queued_rows=len(self._queue.items),
            queued_samples=self._telemetry.queued,
            written_rows=self._written,
            written_samples=self._telemetry.written,
            refused_rows=self._refused,
            rejected_rows=self._rejected,
            dropped_samples=self._telemetry.dropped,
            trouble=self._trouble,
            telemetry_trouble=self._telemetry.trouble,
            last_commit_s=self._last_commit_s,
        )

    def _append(self, record: Record, future: Future[None] | None) -> bool:
        if future is not None:
            future.set_running_or_notify_cancel()  # from here on nobody can cancel what will be written anyway
        with self._wake:
            accepted = not self._queue.closing and len(self._queue.items) < self.settings.max_queued_rows
            if accepted:
                self._queue.items.append((record, future))
                self._queue.urgent += future is not None
                if len(self._queue.items) == 1 or future is not None:
                    self._wake.notify()
            else:
                self._refused += 1
        if not accepted:
            self._check_alarm()
        return accepted

    def _must_catch_up(self) -> bool:
        """Whether telemetry has to stand back for the ledger."""
        limit = self.settings.degrade_at * self.settings.max_queued_rows
        self._crowded = len(self._queue.items) > (limit / 2 if self._crowded else limit)
        return self._crowded or self._trouble is not None

    def _run(self) -> None:
        while True:
            batch = self._take()
            if not batch:
                return
            try:
                self._commit(batch)
            except LedgerError as error:
                self._fail(batch, error)
            self._check_alarm()

    def _take(self) -> list[Queued]:
        """The next rows, gathered for a moment unless somebody waits for one; empty when closed and done."""
        queue, limit = self._queue, self.settings.max_batch
        with self._wake:
            self._wake.wait_for(lambda: queue.items or queue.closing)
            until = time.monotonic() + self.settings.gather_s
            while not (queue.urgent or queue.closing or len(queue.items) >= limit):
                remaining = until - time.monotonic()
                if remaining <= 0:
                    break
                self._wake.wait(remaining)
            batch = [queue.items.popleft() for _ in range(min(limit, len(queue.items)))]
            queue.urgent -= sum(future is not None for _, future in batch)
            return batch

    def _commit(self, batch: list[Queued]) -> None:
        """Write until it is done; `LedgerError` only when closing while the database stays away."""
        records = [record for record, _ in batch]
        name, retry_s, tried = uuid.uuid4().hex, 0.1, False
        while True:
            started_s = time.monotonic()
            try:
                self._attempt(records, name, tried)
            except Exception as error:
                self._batches.rolled_back()
                if not _passes(error):
                    self._reject(batch, error)
                    return
                tried = True
                self._say(f"the ledger cannot be written, rows wait: {_first_line(error)}")
                if self._giving_up.wait(retry_s):
                    raise LedgerError(f"closed while the database was away: {_first_line(error)}") from error
                retry_s = min(MAX_RETRY_S, 2 * retry_s)
                continue
            self._last_commit_s = time.monotonic() - started_s
            self._written += len(records)
            self._say(None)
            for _, future in batch:
                if future is not None:
                    future.set_result(None)
            return

    def _attempt(self, records: list[Record], name: str, tried: bool) -> None:
        with self._engine.begin() as connection:
            if tried:
                self._batches.load_head(connection)
                if self._batches.was_committed(connection, name):
                    return
            head = self._batches.write(connection, records, name)
        self._batches.head = head

    def _reject(self, batch: list[Queued], error: Exception) -> None:
        """A row the database will never take: find it, leave it out, write the others."""
        if len(batch) > 1:
            half = len(batch) // 2
            for part in (batch[:half], batch[half:]):
                self._commit(part)
            return
        self._rejected += 1
        logger.error("a ledger row was rejected: %s", _first_line(error))
        future = batch[0][1]
        if future is not None:
            future.set_exception(LedgerError(f"the row was rejected: {_first_line(error)}"))

    def _fail(self, batch: list[Queued], error: LedgerError) -> None:
        self._refused += len(batch)
        for _, future in batch:
            if future is not None and not future.done():
                future.set_exception(error)

    def _say(self, trouble: str | None) -> None:
        if (trouble is None) != (self._trouble is None):
            level = logging.INFO if trouble is None else logging.ERROR
            logger.log(level, "%s", trouble or "the ledger is written again")
        self._trouble = trouble
        self._check_alarm()

    def _check_alarm(self) -> None:
        alarm = self.status.alarm
        if alarm != self._alarm:
            self._alarm = alarm
            if self._on_alarm is not None:
                self._on_alarm(alarm)


def _passes(error: Exception) -> bool:
    """Whether the same rows may be written later: the database is away, full or locked, not the rows at fault."""
    if isinstance(error, LedgerError):
        return True
    if not isinstance(error, DBAPIError) or isinstance(error, DataError | IntegrityError):
        return False
    if isinstance(error, ProgrammingError):
        # psycopg: class 42 is a table or a right that is missing; without a state a value could not be adapted.
        return str(getattr(error.orig, "sqlstate", None) or "").startswith("42")
    return not (isinstance(error, InterfaceError) and "bind" in str(error.orig))


def _first_line(error: BaseException) -> str:
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    return str(cause).splitlines()[0] if str(cause) else type(cause).__name__
