"""`phase_aware`: one clock for prefill, a lower one for decode, and a switch only when the phase lasts.

A switch costs about 5 to 13 ms on the device; a decode step lasts 7 to 20 ms. So single steps never move the
clock: a coming prefill must last longer than `worth` switch latencies at the clock in force.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from power.governors.base import Decision, EngineView, Observation, Setpoint
from power.governors.slo_slack import SloSlackGovernor
from power.governors.stability import Bounds, Stability, unsure
from power.twin import Twin, combine, decode_work, prefill_work


@dataclass(frozen=True, slots=True)
class PhaseAwareGovernor:
    """`prefill_mhz`: `None` for the driver's default; `decode_mhz`: `None` leaves the choice to `slo_slack`."""

    twin: Twin
    prefill_mhz: int | None = None
    decode_mhz: int | None = None
    switch_latency_s: float = 0.013
    worth: float = 10.0
    bounds: Bounds = field(default_factory=Bounds)
    stability: Stability = field(default_factory=Stability)
    name: str = "phase_aware"

    def decide(self, observation: Observation) -> Decision:
        engine = observation.engine
        if engine is None or not observation.clocks_mhz:
            return unsure(observation, observation.memory, "no engine view", self.bounds, self.stability)
        prefill_s = self.prefill_left_s(engine, observation.current_mhz)
        if prefill_s > self.worth * self.switch_latency_s:
            return self._settle(observation, self.prefill_mhz, f"prefill for {prefill_s * 1e3:.0f} ms")
        if self.decode_mhz is not None:
            return self._settle(observation, self.decode_mhz, "decode")
        return self.decode_governor().decide(observation)

    def _settle(self, observation: Observation, clock_mhz: int | None, reason: str) -> Decision:
        return self.stability.settle(observation, Setpoint(clock_mhz), observation.memory, reason, self.bounds)

    def decode_governor(self) -> SloSlackGovernor:
        """Chooses the decode clock by SLO slack."""
        return SloSlackGovernor(self.twin, self.bounds, self.stability)

    def prefill_left_s(self, engine: EngineView, clock_mhz: float) -> float:
        """How long the waiting prompts will keep the engine in prefill at a clock."""
        if engine.waiting_tokens <= 0:
            return 0.0
        context = engine.kv_tokens / max(engine.running, 1)
        decode = [decode_work(engine.running, context)] if engine.running else []
        size = min(engine.waiting_tokens, engine.max_step_tokens)
        step = self.twin.predict(combine([*decode, prefill_work(size)]), clock_mhz)
        return step.duration_s * engine.waiting_tokens / size
