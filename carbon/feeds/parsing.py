"""Small schema checks shared by the feeds: a wrong shape becomes a `FeedError` that names the field."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from carbon.feeds.feed import FeedError
from carbon.intensity import as_utc, check_g_per_kwh, to_g_per_kwh
from carbon.series import infer_step

MAX_SKEW = timedelta(hours=2)


def member(value: Any, name: str, source: str) -> Any:
    """`value[name]` of a JSON object that must have it."""
    if not isinstance(value, dict) or name not in value:
        raise FeedError(f"{source}: the answer has no field {name!r}")
    return value[name]


def items(value: Any, name: str, source: str) -> list[Any]:
    """The list under `name`, which must not be empty."""
    found = member(value, name, source)
    if not isinstance(found, list):
        raise FeedError(f"{source}: field {name!r} is not a list")
    if not found:
        raise FeedError(f"{source}: field {name!r} is empty, the source has no data")
    return found


def utc_time(value: Any, source: str) -> datetime:
    if not isinstance(value, str):
        raise FeedError(f"{source}: {value!r} is not a time")
    try:
        return as_utc(datetime.fromisoformat(value))
    except ValueError as error:
        raise FeedError(f"{source}: {error}") from None


def grams(value: Any, source: str, unit: str = "g/kWh") -> float | None:
    """g/kWh, or None for null. Text, truth values and figures out of range are refused."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise FeedError(f"{source}: intensity {value!r} is not a number")
    try:
        return check_g_per_kwh(value) if unit == "g/kWh" else to_g_per_kwh(float(value), unit)
    except ValueError as error:
        raise FeedError(f"{source}: {error}") from None


def check_zone(returned: Any, asked: str, source: str) -> None:
    if returned != asked:
        raise FeedError(f"{source}: asked for zone {asked!r}, got {returned!r}", permanent=True)


def check_skew(start: datetime, now: datetime, source: str) -> None:
    """A current value from the future means that one of the two clocks is wrong; neither is trusted then."""
    if start > now + MAX_SKEW:
        raise FeedError(f"{source}: its current value begins {start:%Y-%m-%d %H:%MZ}, ahead of our clock; check both")


def steps(starts: Sequence[datetime], default: timedelta) -> timedelta:
    """Interval length told from the points, or `default` for a single one."""
    if len(set(starts)) < 2:
        return default
    try:
        return infer_step(starts)
    except ValueError as error:
        raise FeedError(str(error)) from None
