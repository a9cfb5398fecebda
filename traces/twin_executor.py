"""Executors of a simulation: the twin on a virtual clock, or the step times a real engine recorded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from engine.batch import Batch, RequestWork, SampledTokens, StepResult
from engine.outcome import step_record
from power.twin import StepWork
from power.work import WorkModel, step_work
from traces.simulate_board import VirtualGpu
from traces.twin_step import PreparedDecode

DRAWN_TOKEN = 1
_DRAWN = SampledTokens((DRAWN_TOKEN,))
_NOTHING = SampledTokens()
_NO_RESULT = StepResult((), 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class StepEnergy:
    """What the last step cost: joules of all GPUs, the idle power's part of them, and whose work it was."""

    joules: float
    idle_j: float
    work: tuple[RequestWork, ...]
    total: StepWork


class TwinExecutor:
    """The engine's executor on `power.twin`: a step takes and draws what the twin predicts at the clock in force.

    Every request that samples draws the same token id, so generation ends at `max_tokens`; `last` tells the energy.
    """

    def __init__(self, gpu: VirtualGpu, work_model: WorkModel) -> None:
        self.gpu = gpu
        self.last: StepEnergy | None = None
        self._work_model = work_model
        self._prepared: dict[int, PreparedDecode] = {}

    def decode(self, sequences: int) -> PreparedDecode:
        """The twin, prepared for decode steps of so many requests."""
        prepared = self._prepared.get(sequences)
        if prepared is None:
            prepared = self._prepared[sequences] = PreparedDecode(self.gpu.twin, self._work_model, sequences)
        return prepared

    def run(self, batch: Batch) -> StepResult:
        gpu = self.gpu
        work = step_record(batch, _NO_RESULT).work
        total = step_work(work)
        clock_mhz = gpu.clock_mhz()
        if total.prefill_tokens:
            step = gpu.twin.predict(total, clock_mhz)
            seconds, power_w = step.duration_s, step.power_w
        else:
            seconds, power_w = self.decode(total.decode_sequences).predict(total.decode_kv_tokens, clock_mhz)
        started_s = gpu.time_s
        joules = gpu.step(seconds, power_w, clock_mhz)
        self.last = StepEnergy(joules, gpu.idle_power_w * seconds * gpu.count, work, total)
        return StepResult(drawn(batch), started_s, gpu.time_s)


class RecordedExecutor:
    """Steps that take as long as recorded (`started_s`, `ended_s` of each, in order), for replaying a real run.

    Raises `ValueError` when the simulation needs more steps than were recorded: the two have parted.
    """

    def __init__(self, stamps: Iterator[tuple[float, float]]) -> None:
        self._stamps = stamps

    def run(self, batch: Batch) -> StepResult:
        stamp = next(self._stamps, None)
        if stamp is None:
            raise ValueError("the recording has no step left: the simulated batches differ from the recorded ones")
        return StepResult(drawn(batch), *stamp)


def drawn(batch: Batch) -> tuple[SampledTokens, ...]:
    """One token for each request whose last known token is in the batch."""
    return tuple(_DRAWN if scheduled.samples else _NOTHING for scheduled in batch.requests)
