"""`carbon_follow`: row budget and clock band follow the grid. Cleaner grid, more room; dirtier, less.

It narrows what the governor inside may choose and never asks for more than that governor wants. A stale or absent
signal narrows nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import replace

from power.governors.base import Decision, Governor, GridSignal, Observation
from power.governors.stability import snap_up


@dataclass(frozen=True, slots=True)
class CarbonFollow:
    """`floor_fraction`: ceiling of the clock, over the top clock, at the dirtiest grid; `budget_floor`: share of the
    row budget then; `steps`: the signal is rounded so that small moves of the grid do not move the clocks."""

    inner: Governor
    floor_fraction: float = 0.6
    budget_floor: float = 0.75
    steps: int = 5
    name: str = "carbon_follow"

    def __post_init__(self) -> None:
        if not 0 < self.floor_fraction <= 1 or not 0 < self.budget_floor <= 1 or self.steps < 1:
            raise ValueError("carbon_follow needs fractions in (0, 1] and at least one step")

    def decide(self, observation: Observation) -> Decision:
        dirtiness = self.dirtiness(observation.grid)
        if not dirtiness or not observation.clocks_mhz:
            return self.inner.decide(observation)
        ceiling = snap_up(observation.clocks_mhz, observation.top_mhz * scaled(self.floor_fraction, dirtiness))
        if observation.clock_ceiling_mhz is not None:
            ceiling = min(ceiling, observation.clock_ceiling_mhz)
        decision = self.inner.decide(replace(observation, clock_ceiling_mhz=ceiling))
        grid = observation.grid
        assert grid is not None
        return replace(decision, reason=f"{decision.reason}; grid at {grid.intensity_g_per_kwh:.0f} g/kWh")

    def budget_w(self, budget_w: float, grid: GridSignal | None) -> float:
        """The row budget for the present grid."""
        return budget_w * scaled(self.budget_floor, self.dirtiness(grid))

    def dirtiness(self, grid: GridSignal | None) -> float:
        """0 to 1 in `steps` steps, rounded down; 0 when the signal cannot be trusted."""
        if grid is None or grid.stale:
            return 0.0
        return int(grid.dirtiness * self.steps) / self.steps


def scaled(floor: float, dirtiness: float) -> float:
    return 1.0 - (1.0 - floor) * dirtiness
