"""`row_budget`: POLCA's two thresholds and brake over a set of GPUs with a high and a low priority pool.

Above T1 the low pool is held to its base clock; above T2 the low pool goes deeper and, only if that was not
enough, the high pool is held too; at the budget everything brakes. A state is left when power falls `hysteresis`
below the threshold it was entered at. A GPU has one clock: a mixed batch belongs to the pool of its highest
priority. Clock fractions are POLCA's A100 figures over its top clock (1275, 1110, 1305 and 288 of 1410 MHz).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

BASE_FRACTION = 1275 / 1410
LOW_FRACTION = 1110 / 1410
HIGH_FRACTION = 1305 / 1410
BRAKE_FRACTION = 288 / 1410


class Pool(enum.StrEnum):
    HIGH = "high"
    LOW = "low"


class RowState(enum.IntEnum):
    """In order of severity."""

    NORMAL = 0
    T1 = 1
    T2_LOW = 2
    T2_HIGH = 3
    BRAKE = 4


@dataclass(frozen=True, slots=True)
class RowMemory:
    """Of proportional capping: `low_fraction`, where it holds the low pool; `dip_until_s`, up to when at its floor."""

    state: RowState = RowState.NORMAL
    since_s: float = float("-inf")
    low_fraction: float = 1.0
    dip_until_s: float = float("-inf")


@dataclass(frozen=True, slots=True)
class RowObservation:
    """Row power and what is known of it. `power_w` is `None` when telemetry of any GPU is missing."""

    time_s: float
    power_w: float | None
    budget_w: float
    t2: float
    memory: RowMemory = RowMemory()


@dataclass(frozen=True, slots=True)
class RowDecision:
    """Ceilings as fractions of each GPU's top clock, `None` for none."""

    state: RowState
    high_fraction: float | None
    low_fraction: float | None
    admit_low_priority: bool
    reason: str
    memory: RowMemory

    def fraction(self, pool: Pool) -> float | None:
        return self.high_fraction if pool is Pool.HIGH else self.low_fraction


@dataclass(frozen=True, slots=True)
class RowBudget:
    """`reaction_s`: actuation plus telemetry delay; after an action nothing is escalated before it could show."""

    t1: float = 0.80
    hysteresis: float = 0.05
    reaction_s: float = 1.0
    relax_dwell_s: float = 5.0

    def __post_init__(self) -> None:
        if not 0 < self.t1 < 1 or not 0 < self.hysteresis < self.t1:
            raise ValueError("row budget needs 0 < t1 < 1 and 0 < hysteresis < t1")

    def threshold(self, state: RowState, t2: float) -> float:
        """The share of the budget at which a state is entered."""
        if state is RowState.BRAKE:
            return 1.0
        return 0.0 if state is RowState.NORMAL else self.t1 if state is RowState.T1 else t2

    def decide(self, row: RowObservation) -> RowDecision:
        memory = row.memory
        if row.power_w is None:
            held = max(memory.state, RowState.T1)
            memory = memory if held == memory.state else RowMemory(held, row.time_s)
            return self._decision(memory, "row power unknown: low priority stays capped")
        load = row.power_w / row.budget_w
        rested = row.time_s - memory.since_s
        state = memory.state
        if load >= 1.0:
            state = RowState.BRAKE
        elif load >= row.t2 and state < RowState.T2_HIGH and (state < RowState.T2_LOW or rested >= self.reaction_s):
            state = RowState.T2_LOW if state < RowState.T2_LOW else RowState.T2_HIGH
        elif load >= self.t1 and state is RowState.NORMAL:
            state = RowState.T1
        elif (
            state is not RowState.NORMAL
            and rested >= self.relax_dwell_s
            and load < self.threshold(state, row.t2) - self.hysteresis
        ):
            state = RowState(state - 1)
        if state != memory.state:
            memory = RowMemory(state, row.time_s)
        return self._decision(memory, f"row at {load:.0%} of budget, state {state.name}")

    def _decision(self, memory: RowMemory, reason: str) -> RowDecision:
        high, low = {
            RowState.NORMAL: (None, None),
            RowState.T1: (None, BASE_FRACTION),
            RowState.T2_LOW: (None, LOW_FRACTION),
            RowState.T2_HIGH: (HIGH_FRACTION, LOW_FRACTION),
            RowState.BRAKE: (BRAKE_FRACTION, BRAKE_FRACTION),
        }[memory.state]
        return RowDecision(memory.state, high, low, memory.state < RowState.T2_LOW, reason, replace(memory))
