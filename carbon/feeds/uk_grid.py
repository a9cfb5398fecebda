"""The UK's Carbon Intensity API (NESO): Great Britain, half-hourly, no key. Data CC BY 4.0.

Its figures count what leaves the stack, with biomass and imports at the operator's own factors.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from carbon.feeds.feed import FeedError
from carbon.feeds.http import FeedHttp
from carbon.feeds.parsing import check_skew, check_zone, grams, items, member, utc_time
from carbon.intensity import Basis, Boundary, CarbonIntensity, Kind, Methodology, Mix, as_utc
from carbon.series import IntensitySeries

HOST = "api.carbonintensity.org.uk"
ZONE = "GB"
HALF_HOUR = timedelta(minutes=30)
MAX_RANGE = timedelta(days=14)


class UkGridFeed:
    """A slot's `actual` is taken as measured; where it is still null the slot's forecast is, and is called one."""

    def __init__(self, http: FeedHttp, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.name = "uk_grid"
        self.methodology = Methodology(Basis.AVERAGE, Boundary.DIRECT, Mix.PRODUCTION)
        self._http = http
        self._now = now

    async def _slots(self, path: str, *, ahead: bool = False) -> list[CarbonIntensity]:
        answer = await self._http.get_json(path)
        points = [self._slot(item, ahead) for item in items(answer, "data", self.name)]
        return [point for point in points if point is not None]

    def _slot(self, item: Any, ahead: bool) -> CarbonIntensity | None:
        start = utc_time(member(item, "from", self.name), self.name)
        end = utc_time(member(item, "to", self.name), self.name)
        if end - start != HALF_HOUR:
            raise FeedError(f"{self.name}: a slot of {end - start} instead of 30 minutes")
        numbers = member(item, "intensity", self.name)
        actual = None if ahead else grams(member(numbers, "actual", self.name), self.name)
        value = actual if actual is not None else grams(member(numbers, "forecast", self.name), self.name)
        if value is None:
            return None
        kind = Kind.FORECAST if actual is None else Kind.MEASURED
        return CarbonIntensity(ZONE, start, end, value, self.methodology, kind, self.name, self._now())

    async def current(self, zone: str) -> CarbonIntensity:
        check_zone(ZONE, zone, self.name)
        slots = await self._slots("/intensity")
        if not slots:
            raise FeedError(f"{self.name}: the current slot has no value")
        newest = max(slots, key=lambda slot: slot.start)
        check_skew(newest.start, self._now(), self.name)
        return newest

    async def forecast(self, zone: str, until: datetime) -> IntensitySeries:
        check_zone(ZONE, zone, self.name)
        now = self._now()
        slots = await self._slots(f"/intensity/{_minute(now)}/fw48h", ahead=True)
        # The first slot returned is the one that ends at `from`.
        series = IntensitySeries(slots).between(now, as_utc(until))
        if not series:
            raise FeedError(f"{self.name}: its forecast holds nothing ahead of now")
        return series

    async def history(self, zone: str, start: datetime, end: datetime) -> IntensitySeries:
        check_zone(ZONE, zone, self.name)
        begin, end = as_utc(start), as_utc(end)
        slots: list[CarbonIntensity] = []
        while begin < end:
            stop = min(begin + MAX_RANGE, end)
            slots += await self._slots(f"/intensity/{_minute(begin)}/{_minute(stop)}")
            begin = stop
        series = IntensitySeries(slot for slot in slots if slot.kind is Kind.MEASURED).between(as_utc(start), end)
        if not series:
            raise FeedError(f"{self.name}: no measured slot between {start:%Y-%m-%d} and {end:%Y-%m-%d}")
        return series

    async def close(self) -> None:
        await self._http.close()


def _minute(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%MZ")
