"""`proportional` row capping: low priority gives back what the row draws above T2, for as long as it does.

In-band control sees a cap take hold within a second or two, so nothing has to be capped in advance: there is no T1, and
the low pool's clock follows the excess over T2 instead of POLCA's two fixed clocks; the high pool bears a small part.
Close to the budget the low pool dips to its floor until the spike is over: deep, but short. Only at the budget, or when
the low pool stays at its floor, is the high pool held to POLCA's clock; if that has not helped within the reaction
time, everything brakes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from power.governors.row_budget import (
    BASE_FRACTION,
    BRAKE_FRACTION,
    HIGH_FRACTION,
    RowDecision,
    RowMemory,
    RowObservation,
    RowState,
)

FULLY = 1.0


@dataclass(frozen=True, slots=True)
class RowTrim:
    """`gain`: lowering of the low pool's clock (share of its top clock) for each share of the budget above T2, at most
    once in `reaction_s`. `floor`: its lowest clock. `release`: the same upwards, for what is free below T2 less `band`,
    at most once in `relax_dwell_s`. `guard`: how far from T2 to the budget the dips begin. `high_share`: the high
    pool's part of the low pool's lowering. `t1` only bounds a learnt T2 from below."""

    t1: float = 0.80
    hysteresis: float = 0.05
    reaction_s: float = 1.0
    relax_dwell_s: float = 5.0
    gain: float = 1.0
    release: float = 2.0
    band: float = 0.005
    floor: float = 0.5
    guard: float = 0.75
    high_share: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.t1 < 1 or not 0 < self.hysteresis < self.t1:
            raise ValueError("row budget needs 0 < t1 < 1 and 0 < hysteresis < t1")
        paced = self.gain > 0 and self.release > 0 and 0 <= self.band < self.t1 and 0 < self.guard <= 1
        if not paced or not 0 <= self.high_share <= 1 or not BRAKE_FRACTION <= self.floor < 1:
            raise ValueError(
                "proportional capping needs gain and release above 0, 0 <= band < t1, 0 < guard <= 1, "
                f"0 <= high_share <= 1 and a floor from {BRAKE_FRACTION:.2f} to 1"
            )

    def decide(self, row: RowObservation) -> RowDecision:
        memory = row.memory
        if row.power_w is None:
            if memory.state is RowState.NORMAL:
                memory = RowMemory(RowState.T2_LOW, row.time_s, BASE_FRACTION)
            return self._decision(memory, "row power unknown: low priority stays capped", row.time_s)
        load = row.power_w / row.budget_w
        rested_s = row.time_s - memory.since_s
        if load >= 1.0 and memory.state < RowState.T2_HIGH:
            memory = self._held(memory, load - row.t2, row.time_s)
        elif load >= 1.0:
            if memory.state is RowState.T2_HIGH and rested_s >= self.reaction_s:
                memory = RowMemory(RowState.BRAKE, row.time_s, self.floor)
        elif memory.state is RowState.BRAKE:
            if rested_s >= self.relax_dwell_s and load < 1.0 - self.hysteresis:
                memory = RowMemory(RowState.T2_HIGH, row.time_s, self.floor)
        elif load >= row.t2:
            if memory.state is RowState.NORMAL or rested_s >= self.reaction_s:
                memory = self._tightened(memory, load - row.t2, row.time_s)
        elif rested_s >= self.relax_dwell_s and memory.state is not RowState.NORMAL:
            memory = self._relaxed(memory, row.t2 - load, row.time_s)
        if memory.state is RowState.T2_LOW and load >= row.t2 + self.guard * (1.0 - row.t2):
            memory = replace(memory, dip_until_s=row.time_s + self.reaction_s)
        return self._decision(memory, f"row at {load:.0%} of budget, state {memory.state.name}", row.time_s)

    def _tightened(self, memory: RowMemory, excess: float, time_s: float) -> RowMemory:
        if memory.state is RowState.T2_HIGH or memory.low_fraction <= self.floor:
            return self._held(memory, excess, time_s)
        low = max(self.floor, memory.low_fraction - self.gain * excess)
        return RowMemory(RowState.T2_LOW, time_s, low, memory.dip_until_s)

    def _held(self, memory: RowMemory, excess: float, time_s: float) -> RowMemory:
        return RowMemory(RowState.T2_HIGH, time_s, max(self.floor, memory.low_fraction - self.gain * excess))

    def _relaxed(self, memory: RowMemory, free: float, time_s: float) -> RowMemory:
        """The high pool first; then the low pool by what is free beyond the band."""
        if memory.state is RowState.T2_HIGH:
            return RowMemory(RowState.T2_LOW, time_s, memory.low_fraction) if free >= self.band else memory
        if free <= self.band:
            return memory
        low = memory.low_fraction + self.release * (free - self.band)
        return RowMemory(RowState.NORMAL, time_s) if low >= FULLY else RowMemory(RowState.T2_LOW, time_s, low)

    def _decision(self, memory: RowMemory, reason: str, time_s: float) -> RowDecision:
        if memory.state is RowState.BRAKE:
            return RowDecision(memory.state, BRAKE_FRACTION, BRAKE_FRACTION, False, reason, memory)
        if memory.state is RowState.NORMAL:
            return RowDecision(memory.state, None, None, True, reason, memory)
        low = memory.low_fraction
        high = HIGH_FRACTION if memory.state is RowState.T2_HIGH else FULLY - self.high_share * (FULLY - low)
        if memory.state is RowState.T2_HIGH or time_s < memory.dip_until_s:
            low = self.floor
        return RowDecision(memory.state, high if high < FULLY else None, low, False, reason, memory)
