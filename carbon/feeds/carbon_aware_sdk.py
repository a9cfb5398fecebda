"""The Green Software Foundation's Carbon Aware SDK web API, as an operator may already run it.

What its numbers count depends on the source behind it, so the methodology is declared. Its known defects are met
here: a null intensity arrives as -1 and is refused, and a window it silently ignored is noticed by the times.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from carbon.feeds.feed import FeedError
from carbon.feeds.http import FeedHttp
from carbon.feeds.parsing import check_skew, check_zone, grams, items, member, utc_time
from carbon.intensity import CarbonIntensity, Kind, Methodology, as_utc
from carbon.series import IntensitySeries

RECENT = timedelta(hours=3)


class CarbonAwareSdkFeed:
    """`zone` is a location of the SDK (`GET /locations`)."""

    def __init__(
        self, http: FeedHttp, methodology: Methodology, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self.name = "carbon_aware_sdk"
        self.methodology = methodology
        self._http = http
        self._now = now

    def _point(self, item: Any, zone: str, value_name: str, time_name: str, kind: Kind) -> CarbonIntensity | None:
        check_zone(member(item, "location", self.name), zone, self.name)
        number = member(item, value_name, self.name)
        if number == -1:
            return None
        value = grams(number, self.name)
        if value is None:
            return None
        start = utc_time(member(item, time_name, self.name), self.name)
        end = start + self._duration(member(item, "duration", self.name))
        return CarbonIntensity(zone, start, end, value, self.methodology, kind, self.name, self._now())

    def _duration(self, value: Any) -> timedelta:
        """`HH:MM:SS`, or a number of minutes in forecasts of some versions."""
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 60:
            return timedelta(minutes=value)
        try:
            hours, minutes, seconds = (int(part) for part in str(value).split(":"))
        except ValueError:
            raise FeedError(f"{self.name}: {value!r} is not a duration") from None
        duration = timedelta(hours=hours, minutes=minutes, seconds=seconds)
        if not timedelta(0) < duration <= timedelta(days=1):
            raise FeedError(f"{self.name}: a duration of {duration} is not an interval")
        return duration

    async def current(self, zone: str) -> CarbonIntensity:
        now = self._now()
        series = await self._emissions(zone, now - RECENT, now)
        newest = series[len(series) - 1]
        check_skew(newest.start, now, self.name)
        return newest

    async def forecast(self, zone: str, until: datetime) -> IntensitySeries:
        answer = await self._http.get_json("/emissions/forecasts/current", {"location": zone})
        if not isinstance(answer, list) or not answer:
            raise FeedError(f"{self.name}: no forecast for {zone!r}")
        rows = items(answer[0], "forecastData", self.name)
        points = [self._point(row, zone, "value", "timestamp", Kind.FORECAST) for row in rows]
        series = IntensitySeries(point for point in points if point).between(self._now(), as_utc(until))
        if not series:
            raise FeedError(f"{self.name}: its forecast holds nothing ahead of now")
        return series

    async def history(self, zone: str, start: datetime, end: datetime) -> IntensitySeries:
        return await self._emissions(zone, as_utc(start), as_utc(end))

    async def _emissions(self, zone: str, start: datetime, end: datetime) -> IntensitySeries:
        params = {"location": zone, "time": start.isoformat(), "toTime": end.isoformat()}
        answer = await self._http.get_json("/emissions/bylocation", params)
        if not isinstance(answer, list) or not answer:
            raise FeedError(f"{self.name}: no emissions for {zone!r} in that window")
        points = [self._point(row, zone, "rating", "time", Kind.ESTIMATED) for row in answer]
        series = IntensitySeries(point for point in points if point)
        inside = series.between(start, end)
        if not inside:
            raise FeedError(f"{self.name}: its values lie outside the window asked for, or are all missing")
        return inside

    async def close(self) -> None:
        await self._http.close()
