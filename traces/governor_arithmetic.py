"""`power.governors.prediction` and the search of `slo_slack`, compiled: the same choices, bit for bit.

An engine's view is given by its counts, all as floats, in the order of `engine_numbers`.
"""

from __future__ import annotations

import numpy as np

from power.governors import EngineView
from power.governors.prediction import CONVERGED, ITERATIONS, LONGEST_STEP_S, WORTH_RAISING
from traces.compiled import compiled
from traces.twin_arithmetic import ACTIVE_IDLE_W, BOARD_IDLE_W, TOP_MHZ, Numbers, predict_step

EngineNumbers = tuple[float, float, float, float, float, float, float, float]


def engine_numbers(engine: EngineView) -> EngineNumbers:
    return (
        float(engine.running),
        float(engine.kv_tokens),
        float(engine.waiting_tokens),
        float(engine.oldest_wait_s),
        float(engine.prompt_tokens_per_s),
        float(engine.prompt_p99_tokens),
        float(engine.max_step_tokens),
        float(engine.max_running),
    )


@compiled
def mean_step(
    twin: Numbers, engine: EngineNumbers, batch: float, step_s: float, fraction: float
) -> tuple[float, float]:
    """(seconds, W) of `prediction.step_of`: every sequence draws a token beside the prompts that arrive meanwhile."""
    running, kv_tokens, _, _, prompt_rate, long_prompt, max_tokens, _ = engine
    prompt = min(prompt_rate * step_s, max_tokens)
    sequences = max(1.0, np.rint(batch))
    cached = np.rint(sequences * kv_tokens / max(running, 1.0))
    if prompt < 1.0:
        found = predict_step(twin, 0.0, 0.0, 0.0, 0.0, sequences, cached, fraction)
    else:
        tokens = np.rint(prompt)
        prompts = np.rint(prompt / max(long_prompt / 2, 1.0))
        found = predict_step(twin, tokens, prompts, tokens, prompt * long_prompt / 4, sequences, cached, fraction)
    return found[0], found[1]


@compiled
def prefill_seconds(twin: Numbers, engine: EngineNumbers, tokens: float, chunk: float, fraction: float) -> float:
    """Time to compute `tokens` of prompts beside the running sequences, `chunk` for each step."""
    running, kv_tokens = engine[0], engine[1]
    cached = np.rint(running * (kv_tokens / max(running, 1.0)))
    whole = np.floor(tokens / chunk)
    rest = tokens - whole * chunk
    total = 0.0
    if whole > 0.0:
        total += whole * predict_step(twin, chunk, 1.0, chunk, chunk * (chunk / 2), running, cached, fraction)[0]
    if rest > 0.0:
        total += predict_step(twin, rest, 1.0, rest, rest * (rest / 2), running, cached, fraction)[0]
    return total


@compiled
def settle_batch(
    twin: Numbers, engine: EngineNumbers, fraction: float, asked_per_s: float, correction: float
) -> tuple[float, float]:
    """(batch, step s) at which tokens are drawn as fast as asked for; never below the present batch."""
    max_running = engine[7]
    running = max(engine[0], 1.0)
    step_s, batch = running / asked_per_s if asked_per_s > 0.0 else 0.01, running
    for _ in range(ITERATIONS):
        before = batch
        step_s = mean_step(twin, engine, batch, min(step_s, LONGEST_STEP_S), fraction)[0]
        batch = max(running, asked_per_s * step_s * correction)
        if batch > max_running or abs(batch - before) < CONVERGED * batch:
            break
    return batch, step_s


@compiled
def latencies_of(
    twin: Numbers, engine: EngineNumbers, fraction: float, batch: float, step_s: float, correction: float
) -> tuple[float, float, float]:
    """(TTFT of what waits, TTFT of a long prompt to come, TPOT) of a settled batch, s."""
    _, _, backlog, oldest_s, _, long_prompt, max_tokens, max_running = engine
    tpot_s = mean_step(twin, engine, min(batch, max_running), step_s, fraction)[0] * correction
    chunk = max(1.0, max_tokens - np.rint(batch))
    ttft_s = 0.0
    if backlog > 0.0:
        ttft_s = oldest_s + prefill_seconds(twin, engine, backlog, chunk, fraction) * correction
    fresh_s = tpot_s + prefill_seconds(twin, engine, long_prompt, chunk, fraction) * correction
    return ttft_s, fresh_s, tpot_s


@compiled
def energy_of(
    twin: Numbers,
    engine: EngineNumbers,
    fraction: float,
    batch: float,
    step_s: float,
    asked_per_s: float,
    correction: float,
) -> tuple[float, float]:
    """(J/token above idle, W) of a settled batch, smaller than the present one where the load asks for less."""
    running, max_running = max(engine[0], 1.0), engine[7]
    settled = min(batch, max_running)
    if batch == running and asked_per_s * step_s * correction < running:
        for _ in range(ITERATIONS):
            before, settled = settled, max(1.0, asked_per_s * step_s * correction)
            step_s = mean_step(twin, engine, settled, min(step_s, LONGEST_STEP_S), fraction)[0]
            if abs(settled - before) < CONVERGED * settled:
                break
    duration_s, power_w = mean_step(twin, engine, settled, step_s, fraction)
    return (power_w - (twin[BOARD_IDLE_W] + twin[ACTIVE_IDLE_W])) * duration_s / max(1.0, settled), power_w


@compiled
def forecast_clock(
    twin: Numbers, engine: EngineNumbers, clock_mhz: float, asked_per_s: float, correction: float
) -> tuple[float, float, float, float, float, bool]:
    """`prediction.forecast`: (TTFT s, of a prompt to come, TPOT s, J/token, W, whether the load is feasible)."""
    fraction = clock_mhz / twin[TOP_MHZ]
    batch, step_s = settle_batch(twin, engine, fraction, asked_per_s, correction)
    ttft_s, fresh_s, tpot_s = latencies_of(twin, engine, fraction, batch, step_s, correction)
    joules, power_w = energy_of(twin, engine, fraction, batch, step_s, asked_per_s, correction)
    return ttft_s, fresh_s, tpot_s, joules, power_w, batch <= engine[7]


@compiled
def keeps_limits(
    twin: Numbers,
    engine: EngineNumbers,
    clock_mhz: float,
    asked_per_s: float,
    correction: float,
    waiting_limit_s: float,
    ttft_limit_s: float,
    tpot_limit_s: float,
) -> bool:
    fraction = clock_mhz / twin[TOP_MHZ]
    batch, step_s = settle_batch(twin, engine, fraction, asked_per_s, correction)
    if batch > engine[7]:
        return False
    ttft_s, fresh_s, tpot_s = latencies_of(twin, engine, fraction, batch, step_s, correction)
    return ttft_s <= waiting_limit_s and fresh_s <= ttft_limit_s and tpot_s <= tpot_limit_s


@compiled
def joules_per_token(
    twin: Numbers, engine: EngineNumbers, clock_mhz: float, asked_per_s: float, correction: float
) -> float:
    fraction = clock_mhz / twin[TOP_MHZ]
    batch, step_s = settle_batch(twin, engine, fraction, asked_per_s, correction)
    return energy_of(twin, engine, fraction, batch, step_s, asked_per_s, correction)[0]


@compiled
def choose_clock(
    twin: Numbers,
    engine: EngineNumbers,
    clocks_mhz: Numbers,
    asked_per_s: float,
    correction: float,
    waiting_limit_s: float,
    ttft_limit_s: float,
    tpot_limit_s: float,
) -> int:
    """`SloSlackGovernor.choose`: the place of the clock in ascending `clocks_mhz`, -1 when none keeps the limits."""
    low, high = 0, len(clocks_mhz) - 1
    if not keeps_limits(
        twin, engine, clocks_mhz[high], asked_per_s, correction, waiting_limit_s, ttft_limit_s, tpot_limit_s
    ):
        return -1
    while low < high:
        middle = (low + high) // 2
        if keeps_limits(
            twin, engine, clocks_mhz[middle], asked_per_s, correction, waiting_limit_s, ttft_limit_s, tpot_limit_s
        ):
            high = middle
        else:
            low = middle + 1
    best = low
    best_j = joules_per_token(twin, engine, clocks_mhz[best], asked_per_s, correction)
    stride = max(1, len(clocks_mhz) // 40)
    for place in range(low + stride, len(clocks_mhz), stride):
        joules = joules_per_token(twin, engine, clocks_mhz[place], asked_per_s, correction)
        if joules >= best_j * WORTH_RAISING:
            break
        best, best_j = place, joules
    return best


@compiled
def expected_step_s(twin: Numbers, running: float, kv_tokens: float, prompt_tokens: float, clock_mhz: float) -> float:
    """`prediction.predicted_step_s` of a step with work: `prompt_tokens` whole, 0 for none."""
    cached = np.rint(running * (kv_tokens / max(running, 1.0)))
    prompts = 1.0 if prompt_tokens > 0.0 else 0.0
    pairs = prompt_tokens * (prompt_tokens / 2)
    fraction = clock_mhz / twin[TOP_MHZ]
    return predict_step(twin, prompt_tokens, prompts, prompt_tokens, pairs, running, cached, fraction)[0]
