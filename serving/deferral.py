"""When deferrable work should run: in the cleanest hour before its deadline, and never too late for it.

Pure but for the readings it is given. `decide` compares the intensity now with the best hour ahead that still leaves
time to run; without a forecast it waits only while the grid is dirtier than the trailing mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

RESERVE_S = 120.0
"""Time kept before the deadline for the work itself and for what runs beside it."""
WORTH = 0.05
"""A later hour must be cleaner by this share to be waited for."""


@dataclass(frozen=True, slots=True)
class HourAhead:
    start_unix_s: float
    end_unix_s: float
    g_per_kwh: float


def run_now(
    now_unix_s: float,
    deadline_unix_s: float,
    g_per_kwh: float | None,
    ahead: Sequence[HourAhead],
    mean_g_per_kwh: float | None,
    reserve_s: float = RESERVE_S,
) -> bool:
    """Whether to run now. `ahead`: the forecast; `mean_g_per_kwh`: of the trailing window. Unknown grid: run."""
    latest = deadline_unix_s - reserve_s
    if now_unix_s >= latest or g_per_kwh is None:
        return True
    useful = [hour.g_per_kwh for hour in ahead if hour.end_unix_s > now_unix_s and hour.start_unix_s <= latest]
    if useful:
        return g_per_kwh * (1.0 - WORTH) <= min(useful)
    return mean_g_per_kwh is None or g_per_kwh <= mean_g_per_kwh
