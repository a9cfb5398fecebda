"""The engine: schedule, run, update. Everything else hangs on these three."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from engine.batch import Batch, Executor, StepRecord, StepResult
from engine.request import Request
from engine.scheduler import RequestUpdate, Scheduler

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """Updates for the requests of a step, the record of the step (None where nothing ran), and the executor's fault."""

    updates: Sequence[RequestUpdate]
    record: StepRecord | None
    fault: str | None = None


class Engine:
    """A scheduler and an executor; owns no thread and no socket."""

    def __init__(self, scheduler: Scheduler, executor: Executor) -> None:
        self.scheduler = scheduler
        self._executor = executor

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

    def add(self, request: Request) -> None:
        """Queue a request. Raises `ValueError` when it could never run."""
        self.scheduler.add(request)

    def abort(self, request_ids: Sequence[str]) -> None:
        """End requests between steps and free their blocks; unknown ids are ignored."""
        self.scheduler.abort(request_ids)

    def step(self) -> StepOutcome:
        """Run one batch. An executor error ends the requests of that batch, and no other."""
        batch = self.scheduler.schedule()
        if not batch.requests and not batch.retired:
            return StepOutcome((), None)
        try:
            result = self._executor.run(batch)
        except Exception as error:
            logger.exception("step %d failed: %s", batch.step_id, _describe(batch))
            reason = f"the model failed on this batch: {type(error).__name__}: {error}"
            return StepOutcome(self.scheduler.fail(batch, reason), None, reason)
        return self._finish(batch, result)

    def _finish(self, batch: Batch, result: StepResult) -> StepOutcome:
        record = self.scheduler.record(batch, result) if batch.requests else None
        return StepOutcome(self.scheduler.update(batch, result), record)


def _describe(batch: Batch) -> str:
    """The shape of a batch for the log: ids and token counts, never contents."""
    return ", ".join(f"{each.request.request_id}[{each.start}:{each.end}]" for each in batch.requests)
