"""Background jobs that may run late: APScheduler in memory, with a timeout, a last success and a count for each.

Nothing here is needed to answer a request or to control a clock; both have loops of their own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from apscheduler.events import EVENT_JOB_MAX_INSTANCES, EVENT_JOB_MISSED, JobExecutionEvent
from apscheduler.schedulers.asyncio import AsyncIOScheduler

logger = logging.getLogger(__name__)

Work = Callable[[], Awaitable[None]]


@dataclass(slots=True)
class JobRecord:
    """`skipped`: turns that fell away because the one before still ran, or the process slept."""

    name: str
    every_s: float
    timeout_s: float
    last_success_unix_s: float | None = None
    last_error: str | None = None
    runs: int = 0
    failures: int = 0
    skipped: int = 0


class Jobs:
    """`add` before `start`. `on_failure(name, text)`: text None once a job succeeds again."""

    def __init__(self, on_failure: Callable[[str, str | None], None] = lambda name, text: None) -> None:
        self.records: dict[str, JobRecord] = {}
        self._on_failure = on_failure
        self._scheduler = AsyncIOScheduler(
            timezone=UTC, job_defaults={"misfire_grace_time": None, "coalesce": True, "max_instances": 1}
        )
        self._scheduler.add_listener(self._skipped, EVENT_JOB_MISSED | EVENT_JOB_MAX_INSTANCES)

    def add(
        self, name: str, work: Work, *, every_s: float, timeout_s: float, first_s: float = 0.0, jitter_s: float = 0.0
    ) -> None:
        """Run `work` every so often, first after `first_s`; a run is cut off after `timeout_s`."""
        record = self.records[name] = JobRecord(name, every_s, timeout_s)
        self._scheduler.add_job(
            self._run,
            "interval",
            args=(record, work),
            seconds=every_s,
            jitter=jitter_s or None,
            id=name,
            next_run_time=datetime.now(UTC) + timedelta(seconds=first_s),
        )

    def start(self) -> None:
        self._scheduler.start()

    def stop(self) -> None:
        """Jobs that run are cancelled; each leaves things whole."""
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)

    def next_run_unix_s(self, name: str) -> float | None:
        job = self._scheduler.get_job(name)
        moment = getattr(job, "next_run_time", None)
        return moment.timestamp() if moment is not None else None

    async def _run(self, record: JobRecord, work: Work) -> None:
        record.runs += 1
        try:
            async with asyncio.timeout(record.timeout_s):
                await work()
        except Exception as error:
            record.failures += 1
            late = f"took longer than {record.timeout_s:g} s"
            record.last_error = late if isinstance(error, TimeoutError) else str(error) or type(error).__name__
            logger.exception("job %s failed", record.name)
            self._on_failure(record.name, f"job {record.name}: {record.last_error}")
            return
        record.last_success_unix_s = time.time()
        record.last_error = None
        self._on_failure(record.name, None)

    def _skipped(self, event: JobExecutionEvent) -> None:
        record = self.records.get(event.job_id)
        if record is not None:
            record.skipped += 1
