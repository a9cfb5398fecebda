"""What the twin says of a clock: latency and J/token for the engine's present load.

Arrivals do not slow down with the clock, so at a lower clock more sequences run at once (Little's law): batch and
step time are iterated until the batch draws tokens as fast as the load asks for them. For latency the batch is never
taken below the present one, which needs time to drain; for energy it may be smaller: a batch that is held up makes a
higher clock look cheap, by tokens that nobody asks for.
"""

from __future__ import annotations

from msgspec import Struct

from power.governors.base import EngineView
from power.twin import Demand, StepWork, Twin, combine, decode_work, prefill_work

ITERATIONS = 8
CONVERGED = 0.01
LONGEST_STEP_S = 1.0
WORTH_RAISING = 0.99
"""A higher clock must bring J/token below this share; below the voltage's knee they are nearly flat."""


class Forecast(Struct, frozen=True, gc=False):
    """Predicted for one clock: latency with the present batch, energy and power with the one the load settles at.

    `ttft_s`: of the requests that wait now, 0 without any; `fresh_s`: of a long prompt that comes next.
    `joules_per_token`: above idle power, which is paid at any clock. `feasible_load` is false when the batch would
    outgrow the engine's limit.
    """

    clock_mhz: int
    ttft_s: float
    fresh_s: float
    tpot_s: float
    joules_per_token: float
    power_w: float
    feasible_load: bool


def step_of(engine: EngineView, running: float, step_s: float) -> StepWork:
    """A mean step: every running sequence draws a token, and the prompts that arrive meanwhile are computed."""
    prompt = min(engine.prompt_tokens_per_s * step_s, float(engine.max_step_tokens))
    sequences = max(1, round(running))
    cached = round(sequences * engine.kv_tokens / max(engine.running, 1))
    if prompt < 1.0:
        return StepWork(decode_sequences=sequences, decode_kv_tokens=cached)
    prompts = round(prompt / max(engine.prompt_p99_tokens / 2, 1))
    pairs = prompt * engine.prompt_p99_tokens / 4
    return StepWork(round(prompt), prompts, round(prompt), pairs, sequences, cached)


def asked_tokens_per_s(twin: Twin, engine: EngineView, now_mhz: int) -> float:
    """Output tokens/s the load asks for: as observed, else what is drawn now at `now_mhz`."""
    if engine.output_tokens_per_s is not None:
        return engine.output_tokens_per_s
    running = float(max(engine.running, 1))
    return running / _steady_step(twin, engine, running, now_mhz)


def forecast(twin: Twin, engine: EngineView, clock_mhz: int, asked_per_s: float, correction: float) -> Forecast:
    """Latency at `clock_mhz` for a load of `asked_per_s` output tokens/s; `correction` is measured over predicted
    step time."""
    running = float(max(engine.running, 1))
    step_s, batch = running / asked_per_s if asked_per_s > 0 else 0.01, running
    for _ in range(ITERATIONS):
        before = batch
        step_s = _predict_s(twin, twin.demand(step_of(engine, batch, min(step_s, LONGEST_STEP_S))), clock_mhz)
        batch = max(running, asked_per_s * step_s * correction)
        if batch > engine.max_running or abs(batch - before) < CONVERGED * batch:
            break
    step = twin.predict(step_of(engine, min(batch, engine.max_running), step_s), clock_mhz)
    tpot = step.duration_s * correction
    settled = min(batch, engine.max_running)
    if batch == running and asked_per_s * step_s * correction < running:
        for _ in range(ITERATIONS):
            before, settled = settled, max(1.0, asked_per_s * step_s * correction)
            step_s = _predict_s(twin, twin.demand(step_of(engine, settled, min(step_s, LONGEST_STEP_S))), clock_mhz)
            if abs(settled - before) < CONVERGED * settled:
                break
        step = twin.predict(step_of(engine, settled, step_s), clock_mhz)
    chunk = max(1, engine.max_step_tokens - round(batch))
    backlog = engine.waiting_tokens
    waited = engine.oldest_wait_s if engine.waiting_tokens else 0.0
    ttft = waited + _prefill_s(twin, engine, backlog, chunk, clock_mhz) * correction if backlog else 0.0
    fresh = tpot + _prefill_s(twin, engine, engine.prompt_p99_tokens, chunk, clock_mhz) * correction
    idle_w = twin.idle_power_w(active=True)
    return Forecast(
        clock_mhz=clock_mhz,
        ttft_s=ttft,
        fresh_s=fresh,
        tpot_s=tpot,
        joules_per_token=(step.power_w - idle_w) * step.duration_s / max(1.0, settled),
        power_w=step.power_w,
        feasible_load=batch <= engine.max_running,
    )


def predicted_step_s(twin: Twin, engine: EngineView, clock_mhz: float) -> float:
    """The step the twin expects now, to be compared with the measured one."""
    context = engine.kv_tokens / max(engine.running, 1)
    parts = [decode_work(engine.running, context)] if engine.running else []
    if engine.step_tokens >= 1.0:
        parts.append(prefill_work(round(engine.step_tokens), 1))
    return twin.predict(combine(parts), clock_mhz).duration_s


def _steady_step(twin: Twin, engine: EngineView, running: float, clock_mhz: int) -> float:
    step_s = 0.01
    for _ in range(ITERATIONS):
        step_s = _predict_s(twin, twin.demand(step_of(engine, running, step_s)), clock_mhz)
    return step_s


def _prefill_s(twin: Twin, engine: EngineView, tokens: int, chunk: int, clock_mhz: int) -> float:
    """Time to compute `tokens` of prompts beside the running sequences, `chunk` for each step."""
    context = engine.kv_tokens / max(engine.running, 1)
    decode = [decode_work(engine.running, context)] if engine.running else []
    whole, rest = divmod(tokens, chunk)
    total = 0.0
    for count, size in ((whole, chunk), (1 if rest else 0, rest)):
        if count:
            step = twin.demand(combine([*decode, prefill_work(size, 1)]))
            total += count * _predict_s(twin, step, clock_mhz)
    return total


def _predict_s(twin: Twin, demand: Demand, clock_mhz: int) -> float:
    return twin.predict_demand(demand, clock_mhz / twin.gpu.clock_max_mhz).duration_s
