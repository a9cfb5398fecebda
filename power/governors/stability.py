"""Keeps a governor from hunting: raise at once, lower slowly, and never switch for too little.

With these rules a device sees at most one lowering for each `dwell_s` and one raise after each of them, whatever
the governor wishes: see `Stability.max_switches_per_s`.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

from msgspec.structs import replace

from power.governors.base import Decision, Memory, Observation, Setpoint


@dataclass(frozen=True, slots=True)
class Bounds:
    """Operator's band. `power_limit_w` is the cap that always guards, `None` for the driver's own."""

    min_mhz: int | None = None
    max_mhz: int | None = None
    power_limit_w: float | None = None

    def __post_init__(self) -> None:
        if self.min_mhz is not None and self.max_mhz is not None and self.min_mhz > self.max_mhz:
            raise ValueError(f"clock band is empty: min {self.min_mhz} MHz is above max {self.max_mhz} MHz")


@dataclass(frozen=True, slots=True)
class Stability:
    """`lower_after_s`: how long a lower clock must be wished for; `dwell_s`: rest after any switch before a
    lowering; `dead_band_mhz`: smaller changes are not worth their cost; `max_lower_mhz`: largest single step down;
    `raise_gap_s`: rest between raises; `switch_cost_j` must be earned back within `payback_s` (13 ms at some 400 W
    is about 5 J)."""

    lower_after_s: float = 1.0
    dwell_s: float = 0.5
    dead_band_mhz: int = 45
    max_lower_mhz: int = 600
    raise_gap_s: float = 0.1
    switch_cost_j: float = 5.0
    payback_s: float = 2.0

    @property
    def max_switches_per_s(self) -> float:
        return 1.0 / self.raise_gap_s + 1.0

    def settle(
        self,
        observation: Observation,
        wanted: Setpoint,
        memory: Memory,
        reason: str,
        bounds: Bounds,
        saving_w: float | None = None,
    ) -> Decision:
        """Bring a wish within bounds and pace it. An unchanged setpoint comes back as it is.

        `saving_w`: watts a lowering is expected to save, where that is known.
        """
        current, now = observation.current, observation.time_s
        limit = guarded_limit(observation, wanted.power_limit_w, bounds)
        target = bounded_clock(observation, wanted.sm_clock_mhz, bounds)
        wanted = Setpoint(target, limit, wanted.admit_low_priority)
        goal = target if target is not None else observation.top_mhz
        since = now - observation.since_s
        held = Setpoint(current.sm_clock_mhz, limit, wanted.admit_low_priority)
        ceiling = hard_ceiling(observation, bounds)
        over = ceiling is not None and observation.current_mhz > ceiling
        if goal >= observation.current_mhz and not over:
            memory = _without_wish(memory)
            changed = target != current.sm_clock_mhz
            rise = goal - observation.current_mhz
            small = target is not None and rise < self.dead_band_mhz and goal < observation.top_mhz
            if changed and (small or since < self.raise_gap_s):
                return Decision(held, f"{reason}; holding", memory)
            return Decision(wanted, reason, memory)
        if over:
            return Decision(wanted, f"{reason}; ceiling {ceiling} MHz", _without_wish(memory))
        wish_since = memory.lower_wish_since_s
        if wish_since is None:
            wish_since = now
            memory = replace(memory, lower_wish_since_s=now)
        if observation.current_mhz - goal < self.dead_band_mhz:
            return Decision(held, f"{reason}; within the dead band", memory)
        if saving_w is not None and saving_w * self.payback_s < self.switch_cost_j:
            return Decision(held, f"{reason}; saves too little to switch", memory)
        if now - wish_since < self.lower_after_s or since < self.dwell_s:
            return Decision(held, f"{reason}; lowering waits", memory)
        step = max(goal, snap_up(observation.clocks_mhz, observation.current_mhz - self.max_lower_mhz))
        return Decision(replace(wanted, sm_clock_mhz=step), reason, memory)


def _without_wish(memory: Memory) -> Memory:
    return memory if memory.lower_wish_since_s is None else replace(memory, lower_wish_since_s=None)


def unsure(observation: Observation, memory: Memory, reason: str, bounds: Bounds, stability: Stability) -> Decision:
    """No sound prediction: the driver's default (within the bounds), and say so."""
    return stability.settle(observation, Setpoint(), memory, f"driver default: {reason}", bounds)


def hard_ceiling(observation: Observation, bounds: Bounds) -> int | None:
    """The lowest of the operator's and the row's ceilings."""
    ceilings = [mhz for mhz in (observation.clock_ceiling_mhz, bounds.max_mhz) if mhz is not None]
    return min(ceilings) if ceilings else None


def bounded_clock(observation: Observation, wanted_mhz: int | None, bounds: Bounds) -> int | None:
    """A supported clock within the band; `None` stays the driver's default unless a ceiling forbids it."""
    if not observation.clocks_mhz:
        return None
    ceiling = hard_ceiling(observation, bounds)
    if wanted_mhz is None:
        return None if ceiling is None or ceiling >= observation.top_mhz else snap_down(observation.clocks_mhz, ceiling)
    clock = max(wanted_mhz, bounds.min_mhz or 0)
    supported = snap_up(observation.clocks_mhz, clock)
    if ceiling is not None and supported > ceiling:
        return snap_down(observation.clocks_mhz, ceiling)
    return supported


def guarded_limit(observation: Observation, wanted_w: float | None, bounds: Bounds) -> float | None:
    """The smaller of the wish and the guard, within the device's constraints; `None` is the driver's default."""
    candidates = [watts for watts in (wanted_w, bounds.power_limit_w) if watts is not None]
    if not candidates or observation.limits is None:
        return None
    return observation.limits.clamp(min(candidates))


def snap_up(clocks_mhz: tuple[int, ...], wanted_mhz: float) -> int:
    """The lowest supported clock at or above, else the top one."""
    index = bisect_left(clocks_mhz, wanted_mhz)
    return clocks_mhz[min(index, len(clocks_mhz) - 1)]


def snap_down(clocks_mhz: tuple[int, ...], wanted_mhz: float) -> int:
    """The highest supported clock at or below, else the lowest one."""
    index = bisect_left(clocks_mhz, wanted_mhz)
    if index < len(clocks_mhz) and clocks_mhz[index] == wanted_mhz:
        return clocks_mhz[index]
    return clocks_mhz[max(index - 1, 0)]
