"""What directives are expected to save now and in each of the coming hours, as it looks now: for operators to see.

Nothing is decided by it: the mix is planned anew every few minutes. Pure, as the planner is.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from datetime import datetime

from carbon.plan_values import MixPlan, PlanSettings, Snapshot, Strategy
from carbon.planner import make_plan

_OVER_THE_HORIZON = (Strategy.BUDGETED, Strategy.CARBON_BUDGET)


@dataclass(frozen=True, slots=True)
class PlannedHour:
    """`saving`: expected share of the grams that every answer at L0 would emit, at the forecast `g_per_kwh`."""

    start: datetime
    g_per_kwh: float
    saving: float


def plan_ahead(snapshot: Snapshot, settings: PlanSettings, plan: MixPlan) -> tuple[PlannedHour, ...]:
    """Now and the hours of `snapshot.ahead_starts` under `plan`, which was made from the same snapshot and settings.

    A budget is planned over the whole horizon: its hours are taken from the plan. Every other strategy looks at the
    grid of the moment: it is asked for each hour what it would do then, by the bounds of the grid as they are now.
    Empty without an intensity or while nothing is known that could be saved.
    """
    intensity = snapshot.reading.intensity
    if plan.saving is None or intensity is None:
        return ()
    hours = [(snapshot.now, intensity.g_per_kwh), *zip(snapshot.ahead_starts, snapshot.ahead)]
    if settings.strategy in _OVER_THE_HORIZON:
        return tuple(PlannedHour(*hour, saving) for hour, saving in zip(hours, plan.hourly_saving))
    planned = [PlannedHour(*hours[0], plan.saving)]
    for start, g_per_kwh in hours[1:]:
        reading = dataclasses.replace(snapshot.reading, intensity=dataclasses.replace(intensity, g_per_kwh=g_per_kwh))
        saving = make_plan(dataclasses.replace(snapshot, reading=reading), settings).saving
        if saving is not None:
            planned.append(PlannedHour(start, g_per_kwh, saving))
    return tuple(planned)
