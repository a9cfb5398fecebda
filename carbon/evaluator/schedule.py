"""When the evaluator runs: at clean hours, and anyway when its knowledge grows old.

`SproutSchedule` is the published rule. `ForecastSchedule` looks ahead: it runs now only if no cleaner hour is forecast
before the knowledge is too old, and it waits longer where judgements add up over runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ScheduleDecision:
    run: bool
    reason: str


@dataclass(frozen=True, slots=True)
class SproutSchedule:
    """SPROUT's opportunistic rule (artifact `utils.OfflineAssessor`), asked once an hour.

    Run after `max_idle_h` at the latest and never within `grace_h`; in between only at or below the mean intensity,
    just after a local minimum of `v = CI * exp(beta * age)`, whose weight on age keeps a slowly falling grid from
    postponing it for ever. The published code takes the mean over the whole month, in hindsight; here the caller gives
    the mean of what it has seen.
    """

    max_idle_h: float = 72.0
    grace_h: float = 6.0
    beta: float = 0.029

    def decide(self, recent: Sequence[float], mean: float, age_h: float) -> ScheduleDecision:
        """`recent`: hourly intensity up to now, newest last."""
        if age_h >= self.max_idle_h:
            return ScheduleDecision(True, f"knowledge is {age_h:.0f} h old")
        if age_h <= self.grace_h:
            return ScheduleDecision(False, "judged a short while ago")
        if len(recent) < 3:
            return ScheduleDecision(False, "too few hours known")
        if recent[-1] > mean:
            return ScheduleDecision(False, "intensity above its mean")
        values = [ci * math.exp(self.beta * (age_h + step)) for step, ci in zip((-2, -1, 0), recent[-3:])]
        if values[1] <= values[0] and values[2] >= values[1]:
            return ScheduleDecision(True, "just after a local minimum of urgency-adjusted intensity")
        return ScheduleDecision(False, "no local minimum of urgency-adjusted intensity")


@dataclass(frozen=True, slots=True)
class ForecastSchedule:
    """Run at the cleanest hour forecast before the deadline. `max_age_h`: the deadline; `min_age_h`: not before.

    `margin`: an hour ahead must be cleaner than now by this share to be worth waiting for, because forecasts err.
    """

    max_age_h: float = 168.0
    min_age_h: float = 72.0
    margin: float = 0.03

    def decide(self, now_g_per_kwh: float, forecast: Sequence[float], age_h: float) -> ScheduleDecision:
        """`forecast`: g/kWh of the coming hours, as far as known."""
        if age_h >= self.max_age_h:
            return ScheduleDecision(True, f"knowledge is {age_h:.0f} h old")
        if age_h < self.min_age_h:
            return ScheduleDecision(False, "judged a short while ago")
        ahead = list(forecast[: max(0, math.floor(self.max_age_h - age_h))])
        cleanest = min(ahead, default=math.inf)
        if now_g_per_kwh * (1.0 - self.margin) <= cleanest:
            return ScheduleDecision(True, "no cleaner hour is forecast before the deadline")
        return ScheduleDecision(False, f"{cleanest:.0f} g/kWh is forecast in {ahead.index(cleanest) + 1} h")
