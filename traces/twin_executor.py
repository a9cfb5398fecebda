"""Executors of a simulation: the twin on a virtual clock, or the step times a real engine recorded."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from engine.batch import Batch, RequestWork, SampledTokens, StepResult
from engine.outcome import step_record
from power.twin import StepWork
from power.work import WorkModel
from traces.decode_arithmetic import predict_decode
from traces.simulate_board import VirtualGpu
from traces.twin_arithmetic import Numbers, predict_step
from traces.twin_step import decode_numbers

DRAWN_TOKEN = 1
_DRAWN = SampledTokens((DRAWN_TOKEN,))
_NOTHING = SampledTokens()
_NO_RESULT = StepResult((), 0.0, 0.0)


class StepEnergy(Struct, frozen=True, gc=False):
    """What the last step cost: joules of all GPUs, the idle power's part of them, and its work as a whole.

    `decoding`: requests that drew a token from a decode; `cached_read`: cached tokens they read, with those of a
    request whose last prompt tokens ran in the same step."""

    joules: float
    idle_j: float
    total: StepWork
    decoding: int
    cached_read: int


class TwinExecutor:
    """The engine's executor on `power.twin`: a step takes and draws what the twin predicts at the clock in force.

    Every request that samples draws the same token id, so generation ends at `max_tokens`; `last` tells the energy.
    """

    def __init__(self, gpu: VirtualGpu, work_model: WorkModel) -> None:
        self.gpu = gpu
        self.last: StepEnergy | None = None
        self._work_model = work_model
        self._prepared: dict[int, Numbers] = {}

    def decode(self, sequences: int) -> Numbers:
        """The twin, prepared for decode steps of so many requests."""
        prepared = self._prepared.get(sequences)
        if prepared is None:
            prepared = self._prepared[sequences] = decode_numbers(self.gpu.twin, self._work_model, sequences)
        return prepared

    def run(self, batch: Batch) -> StepResult:
        return self.run_beside(batch, 0, 0)

    def run_beside(self, batch: Batch, decodes: int, cached: int) -> StepResult:
        """`batch` in one step with so many requests that decode and read so many cached tokens."""
        gpu = self.gpu
        total, decoding, cached_read = work_of(batch, decodes, cached)
        clock_mhz = gpu.clock_mhz()
        if total.prefill_tokens:
            seconds, power_w, *_ = predict_step(
                gpu.numbers,
                float(total.prefill_tokens),
                float(total.prefill_sequences),
                float(total.prefill_kv_tokens),
                total.prefill_pairs,
                float(total.decode_sequences),
                float(total.decode_kv_tokens),
                clock_mhz / gpu.twin.gpu.clock_max_mhz,
            )
        else:
            numbers = self.decode(total.decode_sequences)
            seconds, power_w = predict_decode(gpu.numbers, numbers, float(total.decode_kv_tokens), clock_mhz)
        started_s = gpu.time_s
        joules = gpu.step(seconds, power_w, clock_mhz)
        self.last = StepEnergy(joules, gpu.idle_power_w * seconds * gpu.count, total, decoding, cached_read)
        return StepResult(drawn(batch), started_s, gpu.time_s)


def work_of(batch: Batch, decodes: int = 0, cached: int = 0) -> tuple[StepWork, int, int]:
    """`power.work.step_work` of a batch's shares and of `decodes` requests beside it that read `cached` tokens, with
    `decoding` and `cached_read` of `StepEnergy`, in one pass."""
    prompt_tokens = prompts = prompt_kv = cached_read = 0
    sequences = decoding = decodes
    pairs = 0.0
    for scheduled in batch.requests:
        start, tokens = scheduled.start, scheduled.num_tokens
        left, context = scheduled.request.prefill_end - start, start + tokens
        if left <= 0:
            sequences += tokens
            cached += context
            decoding += 1
            continue
        prefill = min(left, tokens)
        prompt_tokens += prefill
        prompts += 1
        prompt_kv += context
        pairs += prefill * max(context - prefill / 2, prefill / 2)
        if prefill < tokens:
            sequences += tokens - prefill
            decoding += 1
            cached_read += context
    return StepWork(prompt_tokens, prompts, prompt_kv, pairs, sequences, cached), decoding, cached_read + cached


def shares_of(batch: Batch) -> tuple[RequestWork, ...]:
    """Whose work the step does: as the engine records it."""
    return step_record(batch, _NO_RESULT).work


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
