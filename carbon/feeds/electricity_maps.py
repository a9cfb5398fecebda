"""Electricity Maps API v3: average intensity of consumption, hourly. Needs a token (header `auth-token`)."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from carbon.feeds.feed import FeedError
from carbon.feeds.http import FeedHttp
from carbon.feeds.parsing import check_skew, check_zone, grams, items, member, utc_time
from carbon.intensity import Basis, Boundary, CarbonIntensity, Kind, Methodology, Mix, as_utc
from carbon.series import IntensitySeries

HOST = "api.electricitymaps.com"
HOUR = timedelta(hours=1)
MAX_RANGE = timedelta(days=10)


class ElectricityMapsFeed:
    """`boundary` chooses the emission factors and is asked for in every request. The zone is always sent and checked,
    because without one the service falls back to the caller's address."""

    def __init__(
        self,
        http: FeedHttp,
        token: str,
        boundary: Boundary = Boundary.LIFECYCLE,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.name = "electricity_maps"
        self.methodology = Methodology(Basis.AVERAGE, boundary, Mix.CONSUMPTION)
        self._http = http
        self._headers = {"auth-token": token}
        self._now = now

    async def _get(self, path: str, zone: str, **params: str) -> Any:
        query = {
            "zone": zone,
            "emissionFactorType": str(self.methodology.boundary),
            "temporalGranularity": "hourly",
            **params,
        }
        answer = await self._http.get_json(f"/v3/carbon-intensity/{path}", query, self._headers)
        if isinstance(answer, dict) and answer.get("status") == "no-data":
            raise FeedError(f"{self.name}: no data for zone {zone!r}")
        check_zone(member(answer, "zone", self.name), zone, self.name)
        return answer

    def _point(self, item: Any, zone: str, kind: Kind | None = None, issued: Any = None) -> CarbonIntensity | None:
        """One value; None where it is null."""
        value = grams(member(item, "carbonIntensity", self.name), self.name)
        if value is None:
            return None
        factors = item.get("emissionFactorType")
        if factors is not None and factors != self.methodology.boundary:
            raise FeedError(f"{self.name}: asked for {self.methodology.boundary} factors, got {factors!r}")
        start = utc_time(member(item, "datetime", self.name), self.name)
        updated = item.get("updatedAt", issued)
        estimated = bool(item.get("isEstimated", False))
        return CarbonIntensity(
            zone,
            start,
            start + HOUR,
            value,
            self.methodology,
            kind or (Kind.ESTIMATED if estimated else Kind.MEASURED),
            self.name,
            self._now(),
            None if updated is None else utc_time(updated, self.name),
            item.get("estimationMethod") if estimated else None,
        )

    async def current(self, zone: str) -> CarbonIntensity:
        point = self._point(await self._get("latest", zone), zone)
        if point is None:
            raise FeedError(f"{self.name}: the latest value of {zone!r} is null")
        check_skew(point.start, self._now(), self.name)
        return point

    async def forecast(self, zone: str, until: datetime) -> IntensitySeries:
        answer = await self._get("forecast", zone)
        issued = answer.get("updatedAt")
        points = [self._point(item, zone, Kind.FORECAST, issued) for item in items(answer, "forecast", self.name)]
        return self._series([point for point in points if point], self._now(), as_utc(until))

    async def history(self, zone: str, start: datetime, end: datetime) -> IntensitySeries:
        """The last 24 hours come from `history`, anything older from `past-range` in spans of at most 10 days."""
        start, end = as_utc(start), as_utc(end)
        points: list[CarbonIntensity | None] = []
        if start >= self._now() - timedelta(hours=23):
            answer = await self._get("history", zone)
            points = [self._point(item, zone) for item in items(answer, "history", self.name)]
        else:
            begin = start
            while begin < end:
                stop = min(begin + MAX_RANGE, end)
                answer = await self._get("past-range", zone, start=_iso(begin), end=_iso(stop))
                found = member(answer, "data", self.name)
                if not isinstance(found, list):
                    raise FeedError(f"{self.name}: field 'data' is not a list")
                points += [self._point(item, zone) for item in found]
                begin = stop
        return self._series([point for point in points if point], start, end)

    def _series(self, points: list[CarbonIntensity], start: datetime, end: datetime) -> IntensitySeries:
        series = IntensitySeries(points).between(start, end)
        if not series:
            raise FeedError(f"{self.name}: no value between {start:%Y-%m-%d %H:%MZ} and {end:%Y-%m-%d %H:%MZ}")
        return series

    async def close(self) -> None:
        await self._http.close()


def _iso(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
