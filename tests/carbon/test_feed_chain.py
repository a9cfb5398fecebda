"""The chain: what is at hand is used, what it is travels with it, and nothing waits."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from carbon.feed_chain import FeedChain, mean_of
from carbon.feeds.constant import ConstantFeed
from carbon.feeds.feed import FeedError, NotOfferedError
from carbon.feeds.recorded import RecordedFeed
from carbon.intensity import (
    Basis,
    Boundary,
    CarbonIntensity,
    IncomparableError,
    Kind,
    Methodology,
    Tier,
)
from carbon.series import IntensitySeries

DIRECT = Methodology(Basis.AVERAGE, Boundary.DIRECT)
START = datetime(2025, 3, 4, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


class Clock:
    def __init__(self) -> None:
        self.now = START + timedelta(minutes=10)

    def __call__(self) -> datetime:
        return self.now


class Scripted:
    """Answers from a list: a value to serve, a delay in hours of its data, or an error to raise."""

    def __init__(self, name, clock, answers, methodology=DIRECT, gate=None):
        self.name, self.methodology = name, methodology
        self.clock, self.answers, self.gate = clock, list(answers), gate
        self.calls = 0

    async def current(self, zone):
        self.calls += 1
        if self.gate is not None:
            await self.gate.wait()
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        value, hours_late = answer if isinstance(answer, tuple) else (answer, 0)
        start = self.clock().replace(minute=0, second=0) - hours_late * HOUR
        return CarbonIntensity(zone, start, start + HOUR, value, DIRECT, Kind.MEASURED, self.name, self.clock())

    async def forecast(self, zone, until):
        raise NotOfferedError("none")

    async def history(self, zone, start, end):
        raise NotOfferedError("none")

    async def close(self):
        return None


@pytest.fixture
def clock():
    return Clock()


def chain(clock, *feeds, **settings):
    return FeedChain("GB", feeds, now=clock, jitter=lambda: 1.0, **settings)


def zone_mean(clock):
    return CarbonIntensity("GB", START - 9 * HOUR, START, 200.0, DIRECT, Kind.ASSUMED, "file", clock(), method="mean")


async def test_before_any_answer_there_is_no_number_and_a_reason(clock):
    reading = chain(clock, Scripted("a", clock, [100.0])).reading()
    assert (reading.tier, reading.g_per_kwh) == (Tier.UNKNOWN, None)
    assert "no source has answered" in (reading.reason or "")


async def test_tiers_follow_from_live_to_unknown(clock):
    feed = Scripted("a", clock, [100.0, FeedError("down")])
    links = chain(clock, feed, stale_after_s=3600.0, zone_mean=zone_mean(clock))
    await links.refresh()
    assert links.reading().tier is Tier.LIVE
    clock.now += HOUR
    await links.refresh()
    stale = links.reading()
    assert (stale.tier, stale.g_per_kwh, stale.age_s) == (Tier.STALE, 100.0, 600.0)
    assert "down" in (stale.reason or "")
    clock.now += HOUR
    mean = links.reading()
    assert (mean.tier, mean.g_per_kwh) == (Tier.ZONE_MEAN, 200.0)
    bare = chain(clock, Scripted("a", clock, [FeedError("down")]))
    await bare.refresh()
    assert bare.reading().tier is Tier.UNKNOWN


async def test_one_fetch_an_interval(clock):
    feed = Scripted("a", clock, [100.0])
    links = chain(clock, feed)
    for _ in range(5):
        await links.refresh()
        clock.now += timedelta(minutes=10)
    assert feed.calls == 1
    assert links.reading().tier is Tier.STALE
    await links.refresh()
    assert feed.calls == 2


async def test_concurrent_callers_share_one_flight_and_reading_never_waits(clock):
    gate = asyncio.Event()
    feed = Scripted("a", clock, [100.0], gate=gate)
    links = chain(clock, feed)
    callers = [asyncio.create_task(links.refresh()) for _ in range(20)]
    for _ in range(5):
        await asyncio.sleep(0)
    assert feed.calls == 1
    assert links.reading().tier is Tier.UNKNOWN
    callers[0].cancel()
    gate.set()
    await asyncio.gather(*callers, return_exceptions=True)
    assert feed.calls == 1
    assert links.reading().g_per_kwh == 100.0


async def test_the_second_source_steps_in_and_is_named(clock):
    first = Scripted("first", clock, [FeedError("429", retry_after_s=600.0), 90.0])
    second = Scripted("second", clock, [150.0])
    links = chain(clock, first, second)
    await links.refresh()
    reading = links.reading()
    assert reading.intensity is not None
    assert (reading.intensity.source, reading.tier) == ("second", Tier.LIVE)
    clock.now += timedelta(minutes=9)
    clock.now += timedelta(minutes=41)
    await links.refresh()
    assert links.reading().g_per_kwh == 90.0


async def test_a_source_that_asked_for_patience_is_left_alone(clock):
    feed = Scripted("a", clock, [FeedError("429", retry_after_s=600.0), 90.0])
    links = chain(clock, feed)
    await links.refresh()
    assert links.seconds_to_next_refresh() == 600.0
    clock.now += timedelta(seconds=599)
    await links.refresh()
    assert feed.calls == 1
    clock.now += timedelta(seconds=1)
    await links.refresh()
    assert feed.calls == 2
    assert links.health[0].failures == 0


async def test_failures_back_off_further_each_time(clock):
    feed = Scripted("a", clock, [FeedError("down")])
    links = chain(clock, feed)
    waits = []
    for _ in range(8):
        await links.refresh()
        waits.append(links.seconds_to_next_refresh())
        clock.now += timedelta(seconds=waits[-1])
    assert waits[:4] == [30.0, 60.0, 120.0, 240.0]
    assert waits[-1] == 900.0


async def test_a_source_that_breaks_in_an_unforeseen_way_is_shown_and_passed_over(clock):
    links = chain(clock, Scripted("broken", clock, [RuntimeError("bug")]), Scripted("sound", clock, [120.0]))
    await links.refresh()
    assert links.reading().g_per_kwh == 120.0
    assert links.health[0].last_error == "bug"
    await links.refresh_forecast(24)
    assert links.series_errors == {"broken": "none", "sound": "none"}


async def test_a_provider_whose_clock_is_a_little_ahead_is_live(clock):
    clock.now = START + timedelta(minutes=59)
    links = chain(clock, Scripted("ahead", clock, [(100.0, -1)]))
    await links.refresh()
    assert links.reading().tier is Tier.LIVE
    clock.now = START + timedelta(minutes=30)
    assert links.reading().tier is Tier.UNKNOWN


async def test_late_data_is_stale_and_a_fresher_source_is_preferred(clock):
    late = Scripted("late", clock, [(100.0, 2)])
    links = chain(clock, late, stale_after_s=7200.0)
    await links.refresh()
    assert (links.reading().tier, links.reading().age_s) == (Tier.STALE, 4200.0)
    both = chain(clock, Scripted("late", clock, [(100.0, 2)]), Scripted("fresh", clock, [120.0]))
    await both.refresh()
    assert both.reading().g_per_kwh == 120.0


async def test_methodologies_never_mix_in_a_chain(clock):
    marginal = Methodology(Basis.MARGINAL, Boundary.DIRECT)
    with pytest.raises(IncomparableError):
        chain(clock, Scripted("a", clock, [1.0]), Scripted("b", clock, [1.0], methodology=marginal))
    lifecycle = ConstantFeed(100.0, Methodology(Basis.AVERAGE, Boundary.LIFECYCLE), "declared", clock)
    with pytest.raises(IncomparableError):
        chain(clock, lifecycle, zone_mean=zone_mean(clock))
    with pytest.raises(ValueError, match="at least one"):
        chain(clock)


async def test_a_constant_is_live_and_assumed(clock):
    links = chain(clock, ConstantFeed(40.0, DIRECT, "campus solar", clock))
    await links.refresh()
    await links.refresh_forecast(24)
    reading, forecast = links.reading(), links.forecast()
    assert reading.intensity is not None
    assert (reading.intensity.kind, reading.intensity.source) == (Kind.ASSUMED, "campus solar")
    assert forecast is not None
    assert len(forecast.series) == 25


async def test_the_seasonal_model_steps_in_where_no_source_forecasts(clock):
    hours = 10 * 168
    first = START - hours * HOUR
    values = 200 + 80 * np.sin(np.arange(hours) * 2 * np.pi / 24)

    def point(index):
        begin = first + index * HOUR
        return CarbonIntensity("GB", begin, begin + HOUR, float(values[index]), DIRECT, Kind.MEASURED, "f", START)

    recorded = RecordedFeed(IntensitySeries(point(i) for i in range(hours)), now=clock)
    recorded.forecast = Scripted("x", clock, [1.0]).forecast
    links = chain(clock, recorded)
    await links.refresh_forecast(24)
    forecast = links.forecast()
    assert forecast is not None
    assert forecast.model is not None
    assert forecast.series[0].kind is Kind.FORECAST
    assert forecast.series[0].low <= forecast.series[0].g_per_kwh <= forecast.series[0].high
    assert forecast.model.error.mae_g_per_kwh < 1.0


async def test_without_source_or_history_there_is_no_forecast(clock):
    links = chain(clock, Scripted("a", clock, [1.0]))
    await links.refresh_forecast(24)
    assert links.forecast() is None


async def test_the_mean_of_a_recording_is_called_a_mean(clock):
    series = IntensitySeries(
        CarbonIntensity("GB", START + i * HOUR, START + (i + 1) * HOUR, 100.0 * i, DIRECT, Kind.MEASURED, "f", START)
        for i in range(3)
    )
    mean = mean_of(series, clock())
    assert (mean.g_per_kwh, mean.kind) == (100.0, Kind.ASSUMED)
    assert "mean of" in (mean.method or "")
