"""`power.twin` as compiled arithmetic: the same expressions on a row of numbers, bit for bit.

`twin_numbers` makes the row of a twin once; the constants below name its places. A step is given by its counts, all as
floats, and the clock by its fraction of the top clock.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from power.twin import Twin
from traces.compiled import compiled

Numbers = NDArray[np.float64]

(
    FLOPS_PER_S,
    FLOPS_PER_TOKEN,
    HEAD_FLOPS,
    FLOPS_PER_PAIR,
    KV_BYTES,
    BYTES_PER_S,
    WEIGHTS_S,
    PER_SEQUENCE_S,
    PER_PREFILL_S,
    TENSOR_PARALLEL_S,
    HOST_S,
    EXPONENT,
    BANDWIDTH_KNEE,
    VOLTAGE_KNEE,
    VOLTAGE_FLOOR,
    ACTIVE_W,
    COMPUTE_W,
    MEMORY_W,
    BOARD_IDLE_W,
    ACTIVE_IDLE_W,
    TOP_MHZ,
    TWIN_NUMBERS,
) = range(22)


def twin_numbers(twin: Twin) -> Numbers:
    """What the arithmetic needs of a twin, in the order of the constants above."""
    gpu, engine, shape, degree = twin.gpu, twin.engine, twin.shape, twin.tensor_parallel
    flops_per_s = gpu.peak_flops * gpu.compute_efficiency * engine.compute_scale * degree
    bytes_per_s = gpu.memory_bytes_per_s * gpu.memory_efficiency * engine.memory_scale * degree
    found = np.empty(TWIN_NUMBERS)
    found[FLOPS_PER_S] = flops_per_s
    found[FLOPS_PER_TOKEN] = shape.flops_per_token
    found[HEAD_FLOPS] = shape.head_flops
    found[FLOPS_PER_PAIR] = shape.attention_flops_per_pair
    found[KV_BYTES] = shape.kv_bytes_per_token
    found[BYTES_PER_S] = bytes_per_s
    found[WEIGHTS_S] = shape.streamed_bytes / bytes_per_s
    found[PER_SEQUENCE_S] = engine.per_sequence_s
    found[PER_PREFILL_S] = engine.per_prefill_s
    found[TENSOR_PARALLEL_S] = engine.tensor_parallel_s * shape.layers if degree > 1 else 0.0
    found[HOST_S] = engine.host_s + engine.host_layer_s * shape.layers
    found[EXPONENT] = gpu.overlap_exponent
    found[BANDWIDTH_KNEE] = gpu.bandwidth_knee
    found[VOLTAGE_KNEE] = gpu.voltage_knee
    found[VOLTAGE_FLOOR] = gpu.voltage_floor
    found[ACTIVE_W] = gpu.active_w
    found[COMPUTE_W] = gpu.compute_w
    found[MEMORY_W] = gpu.memory_w
    found[BOARD_IDLE_W] = gpu.idle_w
    found[ACTIVE_IDLE_W] = gpu.active_idle_w
    found[TOP_MHZ] = gpu.clock_max_mhz
    return found


@compiled
def smooth_max(a: float, b: float, exponent: float) -> float:
    if a <= 0.0 or b <= 0.0:
        return max(a, b)
    low, high = (a, b) if a < b else (b, a)
    return float(high * (1.0 + (low / high) ** exponent) ** (1.0 / exponent))


@compiled
def switching(twin: Numbers, fraction: float) -> float:
    """f V(f)^2, both over their values at the top clock."""
    knee, floor = twin[VOLTAGE_KNEE], twin[VOLTAGE_FLOOR]
    if fraction <= knee:
        ratio = floor
    elif knee >= 1.0:
        ratio = 1.0
    else:
        ratio = floor + (1.0 - floor) * (fraction - knee) / (1.0 - knee)
    return float(fraction * ratio**2)


@compiled
def predict_step(
    twin: Numbers,
    prompt_tokens: float,
    prompts: float,
    prompt_kv: float,
    prompt_pairs: float,
    sequences: float,
    cached: float,
    fraction: float,
) -> tuple[float, float, float, float, float]:
    """`Twin.predict` of a step: (seconds, W of one GPU, busy, compute, memory)."""
    tokens = prompt_tokens + sequences
    drawing = prompts + sequences
    flops_per_s, exponent = twin[FLOPS_PER_S], twin[EXPONENT]
    linear_compute_s = (tokens * twin[FLOPS_PER_TOKEN] + drawing * twin[HEAD_FLOPS]) / flops_per_s
    linear_memory_s = twin[WEIGHTS_S] if tokens > 0.0 else 0.0
    attention_compute_s = (prompt_pairs + cached) * twin[FLOPS_PER_PAIR] / flops_per_s
    attention_memory_s = (prompt_kv + cached) * twin[KV_BYTES] / twin[BYTES_PER_S]
    bandwidth = min(1.0, fraction / twin[BANDWIDTH_KNEE])
    linear_c, linear_m = linear_compute_s / fraction, linear_memory_s / bandwidth
    attention_c, attention_m = attention_compute_s / fraction, attention_memory_s / bandwidth
    working = smooth_max(linear_c, linear_m, exponent) + smooth_max(attention_c, attention_m, exponent)
    working += twin[PER_SEQUENCE_S] * drawing / fraction + (twin[PER_PREFILL_S] * prompts + twin[TENSOR_PARALLEL_S])
    duration = smooth_max(working, twin[HOST_S] if tokens > 0.0 else 0.0, exponent)
    idle_w = twin[BOARD_IDLE_W] + twin[ACTIVE_IDLE_W]
    if duration <= 0.0:
        return 0.0, idle_w, 0.0, 0.0, 0.0
    busy = working / duration
    compute = (linear_c + attention_c) / duration
    memory = (linear_memory_s + attention_memory_s) / duration
    dynamic = switching(twin, fraction) * (twin[ACTIVE_W] * busy + twin[COMPUTE_W] * compute) + twin[MEMORY_W] * memory
    return duration, idle_w + dynamic, busy, compute, memory
