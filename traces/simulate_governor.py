"""The governors that search with the twin, made quicker for simulation: the same choices, fewer predictions.

`slo_slack` finds the lowest clock that keeps the SLO by bisection over all clocks. Feasibility grows with the clock, so
a search that starts at the clock in force and widens from there ends at the same one; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from power.governors import EngineView, Observation, PhaseAwareGovernor, Slo, SloSlackGovernor
from power.governors.prediction import CONVERGED, ITERATIONS, LONGEST_STEP_S, Forecast, asked_tokens_per_s, step_of
from power.governors.stability import snap_up
from traces.twin_step import PreparedTwin


@dataclass(frozen=True, slots=True)
class QuickSloSlack(SloSlackGovernor):
    """`SloSlackGovernor` with the search begun at the present clock."""

    def choose(
        self, observation: Observation, engine: EngineView, slo: Slo, correction: float, caution: float = 1.0
    ) -> Forecast | None:
        floor = self.bounds.min_mhz or 0
        candidates = [clock for clock in observation.clocks_mhz if clock >= floor]
        if not candidates:
            return None
        twin = self.twin
        if not isinstance(twin, PreparedTwin):
            twin = PreparedTwin.of(twin)
        asked = asked_tokens_per_s(twin, engine, observation.current_mhz)
        share = self.margin / caution
        seen: dict[int, Forecast] = {}

        def look(index: int) -> Forecast:
            found = seen.get(index)
            if found is None:
                found = seen[index] = quick_forecast(twin, engine, candidates[index], asked, correction)
            return found

        def keeps(index: int) -> bool:
            found = look(index)
            fits = found.ttft_s <= share * slo.ttft_s and found.tpot_s <= share * slo.tpot_s
            return fits and found.feasible_load

        top = len(candidates) - 1
        start = candidates.index(snap_up(tuple(candidates), observation.current_mhz))
        lowest = lowest_true(keeps, start, top)
        if lowest is None:
            return None
        best = look(lowest)
        stride = max(1, len(candidates) // 40)
        for index in range(lowest + stride, len(candidates), stride):
            found = look(index)
            if found.joules_per_token > best.joules_per_token:
                break
            best = found
        return best


@dataclass(frozen=True, slots=True)
class QuickPhaseAware(PhaseAwareGovernor):
    """`PhaseAwareGovernor` whose decode clock is found by `QuickSloSlack`."""

    def decode_governor(self) -> SloSlackGovernor:
        return QuickSloSlack(self.twin, self.bounds, self.stability)


def quick_forecast(
    twin: PreparedTwin, engine: EngineView, clock_mhz: int, asked_per_s: float, correction: float
) -> Forecast:
    """`power.governors.prediction.forecast`, bit for bit, with the step times worked out in place."""
    fraction = clock_mhz / twin.gpu.clock_max_mhz
    running = float(max(engine.running, 1))
    context = engine.kv_tokens / max(engine.running, 1)
    half_prompt, quarter_prompt = max(engine.prompt_p99_tokens / 2, 1), engine.prompt_p99_tokens / 4
    step_s, batch = running / asked_per_s if asked_per_s > 0 else 0.01, running

    def step_time(sequences_now: float, before_s: float) -> float:
        prompt = min(engine.prompt_tokens_per_s * min(before_s, LONGEST_STEP_S), float(engine.max_step_tokens))
        sequences = max(1, round(sequences_now))
        cached = round(sequences * engine.kv_tokens / max(engine.running, 1))
        if prompt < 1.0:
            return twin.duration_s(0, 0, 0.0, sequences, cached, fraction)
        prompts, pairs = round(prompt / half_prompt), prompt * quarter_prompt
        return twin.duration_s(round(prompt), prompts, pairs, sequences, cached, fraction)

    for _ in range(ITERATIONS):
        before = batch
        step_s = step_time(batch, step_s)
        batch = max(running, asked_per_s * step_s * correction)
        if batch > engine.max_running or abs(batch - before) < CONVERGED * batch:
            break
    step = twin.predict(step_of(engine, min(batch, engine.max_running), step_s), clock_mhz)
    tpot = step.duration_s * correction
    settled = min(batch, engine.max_running)
    if batch == running and asked_per_s * step_s * correction < running:
        for _ in range(ITERATIONS):
            before, settled = settled, max(1.0, asked_per_s * step_s * correction)
            step_s = step_time(settled, step_s)
            if abs(settled - before) < CONVERGED * settled:
                break
        step = twin.predict(step_of(engine, settled, step_s), clock_mhz)
    chunk = max(1, engine.max_step_tokens - round(batch))
    decoding = engine.running
    cached = round(decoding * context) if decoding else 0

    def prefill_s(tokens: int) -> float:
        whole, rest = divmod(tokens, chunk)
        total = 0.0
        for count, size in ((whole, chunk), (1 if rest else 0, rest)):
            if count:
                total += count * twin.duration_s(size, 1, size * (size / 2), decoding, cached, fraction)
        return total

    backlog = engine.waiting_tokens
    waited = engine.oldest_wait_s if backlog else 0.0
    ttft = waited + prefill_s(backlog) * correction if backlog else 0.0
    fresh = tpot + prefill_s(backlog + engine.prompt_p99_tokens) * correction
    return Forecast(
        clock_mhz=clock_mhz,
        ttft_s=max(ttft, fresh),
        tpot_s=tpot,
        joules_per_token=step.energy_j / max(1.0, settled),
        power_w=step.power_w,
        feasible_load=batch <= engine.max_running,
    )


def lowest_true(holds: Callable[[int], bool], start: int, top: int) -> int | None:
    """The lowest index in `0..top` at which `holds`, which never turns false again above it; `None` if it never does.

    Looks near `start` first: each miss doubles the stride, then the bracket is bisected.
    """
    stride = 1
    if holds(start):
        high = start
        while high > 0:
            probe = max(0, high - stride)
            if not holds(probe):
                low = probe + 1
                break
            high, stride = probe, stride * 2
        else:
            return 0
    else:
        low = start + 1
        while True:
            if low > top:
                return None
            probe = min(top, low + stride - 1)
            if holds(probe):
                high = probe
                break
            low, stride = probe + 1, stride * 2
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low
