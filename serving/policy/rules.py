"""`spec.rules`: settings that hold at certain times, grid bands, zones or for certain tenants. The first match wins."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, AwareDatetime, Field, model_validator

from serving.policy.base import Name, Positive, Section, Text
from serving.policy.carbon_section import Zone
from serving.policy.power_section import ClockBand, GovernorName, PowerLimit
from serving.policy.time_zones import check_time_zone

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
UNKNOWN_BAND = "unknown"
DAY_MINUTES = 1440
WEEK_MINUTES = 7 * DAY_MINUTES
_WINDOW = re.compile(r"^([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-4]):([0-5]\d)$")


def check_window(text: str) -> str:
    window_minutes(text)
    return text


def window_minutes(text: str) -> tuple[int, int]:
    """`"17:00-20:30"` as minutes of the day `[start, end)`; an end at or before the start is on the next day."""
    found = _WINDOW.match(text)
    if found is None:
        raise ValueError(f'{text!r} is not a time window; write it as "17:00-20:30"')
    start_h, start_m, end_h, end_m = map(int, found.groups())
    start, end = start_h * 60 + start_m, end_h * 60 + end_m
    if end > DAY_MINUTES or start == end:
        raise ValueError(f"{text!r} is not a time window: it must end by 24:00 and not be empty")
    return start, end if end > start else end + DAY_MINUTES


TimeZoneName = Annotated[str, AfterValidator(check_time_zone)]
Window = Annotated[str, AfterValidator(check_window)]


class Condition(Section):
    """All that is given must hold; what is absent does not matter."""

    bands: tuple[Name, ...] | None = Field(default=None, min_length=1)
    """Names of carbon.bands; unknown stands for an intensity that is absent or too old."""
    zones: tuple[Zone, ...] | None = Field(default=None, min_length=1)
    tenants: tuple[Name, ...] | None = Field(default=None, min_length=1)
    days: tuple[Day, ...] | None = Field(default=None, min_length=1)
    between: Window | None = None
    """Local wall-clock time; a window past midnight belongs to the day on which it begins."""
    time_zone: TimeZoneName | None = None

    @model_validator(mode="after")
    def zone_for_times(self) -> Self:
        timed = self.days is not None or self.between is not None
        if timed and self.time_zone is None:
            raise ValueError("days and between need time_zone, for example Europe/London or UTC")
        if self.time_zone is not None and not timed:
            raise ValueError("time_zone does nothing without days or between")
        return self

    @property
    def timed(self) -> bool:
        return self.time_zone is not None

    def minutes_of_week(self) -> tuple[tuple[int, int], ...]:
        """Local minutes of the week, from Monday 00:00, as intervals `[start, end)`, cut at the week's end."""
        start, end = window_minutes(self.between) if self.between is not None else (0, DAY_MINUTES)
        spans = []
        for day in self.days or DAYS:
            base = DAYS.index(day) * DAY_MINUTES
            first, last = base + start, base + end
            spans.append((first, min(last, WEEK_MINUTES)))
            if last > WEEK_MINUTES:
                spans.append((0, last - WEEK_MINUTES))
        return tuple(sorted(spans))

    def holds_at(self, moment: datetime) -> bool:
        """Whether the local wall clock is within the window. An hour that occurs twice is in it both times."""
        if self.time_zone is None:
            return True
        local = moment.astimezone(ZoneInfo(self.time_zone))
        minute = local.weekday() * DAY_MINUTES + local.hour * 60 + local.minute
        return any(start <= minute < end for start, end in self.minutes_of_week())


class Change(Section):
    """What a rule sets; the rest stays as the policy says."""

    governor: GovernorName | None = None
    clock_mhz: ClockBand | None = None
    power_limit_w: PowerLimit | None = None
    row_budget_w: Positive | None = None
    admit_low_priority: bool | None = None
    directive: Name | None = None
    """off, auto or a level's id for every request that asks for auto."""
    quality_floor: float | None = Field(default=None, ge=0.0)
    tolerance: float | None = Field(default=None, ge=0.0, le=1.0)

    @model_validator(mode="after")
    def sets_something(self) -> Self:
        if not self.model_fields_set or all(value is None for value in self.model_dump().values()):
            raise ValueError("the rule sets nothing; name at least one setting")
        return self

    @property
    def touches_devices(self) -> bool:
        device = (self.governor, self.clock_mhz, self.power_limit_w, self.row_budget_w, self.admit_low_priority)
        return any(value is not None for value in device)


class Rule(Section):
    name: Name
    when: Condition = Condition()
    set: Change
    expires_at: AwareDatetime | None = None
    """The rule ends by itself at this moment."""
    reason: Text | None = None

    def holds(self, moment: datetime, zone: str | None, tenant: str | None, band: str) -> bool:
        when = self.when
        if self.expires_at is not None and moment >= self.expires_at:
            return False
        if when.bands is not None and band not in when.bands:
            return False
        if when.zones is not None and zone not in when.zones:
            return False
        if when.tenants is not None and tenant not in when.tenants:
            return False
        return when.holds_at(moment)
