"""The two baselines: the driver's default, and one fixed clock."""

from __future__ import annotations

from dataclasses import dataclass, field

from power.governors.base import Decision, Observation, Setpoint
from power.governors.stability import Bounds, bounded_clock, guarded_limit


@dataclass(frozen=True, slots=True)
class DefaultGovernor:
    """Leaves the clocks to the driver; bounds and row ceilings still hold."""

    bounds: Bounds = field(default_factory=Bounds)
    name: str = "default"

    def decide(self, observation: Observation) -> Decision:
        clock = bounded_clock(observation, None, self.bounds)
        limit = guarded_limit(observation, None, self.bounds)
        return Decision(Setpoint(clock, limit), "driver default", observation.memory)


@dataclass(frozen=True, slots=True)
class StaticGovernor:
    """One clock for all loads. The best static clock is the baseline to beat."""

    clock_mhz: int
    bounds: Bounds = field(default_factory=Bounds)
    name: str = "static"

    def decide(self, observation: Observation) -> Decision:
        clock = bounded_clock(observation, self.clock_mhz, self.bounds)
        limit = guarded_limit(observation, None, self.bounds)
        return Decision(Setpoint(clock, limit), f"static {clock} MHz", observation.memory)
