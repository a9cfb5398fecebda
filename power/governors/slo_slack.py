"""`slo_slack`: the clock with the least energy that the twin expects to keep TTFT and TPOT within the SLO.

The twin is corrected online by measured step times. Anything that makes the prediction doubtful gives the
driver's default: no engine view, no SLO, a correction far from 1, latencies already near the SLO.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from msgspec.structs import replace

from power.governors.base import Decision, EngineView, Memory, Observation, Setpoint, Slo
from power.governors.prediction import Forecast, asked_tokens_per_s, forecast, predicted_step_s
from power.governors.stability import Bounds, Stability, unsure
from power.twin import Twin

SETTLE_S = 1.2
"""After a switch the measured mean still holds steps of the old clock: nothing is learnt from it."""


@dataclass(frozen=True, slots=True)
class SloSlackGovernor:
    """`margin`: share of the SLO a prediction may use; `headroom`: growth of the load to be ready for,
    `leave_headroom` while at the driver's default (near saturation nothing is given away).

    Measured latency above a share `guard` of the SLO is a breach: caution rises by `alarm` (up to `max_caution`) and
    fades by `forgetting` with each quiet decision. Above a share `lost`, or while a request waits too long, the
    driver's default reigns for `guard_s` besides. Percentiles look back 30 s and so report a cured breach for long:
    they are heard again after `deaf_s`; waiting requests always are.

    `learning`: weight of a new step-time ratio; `trusted`: corrections outside are not believed."""

    twin: Twin
    bounds: Bounds = field(default_factory=Bounds)
    stability: Stability = field(default_factory=Stability)
    margin: float = 0.65
    guard: float = 0.97
    lost: float = 1.1
    guard_s: float = 5.0
    deaf_s: float = 15.0
    alarm: float = 1.15
    headroom: float = 1.08
    leave_headroom: float = 1.2
    learning: float = 0.2
    forgetting: float = 0.0015
    max_caution: float = 2.0
    trusted: tuple[float, float] = (0.3, 3.0)
    name: str = "slo_slack"

    def decide(self, observation: Observation) -> Decision:
        engine, slo, memory = observation.engine, observation.slo, observation.memory
        if engine is None or slo is None or not observation.clocks_mhz:
            missing = "no engine view" if engine is None else "no SLO" if slo is None else "no supported clocks"
            return unsure(observation, memory, missing, self.bounds, self.stability)
        if engine.running and engine.output_tokens_per_s is None:
            return unsure(observation, memory, "too few answers to know the load", self.bounds, self.stability)
        memory = self.corrected(observation, engine, memory)
        low, high = self.trusted
        if not low <= memory.step_correction <= high:
            reason = f"measured steps are {memory.step_correction:.2f} times the predicted"
            return unsure(observation, memory, reason, self.bounds, self.stability)
        now = observation.time_s
        waits = waits_too_long(engine, slo, self.guard)
        breach = waits or over_slo(engine, slo, self.guard)
        if breach is None:
            if memory.caution > 1.0:
                memory = replace(memory, caution=max(1.0, memory.caution * (1.0 - self.forgetting)))
        elif waits is not None or now >= memory.deaf_until_s:
            if now >= memory.guard_until_s:
                memory = replace(memory, caution=min(self.max_caution, memory.caution * self.alarm))
            clear = waits is not None or over_slo(engine, slo, self.lost) is not None
            guard_until_s = now + self.guard_s if clear and now >= memory.guard_until_s else memory.guard_until_s
            memory = replace(memory, guard_until_s=guard_until_s, deaf_until_s=now + self.deaf_s)
        if now < memory.guard_until_s:
            reason = breach or "latency was near the SLO"
            return unsure(observation, memory, reason, self.bounds, self.stability)
        engine = self.with_headroom(engine, at_default=observation.current.sm_clock_mhz is None)
        chosen = self.choose(observation, engine, slo, memory.step_correction, memory.caution)
        if chosen is None:
            return unsure(observation, memory, "no clock keeps the SLO", self.bounds, self.stability)
        reason = f"predicted TTFT {chosen.ttft_s * 1e3:.0f} ms, TPOT {chosen.tpot_s * 1e3:.1f} ms"
        asked = asked_tokens_per_s(self.twin, engine, observation.current_mhz)
        present = self.forecast(engine, observation.current_mhz, asked, memory.step_correction)
        saving_w = present.power_w - chosen.power_w
        wanted = Setpoint(chosen.clock_mhz)
        return self.stability.settle(observation, wanted, memory, reason, self.bounds, saving_w)

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
        the energy falls.
        """
        clocks = observation.clocks_mhz
        floor = self.bounds.min_mhz or 0
        candidates = [clock for clock in clocks if clock >= floor]
        asked = asked_tokens_per_s(self.twin, engine, observation.current_mhz)

        def look(index: int) -> Forecast:
            return self.forecast(engine, candidates[index], asked, correction)

        def keeps(found: Forecast) -> bool:
            share = self.margin / caution
            fits = found.ttft_s <= share * slo.ttft_s and found.tpot_s <= share * slo.tpot_s
            return fits and found.feasible_load

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
            if found.joules_per_token > best.joules_per_token:
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


def over_slo(engine: EngineView, slo: Slo, share: float) -> str | None:
    """Which measured latency has passed `share` of its SLO."""
    if engine.tpot_p99_s is not None and engine.tpot_p99_s > share * slo.tpot_s:
        return f"measured TPOT p99 {engine.tpot_p99_s * 1e3:.1f} ms is at the SLO"
    if engine.ttft_p99_s is not None and engine.ttft_p99_s > share * slo.ttft_s:
        return f"measured TTFT p99 {engine.ttft_p99_s * 1e3:.0f} ms is at the SLO"
    return None


def waits_too_long(engine: EngineView, slo: Slo, share: float) -> str | None:
    """A request that has no first token yet, near the end of its TTFT."""
    if engine.oldest_wait_s > share * slo.ttft_s:
        return f"a request has waited {engine.oldest_wait_s * 1e3:.0f} ms"
    return None
