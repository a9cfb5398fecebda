"""An intensity an operator declares: a private supply, a yearly figure, an offline test bench."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from carbon.feeds.feed import NotOfferedError
from carbon.intensity import CarbonIntensity, Kind, Methodology, as_utc, check_g_per_kwh
from carbon.series import IntensitySeries

HOUR = timedelta(hours=1)


class ConstantFeed:
    """The same value for every hour and zone, of kind `assumed`."""

    def __init__(
        self,
        g_per_kwh: float,
        methodology: Methodology,
        source: str,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.name = "constant"
        self.methodology = methodology
        self._g_per_kwh = check_g_per_kwh(g_per_kwh)
        self._source = source
        self._now = now

    def _hour(self, zone: str, start: datetime) -> CarbonIntensity:
        return CarbonIntensity(
            zone, start, start + HOUR, self._g_per_kwh, self.methodology, Kind.ASSUMED, self._source, self._now()
        )

    async def current(self, zone: str) -> CarbonIntensity:
        return self._hour(zone, _hour_of(self._now()))

    async def forecast(self, zone: str, until: datetime) -> IntensitySeries:
        start = _hour_of(self._now())
        hours = max(1, -(-int((as_utc(until) - start).total_seconds()) // 3600))
        return IntensitySeries(self._hour(zone, start + index * HOUR) for index in range(hours))

    async def history(self, zone: str, start: datetime, end: datetime) -> IntensitySeries:
        raise NotOfferedError("a constant has no history; use a file or a provider for past values")

    async def close(self) -> None:
        return None


def _hour_of(moment: datetime) -> datetime:
    return as_utc(moment).replace(minute=0, second=0, microsecond=0)
