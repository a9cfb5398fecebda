"""The twin, prepared: the same predictions as `power.twin`, compiled for millions of simulated steps."""

from __future__ import annotations

import numpy as np

from power.model_shape import ModelShape
from power.profile import EngineProfile, GpuProfile
from power.twin import StepPrediction, StepWork, Twin
from power.work import WorkModel
from traces.decode_arithmetic import (
    CLOCKED_S,
    DECODE_NUMBERS,
    FIXED_S,
    KV_COMPUTE_S,
    KV_MEMORY_S,
    LINEAR_COMPUTE_S,
    LINEAR_MEMORY_S,
    SEQUENCES,
    WAIT_S,
    WEIGHT,
    WEIGHT_KV,
)
from traces.twin_arithmetic import Numbers, predict_step, twin_numbers


class PreparedTwin(Twin):
    """A `Twin` whose `numbers` are laid out for compiled arithmetic. Predictions are bit-equal."""

    __slots__ = ("numbers",)
    numbers: Numbers

    def __init__(self, gpu: GpuProfile, engine: EngineProfile, shape: ModelShape, tensor_parallel: int = 1) -> None:
        Twin.__init__(self, gpu, engine, shape, tensor_parallel)
        object.__setattr__(self, "numbers", twin_numbers(self))

    @classmethod
    def of(cls, twin: Twin) -> PreparedTwin:
        return twin if isinstance(twin, cls) else cls(twin.gpu, twin.engine, twin.shape, twin.tensor_parallel)

    def predict(self, work: StepWork, clock_mhz: float) -> StepPrediction:
        return StepPrediction(
            *predict_step(
                self.numbers,
                float(work.prefill_tokens),
                float(work.prefill_sequences),
                float(work.prefill_kv_tokens),
                float(work.prefill_pairs),
                float(work.decode_sequences),
                float(work.decode_kv_tokens),
                clock_mhz / self.gpu.clock_max_mhz,
            )
        )


def decode_numbers(twin: Twin, work: WorkModel, sequences: int) -> Numbers:
    """Decode steps of a fixed number of sequences, laid out for `decode_arithmetic`: what the steps need without
    cached tokens, what each cached token adds, and the attribution weight of all requests (`power.work.WorkModel`)."""
    base = twin.demand(StepWork(decode_sequences=sequences))
    one = twin.demand(StepWork(decode_sequences=sequences, decode_kv_tokens=1))
    found = np.empty(DECODE_NUMBERS)
    found[LINEAR_COMPUTE_S] = base.linear_compute_s
    found[LINEAR_MEMORY_S] = base.linear_memory_s
    found[CLOCKED_S] = base.clocked_s
    found[FIXED_S] = base.fixed_s
    found[WAIT_S] = base.host_s
    found[KV_COMPUTE_S] = one.attention_compute_s
    found[KV_MEMORY_S] = one.attention_memory_s
    found[WEIGHT] = work.weights_cost + sequences * work.token_cost
    found[WEIGHT_KV] = work.kv_cost + work.pair_cost
    found[SEQUENCES] = sequences
    return found
