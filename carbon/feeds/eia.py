"""EIA v2 (United States): hourly generation by fuel of a balancing authority, an hour to a day late.

A production intensity computed from the mix. The newest hours often lack fuels and are left out until complete.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from carbon.feeds.emission_factors import intensity_of_mix
from carbon.feeds.feed import FeedError, NotOfferedError
from carbon.feeds.http import FeedHttp
from carbon.feeds.parsing import check_zone, items, member
from carbon.intensity import Basis, Boundary, CarbonIntensity, Kind, Methodology, Mix, as_utc
from carbon.series import IntensitySeries

HOST = "api.eia.gov"
HOUR = timedelta(hours=1)
PAGE = 5000
MAX_PAGES = 60
RECENT = timedelta(hours=36)
FUELS = {
    "COL": "coal",
    "NG": "gas",
    "NUC": "nuclear",
    "OIL": "oil",
    "OTH": "unknown",
    "UNK": "unknown",
    "SUN": "solar",
    "SNB": "solar",
    "WAT": "hydro",
    "WND": "wind",
    "WNB": "wind",
    "GEO": "geothermal",
}
STORAGE = frozenset({"BAT", "PS", "OES", "UES"})


class EiaFeed:
    """`zone` is a respondent: CISO, ERCO, PJM, MISO, NYIS, ISNE, SWPP, US48 and so on."""

    def __init__(
        self,
        http: FeedHttp,
        api_key: str,
        boundary: Boundary = Boundary.LIFECYCLE,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.name = "eia"
        self.methodology = Methodology(Basis.AVERAGE, boundary, Mix.PRODUCTION)
        self._http = http
        self._key = api_key
        self._now = now

    async def current(self, zone: str) -> CarbonIntensity:
        """The newest complete hour, which is rarely the present one: the chain then calls it stale."""
        now = self._now()
        series = await self.history(zone, now - RECENT, now)
        return series[len(series) - 1]

    async def forecast(self, zone: str, until: datetime) -> IntensitySeries:
        raise NotOfferedError(f"{self.name} publishes no forecast of the mix; the seasonal model is used instead")

    async def history(self, zone: str, start: datetime, end: datetime) -> IntensitySeries:
        start, end = as_utc(start), as_utc(end)
        by_hour: dict[datetime, dict[str, float]] = defaultdict(dict)
        for row in await self._rows(zone, start, end):
            self._take(row, zone, by_hour)
        points = self._intensities(zone, by_hour)
        series = IntensitySeries(points).between(start, end)
        if not series:
            raise FeedError(f"{self.name}: no complete hour for {zone!r}")
        return series

    async def _rows(self, zone: str, start: datetime, end: datetime) -> list[Any]:
        rows: list[Any] = []
        for page in range(MAX_PAGES):
            params = {
                "api_key": self._key,
                "frequency": "hourly",
                "data[0]": "value",
                "facets[respondent][]": zone,
                "start": _hour(start),
                "end": _hour(end + HOUR),
                "sort[0][column]": "period",
                "sort[0][direction]": "asc",
                "offset": str(page * PAGE),
                "length": str(PAGE),
            }
            answer = await self._http.get_json("/v2/electricity/rto/fuel-type-data/data/", params)
            response = member(answer, "response", self.name)
            found = items(response, "data", self.name)
            rows += found
            try:
                total = int(member(response, "total", self.name))
            except (TypeError, ValueError):
                raise FeedError(f"{self.name}: field 'total' is not a count") from None
            if len(rows) >= total:
                return rows
        raise FeedError(f"{self.name}: more than {MAX_PAGES} pages; ask for a shorter range")

    def _take(self, row: Any, zone: str, by_hour: dict[datetime, dict[str, float]]) -> None:
        check_zone(member(row, "respondent", self.name), zone, self.name)
        unit = member(row, "value-units", self.name)
        if unit != "megawatthours":
            raise FeedError(f"{self.name}: generation in {unit!r} instead of megawatthours")
        fuel, value = member(row, "fueltype", self.name), member(row, "value", self.name)
        if fuel in STORAGE or value is None:
            return
        if fuel not in FUELS:
            raise FeedError(f"{self.name}: unknown fuel {fuel!r}")
        try:
            # EIA-930 stamps an hour with its end.
            end = datetime.strptime(str(member(row, "period", self.name)), "%Y-%m-%dT%H").replace(tzinfo=UTC)
            by_hour[end - HOUR][fuel] = float(value)
        except (TypeError, ValueError):
            raise FeedError(f"{self.name}: row {row!r} cannot be read") from None

    def _intensities(self, zone: str, by_hour: dict[datetime, dict[str, float]]) -> list[CarbonIntensity]:
        """Complete hours: those with every fuel that at least half of the hours report."""
        seen = Counter(fuel for fuels in by_hour.values() for fuel in fuels)
        expected = {fuel for fuel, count in seen.items() if count * 2 >= len(by_hour)}
        points = []
        for start, fuels in by_hour.items():
            if not expected <= set(fuels):
                continue
            mix: dict[str, float] = defaultdict(float)
            for fuel, value in fuels.items():
                mix[FUELS[fuel]] += value
            try:
                value = intensity_of_mix(mix, self.methodology.boundary)
            except ValueError as error:
                raise FeedError(f"{self.name}: {error}") from None
            points.append(
                CarbonIntensity(
                    zone,
                    start,
                    start + HOUR,
                    value,
                    self.methodology,
                    Kind.ESTIMATED,
                    self.name,
                    self._now(),
                    method="generation mix x emission factors",
                )
            )
        return points

    async def close(self) -> None:
        await self._http.close()


def _hour(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H")
