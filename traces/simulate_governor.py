"""The governors that search with the twin, made quicker for simulation: the same choices, fewer predictions.

`slo_slack` finds the lowest clock that keeps the SLO by bisection over all clocks. Feasibility grows with the clock, so
a search that starts at the clock in force and widens from there ends at the same one; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from power.governors import EngineView, Observation, PhaseAwareGovernor, Slo, SloSlackGovernor
from power.governors.prediction import Forecast, asked_tokens_per_s, forecast
from power.governors.stability import snap_up


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
        asked = asked_tokens_per_s(self.twin, engine, observation.current_mhz)
        share = self.margin / caution
        seen: dict[int, Forecast] = {}

        def look(index: int) -> Forecast:
            found = seen.get(index)
            if found is None:
                found = seen[index] = forecast(self.twin, engine, candidates[index], asked, correction)
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
