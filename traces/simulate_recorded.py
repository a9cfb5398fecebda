"""Replay a real engine's step times through the scheduler: the same batches must come out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from engine.block_pool import BlockPool
from engine.request import Request
from engine.scheduler import Scheduler, SchedulerConfig
from traces.simulate_server import BatchKey, batch_key
from traces.twin_executor import RecordedExecutor


@dataclass(frozen=True, slots=True)
class RecordedStep:
    """When a step of a real run was scheduled, started and ended, monotonic seconds of one clock."""

    scheduled_s: float
    started_s: float
    ended_s: float


def replay_steps(
    requests: Iterable[Request], steps: Sequence[RecordedStep], config: SchedulerConfig, pool: BlockPool
) -> list[BatchKey]:
    """The batches our scheduler makes when requests come at their `arrival_s` and steps take as long as recorded.

    Answers end at `max_tokens`. Raises `ValueError` where a recorded step finds nothing to run.
    """
    waiting = sorted(requests, key=lambda request: request.arrival_s)
    scheduler = Scheduler(config, pool)
    executor = RecordedExecutor((step.started_s, step.ended_s) for step in steps)
    batches, arrived = [], 0
    for number, step in enumerate(steps):
        while arrived < len(waiting) and waiting[arrived].arrival_s <= step.scheduled_s:
            scheduler.add(waiting[arrived])
            arrived += 1
        batch = scheduler.schedule()
        if not batch.requests:
            raise ValueError(f"recorded step {number} ran requests, the simulation has none: the two have parted")
        batches.append(batch_key(batch))
        scheduler.update(batch, executor.run(batch))
    return batches
