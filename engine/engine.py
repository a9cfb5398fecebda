"""The engine: schedule, run, update. Everything else hangs on these three.

With an executor that launches, the host's work hides behind the device's: step N is launched, then the result of step
N-1 is taken in.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from engine.batch import Batch, Executor, LaunchingExecutor, StepRecord, StepResult
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
            return self._fail(batch, error)
        return self._finish(batch, result)

    def _finish(self, batch: Batch, result: StepResult) -> StepOutcome:
        record = self.scheduler.record(batch, result) if batch.requests else None
        return StepOutcome(self.scheduler.update(batch, result), record)

    def _fail(self, batch: Batch, error: Exception) -> StepOutcome:
        reason = f"the model failed on this batch: {type(error).__name__}: {error}"
        return StepOutcome(self.scheduler.fail(batch, reason), None, reason)


class OverlappedEngine(Engine):
    """One step in flight while the next is planned; the scheduler must be one that `runs_ahead`.

    A request that turns out to have ended has one more token under way, which is thrown away. Its blocks are free at
    once all the same: steps run in order, so their next owner writes after the step in flight.
    """

    def __init__(self, scheduler: Scheduler, executor: LaunchingExecutor) -> None:
        super().__init__(scheduler, executor)
        self._launching = executor
        self._in_flight: tuple[Batch, object] | None = None
        self._ended_s = float("-inf")

    @property
    def has_work(self) -> bool:
        return self._in_flight is not None or super().has_work

    def step(self) -> StepOutcome:
        """Launch a batch, then take in the one launched before; the first outcome comes with the second call.

        An executor error ends the requests of the batch that met it. One at the launch counts after the step in
        flight, whose result still stands.
        """
        previous, self._in_flight = self._in_flight, None
        batch = self.scheduler.schedule()
        error: Exception | None = None
        if batch.requests:
            try:
                self._in_flight = (batch, self._launching.launch(batch))
            except Exception as caught:
                logger.exception("step %d failed at its launch: %s", batch.step_id, _describe(batch))
                error = caught
        outcome = StepOutcome((), None) if previous is None else self._collect(*previous)
        if error is None:
            return outcome
        failed = self._fail(batch, error)
        return StepOutcome((*outcome.updates, *failed.updates), outcome.record, failed.fault)

    def _collect(self, batch: Batch, launched: object) -> StepOutcome:
        try:
            result = self._launching.collect(launched)
        except Exception as error:
            logger.exception("step %d failed: %s", batch.step_id, _describe(batch))
            return self._fail(batch, error)
        # The device did this step after the one before: the time since the launch is not all its own.
        result = replace(result, started_s=min(max(result.started_s, self._ended_s), result.ended_s))
        self._ended_s = result.ended_s
        # A request that ended one step ago has its figures already; what its surplus token cost stays with the step.
        gone = {each.request.request_id for each in batch.requests if each.request.finished}
        outcome = self._finish(batch, result)
        record = outcome.record
        if record is None or not gone:
            return outcome
        work = tuple(share for share in record.work if share.request_id not in gone)
        return StepOutcome(outcome.updates, replace(record, work=work))


def _describe(batch: Batch) -> str:
    """The shape of a batch for the log: ids and token counts, never contents."""
    return ", ".join(f"{each.request.request_id}[{each.start}:{each.end}]" for each in batch.requests)
