"""`prefill_throttle`: fewer prompt tokens a step while too little power holds the clocks at their floor.

At such clocks a step full of prompt tokens takes several times as long as a decode step, and every answer under way
waits for it; its power differs little from that of a smaller one. So while the row's brake, the power limit or heat
holds the clocks down, the tokens of a step are halved, and doubled again in quiet. The floor leaves each running
request a token in every step: prompts wait, answers under way go on.
"""

from __future__ import annotations

from dataclasses import dataclass

from power.device import ClockReason
from power.governors.base import Observation

HEAT = frozenset({ClockReason.THERMAL, ClockReason.HW_THERMAL, ClockReason.HW_SLOWDOWN, ClockReason.POWER_BRAKE})
"""The board slows itself down, whatever was asked."""


@dataclass(frozen=True, slots=True)
class ThrottleMemory:
    """`tokens`: a step's limit in force, `None` for the engine's own budget."""

    tokens: int | None = None
    since_s: float = float("-inf")
    pressed_s: float = float("-inf")


@dataclass(frozen=True, slots=True)
class ThrottleDecision:
    tokens: int | None
    reason: str
    memory: ThrottleMemory


@dataclass(frozen=True, slots=True)
class PrefillThrottle:
    """`min_step_tokens`: never fewer tokens a step (nor fewer than the engine's places). `react_s`: between two
    halvings; `relax_s`: quiet before a doubling. `floor_mhz`: the clock counted as the floor where the power limit
    acts; `None` for the device's lowest."""

    min_step_tokens: int = 256
    react_s: float = 1.0
    relax_s: float = 5.0
    floor_mhz: int | None = None

    def __post_init__(self) -> None:
        if self.min_step_tokens < 1 or self.react_s <= 0 or self.relax_s <= 0:
            raise ValueError("prefill throttle needs min_step_tokens of at least 1, and react_s and relax_s above 0 s")

    def pressure(self, observation: Observation, *, braking: bool) -> str | None:
        """What presses a device although its clocks are at their floor; `None` for nothing or not known."""
        if braking and observation.current.sm_clock_mhz is not None:
            return f"the row is at its budget with clocks held at {observation.current.sm_clock_mhz} MHz"
        reading = observation.reading
        if reading is None or reading.clock_reasons is None:
            return None
        hot = HEAT & reading.clock_reasons
        if hot:
            return f"the board slows itself down ({', '.join(sorted(hot))})"
        floor = self.floor_mhz or (observation.clocks_mhz[0] if observation.clocks_mhz else None)
        clock = reading.sm_clock_mhz
        if ClockReason.POWER_CAP not in reading.clock_reasons or floor is None or clock is None or clock > floor:
            return None
        return f"the power limit acts with the clock at its floor, {clock:.0f} MHz"

    def decide(
        self, time_s: float, pressure: str | None, max_step_tokens: int, max_running: int, memory: ThrottleMemory
    ) -> ThrottleDecision:
        """`max_step_tokens`, `max_running`: the engine's own budget and places."""
        floor = max(self.min_step_tokens, max_running)
        now = memory.tokens if memory.tokens is not None else max_step_tokens
        if pressure is not None:
            memory = ThrottleMemory(memory.tokens, memory.since_s, time_s)
            if now <= floor or time_s - memory.since_s < self.react_s:
                return ThrottleDecision(memory.tokens, pressure, memory)
            lower = max(floor, now // 2)
            return ThrottleDecision(lower, pressure, ThrottleMemory(lower, time_s, time_s))
        quiet_s = time_s - max(memory.since_s, memory.pressed_s)
        if memory.tokens is None or quiet_s < self.relax_s:
            return ThrottleDecision(memory.tokens, "nothing presses", memory)
        higher = 2 * now if 2 * now < max_step_tokens else None
        return ThrottleDecision(higher, f"nothing has pressed for {self.relax_s:g} s", ThrottleMemory(higher, time_s))
