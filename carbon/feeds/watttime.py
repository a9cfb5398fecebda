"""WattTime API v3: marginal (MOER) or average (AOER) intensity, 5-minute, in lbs of CO2 per MWh.

The free `signal-index` is a percentile and never read. A token lives 30 minutes; an expired one is renewed once.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from carbon.feeds.feed import FeedError
from carbon.feeds.http import AccessError, FeedHttp
from carbon.feeds.parsing import check_skew, check_zone, grams, items, member, steps, utc_time
from carbon.intensity import Basis, Boundary, CarbonIntensity, Kind, Methodology, Mix, as_utc
from carbon.series import IntensitySeries

HOST = "api.watttime.org"
STEP = timedelta(minutes=5)
TOKEN_LIFE = timedelta(minutes=25)
MAX_RANGE = timedelta(days=30)
MAX_HORIZON_H = 72
SIGNALS = {"co2_moer": Basis.MARGINAL, "co2_aoer": Basis.AVERAGE}


class WattTimeFeed:
    """`zone` is a WattTime region. Raises `ValueError` for a signal that is not grams of CO2."""

    def __init__(
        self,
        http: FeedHttp,
        user: str,
        password: str,
        signal: str = "co2_moer",
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        if signal not in SIGNALS:
            raise ValueError(f"signal {signal!r} is not a carbon intensity; choose one of {', '.join(SIGNALS)}")
        self.name = "watttime"
        self.methodology = Methodology(SIGNALS[signal], Boundary.DIRECT, Mix.PRODUCTION)
        self._signal = signal
        self._http = http
        self._login_header = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        self._now = now
        self._token: str | None = None
        self._token_until = datetime.min.replace(tzinfo=UTC)
        self._login_lock = asyncio.Lock()

    async def _bearer(self, *, refused: str | None = None) -> str:
        """A token that is not `refused`; one login at a time."""
        async with self._login_lock:
            if self._token is None or self._token == refused or self._now() >= self._token_until:
                answer = await self._http.get_json("/login", headers={"authorization": self._login_header})
                token = member(answer, "token", self.name)
                if not isinstance(token, str) or not token:
                    raise FeedError(f"{self.name}: the login gave no token", permanent=True)
                self._token = token
                self._token_until = self._now() + TOKEN_LIFE
            return self._token

    async def _get(self, path: str, zone: str, **params: str) -> Any:
        query = {"region": zone, "signal_type": self._signal, **params}
        token = await self._bearer()
        try:
            answer = await self._http.get_json(path, query, {"authorization": f"Bearer {token}"})
        except AccessError:
            token = await self._bearer(refused=token)
            answer = await self._http.get_json(path, query, {"authorization": f"Bearer {token}"})
        check_zone(member(member(answer, "meta", self.name), "region", self.name), zone, self.name)
        return answer

    def _points(self, answer: Any, zone: str, kind: Kind) -> IntensitySeries:
        meta = member(answer, "meta", self.name)
        unit = member(meta, "units", self.name)
        rows = items(answer, "data", self.name)
        starts = [utc_time(member(row, "point_time", self.name), self.name) for row in rows]
        step = steps(starts, STEP)
        issued = meta.get("generated_at")
        issued_at = None if issued is None else utc_time(issued, self.name)
        points = []
        for row, start in zip(rows, starts):
            value = grams(member(row, "value", self.name), self.name, str(unit))
            if value is not None:
                points.append(
                    CarbonIntensity(
                        zone,
                        start,
                        start + step,
                        value,
                        self.methodology,
                        kind,
                        self.name,
                        self._now(),
                        issued_at,
                        self._signal,
                    )
                )
        return IntensitySeries(points)

    async def current(self, zone: str) -> CarbonIntensity:
        """The first point of the newest forecast, which is the present five minutes."""
        series = self._points(await self._get("/v3/forecast", zone, horizon_hours="1"), zone, Kind.FORECAST)
        found = series.latest_before(self._now())
        if found is None:
            if series:
                check_skew(series[0].start, self._now(), self.name)
                return series[0]
            raise FeedError(f"{self.name}: every value of {zone!r} is null")
        return found

    async def forecast(self, zone: str, until: datetime) -> IntensitySeries:
        now = self._now()
        hours = min(MAX_HORIZON_H, max(1, -(-int((as_utc(until) - now).total_seconds()) // 3600)))
        series = self._points(await self._get("/v3/forecast", zone, horizon_hours=str(hours)), zone, Kind.FORECAST)
        series = series.between(now, as_utc(until))
        if not series:
            raise FeedError(f"{self.name}: its forecast holds nothing ahead of now")
        return series

    async def history(self, zone: str, start: datetime, end: datetime) -> IntensitySeries:
        begin, end = as_utc(start), as_utc(end)
        points: list[CarbonIntensity] = []
        while begin < end:
            stop = min(begin + MAX_RANGE, end)
            params = {"start": _iso(begin), "end": _iso(stop)}
            points += self._points(await self._get("/v3/historical", zone, **params), zone, Kind.ESTIMATED)
            begin = stop
        # Both ends of the service's range are inclusive; `between` makes the end exclusive.
        series = IntensitySeries(points).between(as_utc(start), end)
        if not series:
            raise FeedError(f"{self.name}: every value of {zone!r} is null in that range")
        return series

    async def close(self) -> None:
        await self._http.close()


def _iso(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M+00:00")
