"""The twin, prepared: the same predictions as `power.twin`, made fast enough for millions of simulated steps."""

from __future__ import annotations

from power.model_shape import ModelShape
from power.profile import EngineProfile, GpuProfile
from power.twin import Demand, StepPrediction, StepWork, Twin, smooth_max, voltage_ratio
from power.work import WorkModel


class PreparedTwin(Twin):
    """A `Twin` that works out once what depends on GPU, engine and shape alone. Predictions are bit-equal."""

    __slots__ = (
        "_flops_per_s",
        "_head",
        "_kv",
        "_linear_memory_s",
        "_per_pair",
        "_per_token",
        "_switching",
        "_tp_s",
        "_wait_s",
    )
    _flops_per_s: float
    _head: float
    _kv: tuple[float, float]
    _linear_memory_s: float
    _per_pair: float
    _per_token: float
    _switching: dict[float, float]
    _tp_s: float
    _wait_s: float

    def __init__(self, gpu: GpuProfile, engine: EngineProfile, shape: ModelShape, tensor_parallel: int = 1) -> None:
        Twin.__init__(self, gpu, engine, shape, tensor_parallel)
        flops_per_s = gpu.peak_flops * gpu.compute_efficiency * engine.compute_scale * tensor_parallel
        bytes_per_s = gpu.memory_bytes_per_s * gpu.memory_efficiency * engine.memory_scale * tensor_parallel
        prepared: dict[str, object] = {
            "_switching": {},
            "_flops_per_s": flops_per_s,
            "_per_token": shape.flops_per_token,
            "_head": shape.head_flops,
            "_per_pair": shape.attention_flops_per_pair,
            "_kv": (shape.kv_bytes_per_token, bytes_per_s),
            "_linear_memory_s": shape.streamed_bytes / bytes_per_s,
            "_tp_s": engine.tensor_parallel_s * shape.layers if tensor_parallel > 1 else 0.0,
            "_wait_s": engine.host_s + engine.host_layer_s * shape.layers,
        }
        for name, value in prepared.items():
            object.__setattr__(self, name, value)

    @classmethod
    def of(cls, twin: Twin) -> PreparedTwin:
        return cls(twin.gpu, twin.engine, twin.shape, twin.tensor_parallel)

    def demand(self, work: StepWork) -> Demand:
        tokens = work.prefill_tokens + work.decode_sequences
        sequences = work.prefill_sequences + work.decode_sequences
        pairs = work.prefill_pairs + work.decode_kv_tokens
        kv_tokens = work.prefill_kv_tokens + work.decode_kv_tokens
        kv_bytes, bytes_per_s = self._kv
        flops_per_s = self._flops_per_s
        return Demand(
            (tokens * self._per_token + sequences * self._head) / flops_per_s,
            self._linear_memory_s if tokens else 0.0,
            pairs * self._per_pair / flops_per_s,
            kv_tokens * kv_bytes / bytes_per_s,
            self.engine.per_sequence_s * sequences,
            self.engine.per_prefill_s * work.prefill_sequences + self._tp_s,
            self._wait_s if tokens else 0.0,
        )

    def duration_s(
        self, prompt_tokens: int, prompts: int, prompt_pairs: float, sequences: int, cached: int, fraction: float
    ) -> float:
        """`predict(...).duration_s` of a step with at least one token, without the values in between. The prompts have
        no cached tokens before them."""
        gpu, engine, flops_per_s = self.gpu, self.engine, self._flops_per_s
        exponent, knee = gpu.overlap_exponent, gpu.bandwidth_knee
        bandwidth = fraction / knee if fraction < knee else 1.0
        tokens, drawing = prompt_tokens + sequences, prompts + sequences
        kv_bytes, bytes_per_s = self._kv
        linear_c = (tokens * self._per_token + drawing * self._head) / flops_per_s / fraction
        linear_m = self._linear_memory_s / bandwidth
        low, high = (linear_c, linear_m) if linear_c < linear_m else (linear_m, linear_c)
        working: float = high * (1.0 + (low / high) ** exponent) ** (1.0 / exponent)
        attention_c = (prompt_pairs + cached) * self._per_pair / flops_per_s / fraction
        attention_m = (prompt_tokens + cached) * kv_bytes / bytes_per_s / bandwidth
        if attention_c > 0.0 and attention_m > 0.0:
            low, high = (attention_c, attention_m) if attention_c < attention_m else (attention_m, attention_c)
            working += high * (1.0 + (low / high) ** exponent) ** (1.0 / exponent)
        else:
            working += max(attention_c, attention_m)
        working += engine.per_sequence_s * drawing / fraction + (engine.per_prefill_s * prompts + self._tp_s)
        host = self._wait_s
        if host <= 0.0:
            return working
        low, high = (working, host) if working < host else (host, working)
        return float(high * (1.0 + (low / high) ** exponent) ** (1.0 / exponent))

    def predict_demand(self, demand: Demand, fraction: float) -> StepPrediction:
        gpu = self.gpu
        exponent, knee = gpu.overlap_exponent, gpu.bandwidth_knee
        bandwidth = fraction / knee if fraction < knee else 1.0
        linear_c, linear_m = demand.linear_compute_s / fraction, demand.linear_memory_s / bandwidth
        attention_c, attention_m = demand.attention_compute_s / fraction, demand.attention_memory_s / bandwidth
        working = smooth_max(linear_c, linear_m, exponent) + smooth_max(attention_c, attention_m, exponent)
        working += demand.clocked_s / fraction + demand.fixed_s
        duration = smooth_max(working, demand.host_s, exponent)
        if duration <= 0.0:
            return StepPrediction(0.0, self.idle_power_w(active=True), 0.0, 0.0, 0.0)
        busy = working / duration
        compute = (linear_c + attention_c) / duration
        memory = (demand.linear_memory_s + demand.attention_memory_s) / duration
        switching = self._switching.get(fraction)
        if switching is None:
            ratio = voltage_ratio(fraction, gpu.voltage_knee, gpu.voltage_floor)
            switching = self._switching[fraction] = fraction * ratio**2
        dynamic = switching * (gpu.active_w * busy + gpu.compute_w * compute) + gpu.memory_w * memory
        return StepPrediction(duration, gpu.idle_w + gpu.active_idle_w + dynamic, busy, compute, memory)


class PreparedDecode:
    """A decode step of a fixed number of sequences: each further step costs a few multiplications.

    Equals `Twin.predict` up to rounding: only the cached tokens change, and all depends on them linearly up to the
    last smooth maximum with the host's time.
    """

    __slots__ = (
        "_base",
        "_base_energy_j",
        "_clock_mhz",
        "_exponent",
        "_host_s",
        "_idle_w",
        "_kv_energy_j",
        "_kv_s",
        "_per_kv",
        "_twin",
        "_weight",
        "_weight_kv",
        "_working_s",
        "sequences",
    )

    def __init__(self, twin: Twin, work: WorkModel, sequences: int) -> None:
        self.sequences = sequences
        self._twin = twin
        self._base = twin.demand(StepWork(decode_sequences=sequences))
        one = twin.demand(StepWork(decode_sequences=sequences, decode_kv_tokens=1))
        self._per_kv = (one.attention_compute_s, one.attention_memory_s)
        self._exponent = twin.gpu.overlap_exponent
        self._host_s = self._base.host_s
        self._idle_w = twin.gpu.idle_w + twin.gpu.active_idle_w
        self._weight = work.weights_cost + sequences * work.token_cost
        self._weight_kv = work.kv_cost + work.pair_cost
        self._clock_mhz = -1.0
        self._working_s = self._kv_s = self._base_energy_j = self._kv_energy_j = 0.0

    def weight(self, kv_tokens: int) -> float:
        """Sum of the attribution weights of a step's requests (`power.work.WorkModel`)."""
        return self._weight + kv_tokens * self._weight_kv

    def predict(self, kv_tokens: int, clock_mhz: float) -> tuple[float, float]:
        """(seconds, W of one GPU) of a step that reads `kv_tokens` cached tokens."""
        if clock_mhz != self._clock_mhz:
            self._set_clock(clock_mhz)
        working = self._working_s + kv_tokens * self._kv_s
        host, exponent = self._host_s, self._exponent
        low, high = (host, working) if host < working else (working, host)
        duration = high * (1.0 + (low / high) ** exponent) ** (1.0 / exponent) if low > 0.0 else high
        return duration, self._idle_w + (self._base_energy_j + kv_tokens * self._kv_energy_j) / duration

    def _set_clock(self, clock_mhz: float) -> None:
        gpu, base = self._twin.gpu, self._base
        compute_s, memory_s = self._per_kv
        fraction = clock_mhz / gpu.clock_max_mhz
        bandwidth = min(1.0, fraction / gpu.bandwidth_knee)
        exponent = self._exponent
        linear_c = base.linear_compute_s / fraction
        linear_s = smooth_max(linear_c, base.linear_memory_s / bandwidth, exponent)
        self._working_s = linear_s + base.clocked_s / fraction + base.fixed_s
        self._kv_s = smooth_max(compute_s / fraction, memory_s / bandwidth, exponent)
        switching = fraction * voltage_ratio(fraction, gpu.voltage_knee, gpu.voltage_floor) ** 2
        active_w, compute_w = switching * gpu.active_w, switching * gpu.compute_w
        self._base_energy_j = active_w * self._working_s + compute_w * linear_c + gpu.memory_w * base.linear_memory_s
        self._kv_energy_j = active_w * self._kv_s + compute_w * compute_s / fraction + gpu.memory_w * memory_s
        self._clock_mhz = clock_mhz
