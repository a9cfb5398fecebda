"""A zone's intensity from several sources in order of preference, always at hand and never waited for.

`reading()` answers from memory at once. `refresh()` asks the sources, one caller at a time, once an interval. When all
fail, the last value is used while it is young enough (STALE), then the zone's mean (ZONE_MEAN), then nothing (UNKNOWN).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from carbon.feeds.feed import Feed, FeedError
from carbon.forecast import SeasonalModel, contiguous_tail, fit, forecast_series
from carbon.intensity import CarbonIntensity, IntensityReading, Kind, Methodology, Tier, require_comparable
from carbon.series import IntensitySeries

RETRY_S = 30.0
MAX_RETRY_S = 900.0
LATE_POLL_S = 300.0
FORECAST_EVERY = timedelta(hours=1)
HISTORY_WEEKS = 9
CLOCK_TOLERANCE = timedelta(minutes=5)


@dataclass(slots=True)
class FeedHealth:
    """What an operator wants to know of a source: when it last answered, and what it said when it did not."""

    name: str
    last_success: datetime | None = None
    last_error: str | None = None
    failures: int = 0
    not_before: datetime | None = None


@dataclass(frozen=True, slots=True)
class Forecast:
    """`model` is set when the seasonal model made it rather than a source."""

    series: IntensitySeries
    source: str
    made_at: datetime
    model: SeasonalModel | None = None


class FeedChain:
    """`feeds`: most wanted first, all of one basis and boundary (else `IncomparableError`). `zone_mean`: the last
    resort, a value of kind ASSUMED or the mean of a recorded series. `stale_after_s`: how long after its interval a
    value may still be used. `series_errors`: why a source gave no forecast or history, by name."""

    def __init__(
        self,
        zone: str,
        feeds: Sequence[Feed],
        *,
        stale_after_s: float = 3600.0,
        zone_mean: CarbonIntensity | None = None,
        zones_of_feeds: dict[str, str] | None = None,
        fetch_timeout_s: float = 60.0,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        jitter: Callable[[], float] = random.random,
    ) -> None:
        if not feeds:
            raise ValueError("a feed chain needs at least one feed; declare a constant if there is no source")
        for feed in feeds[1:]:
            require_comparable(feeds[0].methodology, feed.methodology)
        if zone_mean is not None:
            require_comparable(feeds[0].methodology, zone_mean.methodology)
        if stale_after_s < 0:
            raise ValueError(f"stale_after_s must be at least 0, got {stale_after_s:g}")
        self.zone = zone
        self.health = [FeedHealth(feed.name) for feed in feeds]
        self._feeds = list(feeds)
        self._zones = zones_of_feeds or {}
        self._stale_after = timedelta(seconds=stale_after_s)
        self._zone_mean = zone_mean
        self._fetch_timeout_s = fetch_timeout_s
        self._now = now
        self._jitter = jitter
        self._value: CarbonIntensity | None = None
        self._forecast: Forecast | None = None
        self.series_errors: dict[str, str] = {}
        self._flight: asyncio.Task[None] | None = None

    @property
    def methodology(self) -> Methodology:
        return self._feeds[0].methodology

    def reading(self) -> IntensityReading:
        """The best value at hand, with its tier. Touches nothing but memory."""
        now, value = self._now(), self._value
        if value is not None and _holds(value, now):
            return IntensityReading(value, Tier.LIVE, 0.0)
        why = self._why()
        if value is not None and value.end <= now and now - value.end <= self._stale_after:
            return IntensityReading(value, Tier.STALE, (now - value.end).total_seconds(), why)
        if self._zone_mean is not None:
            return IntensityReading(self._zone_mean, Tier.ZONE_MEAN, None, why)
        return IntensityReading(None, Tier.UNKNOWN, None, why)

    def _why(self) -> str:
        errors = [f"{health.name}: {health.last_error}" for health in self.health if health.last_error]
        return "; ".join(errors) or ("no source has newer data" if self._value else "no source has answered yet")

    async def refresh(self) -> None:
        """Bring the value up to date if its interval is over. Concurrent callers share one fetch."""
        if self._flight is None or self._flight.done():
            self._flight = asyncio.create_task(self._refresh())
        await asyncio.shield(self._flight)

    async def _refresh(self) -> None:
        if self._value is not None and _holds(self._value, self._now()):
            return
        best = self._value
        for feed, health in zip(self._feeds, self.health):
            now = self._now()
            if health.not_before is not None and now < health.not_before:
                continue
            found = await self._ask(feed, health)
            if found is not None and (best is None or found.end > best.end):
                best = found
            if best is not None and _holds(best, self._now()):
                break
        self._value = best

    async def _ask(self, feed: Feed, health: FeedHealth) -> CarbonIntensity | None:
        try:
            async with asyncio.timeout(self._fetch_timeout_s):
                value = await feed.current(self._zones.get(feed.name, self.zone))
            require_comparable(self.methodology, value.methodology)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one source, it is shown and the next is asked
            self._failed(health, error)
            return None
        health.last_success, health.last_error, health.failures = self._now(), None, 0
        late = not _holds(value, self._now())
        # A source that is late is asked again after a while, not in a loop.
        health.not_before = self._now() + timedelta(seconds=LATE_POLL_S) if late else None
        return value

    def _failed(self, health: FeedHealth, error: Exception) -> None:
        health.failures += 1
        health.last_error = str(error) or type(error).__name__
        asked = error.retry_after_s if isinstance(error, FeedError) else None
        backoff = min(MAX_RETRY_S, RETRY_S * 2 ** min(health.failures - 1, 10)) * (0.5 + 0.5 * self._jitter())
        health.not_before = self._now() + timedelta(seconds=max(backoff, asked or 0.0))

    def seconds_to_next_refresh(self) -> float:
        """When `refresh` can next do something useful: at the value's end, or when a source may be asked again."""
        now = self._now()
        if self._value is not None and _holds(self._value, now):
            return max(1.0, (self._value.end - now).total_seconds())
        waits = [
            (health.not_before - now).total_seconds() if health.not_before is not None else 0.0
            for health in self.health
        ]
        return max(1.0, min(waits))

    async def run(self) -> None:
        """Keep the value and the forecast fresh until cancelled."""
        while True:
            await self.refresh()
            await self.refresh_forecast()
            await asyncio.sleep(min(self.seconds_to_next_refresh(), LATE_POLL_S))

    def forecast(self) -> Forecast | None:
        """The newest forecast at hand; None before the first."""
        return self._forecast

    async def refresh_forecast(self, horizon_h: int = 72, *, model_only: bool = False) -> None:
        """Fetch or model the hours ahead, at most once an hour. Without a source and without history: none.

        `model_only`: do not ask sources for theirs (a recording's "forecast" is what came to pass).
        """
        now = self._now()
        if self._forecast is not None and now - self._forecast.made_at < FORECAST_EVERY:
            return
        until = now + timedelta(hours=horizon_h)
        for feed in () if model_only else self._feeds:
            series = await self._series_of(feed, feed.forecast(self._zones.get(feed.name, self.zone), until))
            if series:
                self._forecast = Forecast(series, feed.name, now)
                return
        await self._model_forecast(horizon_h)

    async def history(self, start: datetime, end: datetime) -> IntensitySeries | None:
        """What the first source that has a past tells of `[start, end)`; None when none has."""
        for feed in self._feeds:
            series = await self._series_of(feed, feed.history(self._zones.get(feed.name, self.zone), start, end))
            if series:
                return series
        return None

    async def _series_of(self, feed: Feed, asked: Coroutine[Any, Any, IntensitySeries]) -> IntensitySeries | None:
        try:
            async with asyncio.timeout(self._fetch_timeout_s):
                series = await asked
        except Exception as error:  # noqa: BLE001 - a forecast or a past is a help, never a need; the reason is kept
            self.series_errors[feed.name] = str(error) or type(error).__name__
            return None
        self.series_errors.pop(feed.name, None)
        return series

    async def _model_forecast(self, horizon_h: int) -> None:
        now = self._now()
        history = await self.history(now - timedelta(weeks=HISTORY_WEEKS), now)
        if not history:
            return
        try:
            tail = contiguous_tail(history)
            model = await asyncio.to_thread(fit, tail.values(), tail[0].start, horizon_h)
            series = forecast_series(tail, model, horizon_h, now)
        except ValueError:
            return
        self._forecast = Forecast(series, f"seasonal model on {history[0].source}", now, model)

    async def close(self) -> None:
        for feed in self._feeds:
            await feed.close()


def _holds(value: CarbonIntensity, now: datetime) -> bool:
    """Whether it holds now, two clocks allowed to differ a little at the turn of an interval."""
    return value.start - CLOCK_TOLERANCE <= now < value.end


def mean_of(series: IntensitySeries, fetched_at: datetime) -> CarbonIntensity:
    """The zone mean of a recorded series, as the last resort of a chain: an interval of the whole recording."""
    first, last = series[0], series[len(series) - 1]
    method = f"mean of {first.start:%Y-%m-%d} to {last.end:%Y-%m-%d}"
    return CarbonIntensity(
        first.zone,
        first.start,
        last.end,
        series.mean(),
        first.methodology,
        Kind.ASSUMED,
        first.source,
        fetched_at,
        method=method,
    )
