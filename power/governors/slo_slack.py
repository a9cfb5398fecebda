"""`slo_slack`: the clock with the least energy that the twin expects to keep TTFT and TPOT within the SLO.

The twin is corrected online by measured step times. Anything that makes the prediction doubtful gives the
driver's default: no SLO, a correction far from 1, a request that waits too long, an SLO lost in spite of all caution.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from msgspec.structs import replace

from power.governors.base import Decision, EngineView, Memory, Observation, Phase, Setpoint, Slo
from power.governors.prediction import WORTH_RAISING, Forecast, asked_tokens_per_s, forecast, predicted_step_s
from power.governors.stability import Bounds, Stability, snap_down, unsure
from power.twin import Twin

SETTLE_S = 1.2
"""After a switch the measured mean still holds steps of the old clock: nothing is learnt from it."""


@dataclass(frozen=True, slots=True)
class SloSlackGovernor:
    """`margin`: share of the SLO a prediction may use, `waiting_margin` for requests that wait already, whose work is
    known; `headroom`: growth of the load to be ready for, `leave_headroom` while at the driver's default (near
    saturation nothing is given away).

    Measured latency above a share `guard` of the SLO is a breach: caution, which narrows both margins, rises by `alarm`
    (twice that above a share `lost`), up to `max_caution`, and the clock with it. Below a share `near` it fades, by up
    to `forgetting` with each decision. The driver's default reigns for `guard_s` when a request waits too long, or
    when the SLO is lost in spite of all caution. Percentiles look back 30 s and so report a cured breach for long:
    until `deaf_s` have passed only one that is worse by `worse` is heard; waiting requests always are.

    `learning`: weight of a new step-time ratio; `trusted`: corrections outside are not believed; `prompt_forgetting`:
    how fast a long prompt is forgotten, with each decision."""

    twin: Twin
    bounds: Bounds = field(default_factory=Bounds)
    stability: Stability = field(default_factory=Stability)
    margin: float = 0.6
    waiting_margin: float = 0.8
    guard: float = 0.97
    lost: float = 1.1
    guard_s: float = 5.0
    deaf_s: float = 30.0
    worse: float = 1.02
    near: float = 0.85
    alarm: float = 1.07
    headroom: float = 1.08
    leave_headroom: float = 1.2
    learning: float = 0.2
    forgetting: float = 0.0016
    prompt_forgetting: float = 0.0005
    max_caution: float = 2.0
    trusted: tuple[float, float] = (0.3, 3.0)
    name: str = "slo_slack"

    def decide(self, observation: Observation) -> Decision:
        engine, slo, memory = observation.engine, observation.slo, observation.memory
        if slo is None or not observation.clocks_mhz:
            missing = "no SLO" if slo is None else "no supported clocks"
            return unsure(observation, memory, missing, self.bounds, self.stability)
        if engine is None and memory.long_prompt is not None:
            return unsure(observation, memory, "no engine view", self.bounds, self.stability)
        if engine is None:
            wanted = Setpoint(self.ready_mhz(observation.clocks_mhz))
            return self.at_rest.settle(observation, wanted, memory, "no request yet", self.bounds)
        now = observation.time_s
        memory = self.listened(now, engine, slo, self.corrected(observation, engine, memory))
        low, high = self.trusted
        if not low <= memory.step_correction <= high:
            reason = f"measured steps are {memory.step_correction:.2f} times the predicted"
            return unsure(observation, memory, reason, self.bounds, self.stability)
        if now < memory.guard_until_s:
            reason = waits_too_long(engine, slo, self.guard) or worst_latency(engine, slo)[1]
            return unsure(observation, memory, reason, self.bounds, self.stability)
        engine, memory = self.with_load(engine, memory)
        engine = self.with_headroom(engine, at_default=observation.current.sm_clock_mhz is None)
        chosen = self.choose(observation, engine, slo, memory.step_correction, memory.caution)
        if chosen is None:
            return unsure(observation, memory, "no clock keeps the SLO", self.bounds, self.stability)
        ttft_s = max(chosen.ttft_s, chosen.fresh_s)
        reason = f"predicted TTFT {ttft_s * 1e3:.0f} ms, TPOT {chosen.tpot_s * 1e3:.1f} ms"
        asked = asked_tokens_per_s(self.twin, engine, observation.current_mhz)
        present = self.forecast(engine, observation.current_mhz, asked, memory.step_correction)
        saving_w = present.power_w - chosen.power_w
        stability = self.at_rest if engine.phase is Phase.IDLE else self.stability
        return stability.settle(observation, Setpoint(chosen.clock_mhz), memory, reason, self.bounds, saving_w)

    @property
    def at_rest(self) -> Stability:
        """While nothing runs a lowering can hurt nobody and need not wait."""
        return dataclasses.replace(self.stability, lower_after_s=0.0, max_lower_mhz=self.twin.gpu.clock_max_mhz)

    def ready_mhz(self, clocks_mhz: tuple[int, ...]) -> int:
        """Where the first request is awaited: the fastest clock at the lowest voltage. A lower one saves only by larger
        batches, of which nothing is known yet."""
        gpu = self.twin.gpu
        return snap_down(clocks_mhz, gpu.voltage_knee * gpu.clock_max_mhz)

    def listened(self, now_s: float, engine: EngineView, slo: Slo, memory: Memory) -> Memory:
        """What the measured latencies teach."""
        waits = waits_too_long(engine, slo, self.guard) is not None
        worst, _ = worst_latency(engine, slo)
        if memory.heard and now_s >= memory.deaf_until_s:
            memory = replace(memory, heard=0.0)
        fresh = worst > self.guard and worst > memory.heard * self.worse
        if fresh:
            rise = self.alarm**2 if worst > self.lost else self.alarm
            caution = min(self.max_caution, memory.caution * rise)
            memory = replace(memory, caution=caution, heard=worst, deaf_until_s=now_s + self.deaf_s)
        elif memory.caution > 1.0 and 0.0 < worst < self.near:
            fading = self.forgetting * (1.0 - worst / self.near)
            memory = replace(memory, caution=max(1.0, memory.caution * (1.0 - fading)))
        helpless = fresh and worst > self.lost and memory.caution >= self.max_caution
        if (waits or helpless) and now_s >= memory.guard_until_s:
            memory = replace(memory, guard_until_s=now_s + self.guard_s)
        return memory

    def with_load(self, engine: EngineView, memory: Memory) -> tuple[EngineView, Memory]:
        """The load, with what was learnt before a gap in the traffic where the recent past says nothing: how long
        prompts may be, and how much output a prompt token asks for."""
        prompts, output, longest = engine.prompt_tokens_per_s, engine.output_tokens_per_s, memory.long_prompt
        if prompts > 0.0:
            longest = max(float(engine.prompt_p99_tokens), (longest or 0.0) * (1.0 - self.prompt_forgetting))
            share = output / prompts if output is not None else memory.output_share
            memory = replace(memory, long_prompt=longest, output_share=share)
        if longest is not None:
            engine = replace(engine, prompt_p99_tokens=round(longest))
        if output is None and memory.output_share is not None:
            engine = replace(engine, output_tokens_per_s=prompts * memory.output_share)
        return engine, memory

    def with_headroom(self, engine: EngineView, *, at_default: bool) -> EngineView:
        """The load as it may become within a few seconds."""
        output, headroom = engine.output_tokens_per_s, self.leave_headroom if at_default else self.headroom
        return replace(
            engine,
            prompt_tokens_per_s=engine.prompt_tokens_per_s * headroom,
            output_tokens_per_s=output * headroom if output is not None else None,
        )

    def choose(
        self, observation: Observation, engine: EngineView, slo: Slo, correction: float, caution: float = 1.0
    ) -> Forecast | None:
        """The cheapest forecast among those that keep the SLO; `None` when none does.

        Latency falls with the clock, so the feasible clocks are found by bisection and then walked upwards while
        the energy falls noticeably.
        """
        clocks = observation.clocks_mhz
        floor = self.bounds.min_mhz or 0
        candidates = [clock for clock in clocks if clock >= floor]
        asked = asked_tokens_per_s(self.twin, engine, observation.current_mhz)

        def look(index: int) -> Forecast:
            return self.forecast(engine, candidates[index], asked, correction)

        def keeps(found: Forecast) -> bool:
            share, waiting_share = self.margin / caution, self.waiting_margin / caution
            fits = found.fresh_s <= share * slo.ttft_s and found.tpot_s <= share * slo.tpot_s
            return fits and found.ttft_s <= waiting_share * slo.ttft_s and found.feasible_load

        if not candidates or not keeps(look(len(candidates) - 1)):
            return None
        low, high = 0, len(candidates) - 1
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if keeps(look(middle)) else (middle + 1, high)
        best = look(low)
        stride = max(1, len(candidates) // 40)
        for index in range(low + stride, len(candidates), stride):
            found = look(index)
            if found.joules_per_token >= best.joules_per_token * WORTH_RAISING:
                break
            best = found
        return best

    def forecast(self, engine: EngineView, clock_mhz: int, asked_per_s: float, correction: float) -> Forecast:
        """What the twin says of a clock (`prediction.forecast`)."""
        return forecast(self.twin, engine, clock_mhz, asked_per_s, correction)

    def expected_step_s(self, engine: EngineView, clock_mhz: float) -> float:
        """The step the twin expects now (`prediction.predicted_step_s`)."""
        return predicted_step_s(self.twin, engine, clock_mhz)

    def corrected(self, observation: Observation, engine: EngineView, memory: Memory) -> Memory:
        """Fold the latest measured step time into the correction."""
        if engine.step_s is None or (engine.running == 0 and engine.step_tokens < 1.0):
            return memory
        if observation.time_s - observation.since_s < SETTLE_S:
            return memory
        reading = observation.reading
        clock = reading.sm_clock_mhz if reading is not None and reading.sm_clock_mhz else observation.current_mhz
        expected = self.expected_step_s(engine, clock)
        if expected <= 0.0:
            return memory
        ratio = min(10.0, max(0.1, engine.step_s / expected))
        blended = memory.step_correction + self.learning * (ratio - memory.step_correction)
        return replace(memory, step_correction=blended)


def worst_latency(engine: EngineView, slo: Slo) -> tuple[float, str]:
    """The worse of the measured latencies as a share of its SLO (0 where nothing is measured), and in words."""
    ttft_s, tpot_s = engine.ttft_p99_s or 0.0, engine.tpot_p99_s or 0.0
    ttft, tpot = ttft_s / slo.ttft_s, tpot_s / slo.tpot_s
    told = f"TTFT p99 {ttft_s * 1e3:.0f} ms" if ttft > tpot else f"TPOT p99 {tpot_s * 1e3:.1f} ms"
    return max(ttft, tpot), f"measured {told} was over the SLO"


def waits_too_long(engine: EngineView, slo: Slo, share: float) -> str | None:
    """A request that has no first token yet, near the end of its TTFT."""
    if engine.oldest_wait_s > share * slo.ttft_s:
        return f"a request has waited {engine.oldest_wait_s * 1e3:.0f} ms"
    return None
