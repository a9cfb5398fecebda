"""The digital twin: step time and power of a GPU that serves a decoder model, from the work of the step.

Pure functions of (work, SM clock). Roofline with a smooth maximum for the linear layers and for attention, one
after the other; power from how busy the SMs, their arithmetic and the memory are. Parameters and their sources:
`power/profiles`. Everything it yields is *simulated*.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from msgspec import Struct

from power.model_shape import ModelShape
from power.profile import EngineProfile, GpuProfile


class StepWork(Struct, frozen=True, gc=False):
    """What one step computes. `*_kv_tokens`: cached tokens read, summed over the sequences of that kind;
    `prefill_pairs`: query-key pairs of the prompts, summed."""

    prefill_tokens: int = 0
    prefill_sequences: int = 0
    prefill_kv_tokens: int = 0
    prefill_pairs: float = 0.0
    decode_sequences: int = 0
    decode_kv_tokens: int = 0

    @property
    def empty(self) -> bool:
        return self.prefill_tokens == 0 and self.decode_sequences == 0


def decode_work(sequences: int, context: float) -> StepWork:
    """A pure decode step: every sequence draws one token against `context` cached ones."""
    return StepWork(decode_sequences=sequences, decode_kv_tokens=round(sequences * context))


def prefill_work(tokens: int, sequences: int = 1, context: int = 0) -> StepWork:
    """A pure prefill step: `tokens` new tokens shared by `sequences` prompts, after `context` cached ones each."""
    each = tokens / max(sequences, 1)
    return StepWork(
        prefill_tokens=tokens,
        prefill_sequences=sequences,
        prefill_kv_tokens=round(tokens + context * sequences),
        prefill_pairs=sequences * each * (context + each / 2),
    )


def combine(works: Iterable[StepWork]) -> StepWork:
    """The work of several kinds in one step."""
    parts = list(works)
    return StepWork(
        prefill_tokens=sum(part.prefill_tokens for part in parts),
        prefill_sequences=sum(part.prefill_sequences for part in parts),
        prefill_kv_tokens=sum(part.prefill_kv_tokens for part in parts),
        prefill_pairs=sum(part.prefill_pairs for part in parts),
        decode_sequences=sum(part.decode_sequences for part in parts),
        decode_kv_tokens=sum(part.decode_kv_tokens for part in parts),
    )


class Demand(Struct, frozen=True, gc=False):
    """Seconds a step needs of each resource at the top clock, per GPU; `fixed_s` does not depend on the clock."""

    linear_compute_s: float
    linear_memory_s: float
    attention_compute_s: float
    attention_memory_s: float
    clocked_s: float
    fixed_s: float
    host_s: float


class StepPrediction(Struct, frozen=True, gc=False):
    """`power_w` is of one GPU while the step runs; utilisations are shares of `duration_s`."""

    duration_s: float
    power_w: float
    busy: float
    compute_utilisation: float
    memory_utilisation: float

    @property
    def energy_j(self) -> float:
        return self.duration_s * self.power_w


@dataclass(frozen=True, slots=True)
class Twin:
    """A GPU, an engine and a model put together; `tensor_parallel` GPUs work on each step."""

    gpu: GpuProfile
    engine: EngineProfile
    shape: ModelShape
    tensor_parallel: int = 1

    def __post_init__(self) -> None:
        if self.tensor_parallel < 1:
            raise ValueError(f"tensor_parallel must be at least 1, got {self.tensor_parallel}")

    def demand(self, work: StepWork) -> Demand:
        """Resource times of a step at the top clock; scale with the clock in `predict`."""
        gpu, shape, engine, degree = self.gpu, self.shape, self.engine, self.tensor_parallel
        flops_per_s = gpu.peak_flops * gpu.compute_efficiency * engine.compute_scale * degree
        bytes_per_s = gpu.memory_bytes_per_s * gpu.memory_efficiency * engine.memory_scale * degree
        tokens = work.prefill_tokens + work.decode_sequences
        sequences = work.prefill_sequences + work.decode_sequences
        pairs = work.prefill_pairs + work.decode_kv_tokens
        kv_tokens = work.prefill_kv_tokens + work.decode_kv_tokens
        return Demand(
            linear_compute_s=(tokens * shape.flops_per_token + sequences * shape.head_flops) / flops_per_s,
            linear_memory_s=shape.streamed_bytes / bytes_per_s if tokens else 0.0,
            attention_compute_s=pairs * shape.attention_flops_per_pair / flops_per_s,
            attention_memory_s=kv_tokens * shape.kv_bytes_per_token / bytes_per_s,
            clocked_s=engine.per_sequence_s * sequences,
            fixed_s=engine.per_prefill_s * work.prefill_sequences
            + (engine.tensor_parallel_s * shape.layers if degree > 1 else 0.0),
            host_s=engine.host_s + engine.host_layer_s * shape.layers if tokens else 0.0,
        )

    def predict(self, work: StepWork, clock_mhz: float) -> StepPrediction:
        """Time and power of a step at an SM clock, without regard to the power limit."""
        return self.predict_demand(self.demand(work), clock_mhz / self.gpu.clock_max_mhz)

    def predict_demand(self, demand: Demand, fraction: float) -> StepPrediction:
        """As `predict`, from a prepared demand and the clock as a fraction of the top clock."""
        bandwidth = min(1.0, fraction / self.gpu.bandwidth_knee)
        linear_c, linear_m = demand.linear_compute_s / fraction, demand.linear_memory_s / bandwidth
        attention_c, attention_m = demand.attention_compute_s / fraction, demand.attention_memory_s / bandwidth
        exponent = self.gpu.overlap_exponent
        working = smooth_max(linear_c, linear_m, exponent) + smooth_max(attention_c, attention_m, exponent)
        working += demand.clocked_s / fraction + demand.fixed_s
        duration = smooth_max(working, demand.host_s, exponent)
        if duration <= 0.0:
            return StepPrediction(0.0, self.idle_power_w(active=True), 0.0, 0.0, 0.0)
        busy = working / duration
        compute = (linear_c + attention_c) / duration
        memory = (demand.linear_memory_s + demand.attention_memory_s) / duration
        return StepPrediction(duration, self.power_w(fraction, busy, compute, memory), busy, compute, memory)

    def power_w(self, fraction: float, busy: float, compute: float, memory: float) -> float:
        """Board power at a clock and utilisations (section 5.4 of the profile's model; see `GpuProfile`)."""
        gpu = self.gpu
        switching = fraction * voltage_ratio(fraction, gpu.voltage_knee, gpu.voltage_floor) ** 2
        dynamic = switching * (gpu.active_w * busy + gpu.compute_w * compute) + gpu.memory_w * memory
        return gpu.idle_w + gpu.active_idle_w + dynamic

    def idle_power_w(self, *, active: bool) -> float:
        """Deep idle, or idle with a live context and clocks up."""
        return self.gpu.idle_w + (self.gpu.active_idle_w if active else 0.0)

    def capped_clock(self, works: Iterable[tuple[float, StepWork]], limit_w: float, clock_mhz: float) -> float:
        """The clock (MHz, not above `clock_mhz`) at which a mix of steps, given as (weight, work), keeps its mean
        power within `limit_w`, as the firmware's slow power-cap loop would settle."""
        demands = [(weight, self.demand(work)) for weight, work in works]
        target, top = limit_w * self.gpu.cap_margin, self.gpu.clock_max_mhz

        def mean_power(clock: float) -> float:
            energy = time = 0.0
            for weight, demand in demands:
                step = self.predict_demand(demand, clock / top)
                energy += weight * step.energy_j
                time += weight * step.duration_s
            return energy / time if time else self.idle_power_w(active=True)

        low, high = float(self.gpu.clock_min_mhz), float(clock_mhz)
        if mean_power(high) <= target:
            return high
        if mean_power(low) >= target:
            return low
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (middle, high) if mean_power(middle) <= target else (low, middle)
        return low

    def stretch(self, work: StepWork, clock_mhz: float) -> float:
        """How many times longer a step takes at `clock_mhz` than at the top clock; 1.0 for no work."""
        demand = self.demand(work)
        fastest = self.predict_demand(demand, 1.0).duration_s
        slowed = self.predict_demand(demand, clock_mhz / self.gpu.clock_max_mhz).duration_s
        return slowed / fastest if fastest > 0 else 1.0


def smooth_max(a: float, b: float, exponent: float) -> float:
    """`(a^p + b^p)^(1/p)`: the slower of two overlapping resources, with a soft corner."""
    if a <= 0.0 or b <= 0.0:
        return max(a, b)
    low, high = (a, b) if a < b else (b, a)
    return float(high * (1.0 + (low / high) ** exponent) ** (1.0 / exponent))


def voltage_ratio(fraction: float, knee: float, floor: float) -> float:
    """V(f) / V(f_max): flat at `floor` up to `knee`, then linear to 1."""
    if fraction <= knee or knee >= 1.0:
        return floor if fraction <= knee else 1.0
    return floor + (1.0 - floor) * (fraction - knee) / (1.0 - knee)


@dataclass(frozen=True, slots=True)
class SteadyState:
    """A server held at a constant batch: means over its steps."""

    power_w: float
    joules_per_token: float
    median_itl_s: float
    tokens_per_s: float
    clock_mhz: float


def steady_state(
    twin: Twin,
    batch: int,
    prompt_tokens: int,
    output_tokens: float,
    context: float,
    *,
    clock_mhz: float | None = None,
    limit_w: float | None = None,
) -> SteadyState:
    """`batch` running sequences, each replaced when it has drawn its `output_tokens`: prompts join decode steps as
    a Poisson process of `batch / output_tokens` for each step. J/token counts output tokens over all GPUs."""
    gpu = twin.gpu
    rate = batch / output_tokens
    decode = decode_work(batch, context)
    mix: list[tuple[float, StepWork]] = []
    median: StepWork | None = None
    cumulative = 0.0
    for count in range(int(rate + 8 * math.sqrt(rate) + 8)):
        weight = math.exp(count * math.log(rate) - rate - math.lgamma(count + 1))
        work = combine([decode, prefill_work(prompt_tokens * count, count)]) if count else decode
        mix.append((weight, work))
        cumulative += weight
        if median is None and cumulative >= 0.5:
            median = work
    assert median is not None
    top = float(gpu.clock_max_mhz if clock_mhz is None else clock_mhz)
    clock = twin.capped_clock(mix, gpu.limit_default_w if limit_w is None else limit_w, top)
    steps = [(weight, twin.predict(work, clock)) for weight, work in mix]
    time = sum(weight * step.duration_s for weight, step in steps)
    energy = sum(weight * step.energy_j for weight, step in steps)
    total = sum(weight for weight, _ in steps)
    return SteadyState(
        power_w=energy / time,
        joules_per_token=energy / total * twin.tensor_parallel / batch,
        median_itl_s=twin.predict(median, clock).duration_s,
        tokens_per_s=batch * total / time,
        clock_mhz=clock,
    )
