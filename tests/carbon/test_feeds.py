"""One contract for every feed, run against its emulator, and the fault matrix."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

import httpx
import pytest

import carbon.feeds.eia
from carbon.feeds.carbon_aware_sdk import CarbonAwareSdkFeed
from carbon.feeds.eia import EiaFeed
from carbon.feeds.electricity_maps import ElectricityMapsFeed
from carbon.feeds.entsoe import EntsoeFeed
from carbon.feeds.feed import FeedError, NotOfferedError
from carbon.feeds.http import FeedHttp, HttpLimits, retry_after_s
from carbon.feeds.uk_grid import UkGridFeed
from carbon.feeds.watttime import WattTimeFeed
from carbon.intensity import Basis, Boundary, Kind, Methodology
from tests.carbon.emulators.base import wave
from tests.carbon.emulators.carbon_aware_sdk import CarbonAwareSdkEmulator
from tests.carbon.emulators.eia import EiaEmulator
from tests.carbon.emulators.electricity_maps import ElectricityMapsEmulator
from tests.carbon.emulators.entsoe import EntsoeEmulator
from tests.carbon.emulators.uk_grid import UkGridEmulator
from tests.carbon.emulators.watttime import WattTimeEmulator

LIFECYCLE = Methodology(Basis.AVERAGE, Boundary.LIFECYCLE)
MIX_G_PER_KWH = 130.75

# Ordinary days, and both days on which European clocks change.
NOWS = {
    "ordinary": datetime(2025, 3, 4, 12, 20, tzinfo=UTC),
    "spring": datetime(2025, 3, 30, 1, 40, tzinfo=UTC),
    "autumn": datetime(2025, 10, 26, 1, 10, tzinfo=UTC),
}


class Bench:
    """A feed, its emulator, and the waits the client asked for instead of sleeping."""

    def __init__(self, name: str, now: datetime) -> None:
        self.waits: list[float] = []
        self.now = now
        self.name = name
        make = getattr(self, f"_{name}")
        self.emulator, self.feed = make()

    def http(self, emulator, url="https://grid.example") -> FeedHttp:
        async def sleep(seconds: float) -> None:
            self.waits.append(seconds)

        host = httpx.URL(url).host
        limits = HttpLimits(total_s=0.2 if "timeout" in self.__dict__.get("faults", ()) else 5.0)
        return FeedHttp(
            url,
            allowed_hosts=frozenset({host}),
            limits=limits,
            transport=httpx.ASGITransport(app=emulator),
            sleep=sleep,
            jitter=lambda: 1.0,
        )

    def _electricity_maps(self):
        emulator = ElectricityMapsEmulator(self.now)
        return emulator, ElectricityMapsFeed(self.http(emulator), "secret-token", now=lambda: self.now)

    def _watttime(self):
        emulator = WattTimeEmulator(self.now)
        return emulator, WattTimeFeed(self.http(emulator), "user", "pass", now=lambda: self.now)

    def _uk_grid(self):
        emulator = UkGridEmulator(self.now)
        return emulator, UkGridFeed(self.http(emulator), now=lambda: self.now)

    def _carbon_aware_sdk(self):
        emulator = CarbonAwareSdkEmulator(self.now)
        http = self.http(emulator, "http://127.0.0.1:8080")
        return emulator, CarbonAwareSdkFeed(http, LIFECYCLE, now=lambda: self.now)

    def _entsoe(self):
        emulator = EntsoeEmulator(self.now)
        return emulator, EntsoeFeed(self.http(emulator), "secret-token", now=lambda: self.now)

    def _eia(self):
        emulator = EiaEmulator(self.now)
        return emulator, EiaFeed(self.http(emulator), "secret-token", now=lambda: self.now)

    @property
    def zone(self) -> str:
        return self.emulator.zone

    @property
    def from_mix(self) -> bool:
        return self.name in ("entsoe", "eia")

    def expected(self, moment: datetime) -> float:
        return MIX_G_PER_KWH if self.from_mix else wave(moment)


FEEDS = ("electricity_maps", "watttime", "uk_grid", "carbon_aware_sdk", "entsoe", "eia")
WITH_FORECAST = ("electricity_maps", "watttime", "uk_grid", "carbon_aware_sdk")


@pytest.fixture(params=FEEDS)
def bench(request):
    return Bench(request.param, NOWS["ordinary"])


@pytest.mark.parametrize("day", NOWS)
@pytest.mark.parametrize("name", FEEDS)
async def test_current_is_the_newest_value_with_its_provenance(name, day):
    bench = Bench(name, NOWS[day])
    value = await bench.feed.current(bench.zone)
    assert value.g_per_kwh == pytest.approx(bench.expected(value.start))
    assert value.zone == bench.zone
    assert value.source == bench.feed.name
    assert value.methodology == bench.feed.methodology
    assert value.fetched_at == bench.now
    assert value.start.tzinfo is UTC
    assert value.start <= bench.now
    if not bench.from_mix and name != "carbon_aware_sdk":
        assert value.holds_at(bench.now)


@pytest.mark.parametrize("day", NOWS)
@pytest.mark.parametrize("name", FEEDS)
async def test_history_covers_the_range_without_overlap(name, day):
    bench = Bench(name, NOWS[day])
    start, end = bench.now - timedelta(hours=20), bench.now - timedelta(hours=5)
    series = await bench.feed.history(bench.zone, start, end)
    assert series[0].holds_at(start)
    assert series[len(series) - 1].start < end
    assert not series.gaps()
    assert all(a.end == b.start for a, b in itertools.pairwise(series))
    assert all(point.g_per_kwh == pytest.approx(bench.expected(point.start)) for point in series)
    assert {point.kind for point in series} <= {Kind.MEASURED, Kind.ESTIMATED}


async def test_a_long_history_is_asked_for_in_spans_the_service_allows(bench):
    series = await bench.feed.history(bench.zone, bench.now - timedelta(days=45), bench.now - timedelta(days=1))
    assert not series.gaps()
    assert series[len(series) - 1].end - series[0].start >= timedelta(days=44)


@pytest.mark.parametrize("name", WITH_FORECAST)
async def test_the_forecast_begins_now_and_is_called_one(name):
    bench = Bench(name, NOWS["ordinary"])
    series = await bench.feed.forecast(bench.zone, bench.now + timedelta(hours=10))
    assert series[0].holds_at(bench.now)
    assert {point.kind for point in series} == {Kind.FORECAST}
    assert timedelta(hours=9) <= series[len(series) - 1].end - bench.now <= timedelta(hours=11)
    bench.emulator.faults = {"short_forecast"}
    short = await bench.feed.forecast(bench.zone, bench.now + timedelta(hours=40))
    assert 0 < len(short) < 60


@pytest.mark.parametrize("name", ["entsoe", "eia"])
async def test_sources_without_a_forecast_say_so(name):
    bench = Bench(name, NOWS["ordinary"])
    with pytest.raises(NotOfferedError, match="seasonal"):
        await bench.feed.forecast(bench.zone, bench.now + timedelta(hours=10))


REFUSED = (
    "unauthorized", "forbidden", "throttled_long", "server_error", "redirect", "not_found", "not_json",
    "empty_object", "json_list", "not_a_number", "deep", "too_big", "empty_list", "null_value", "string_number",
    "wrong_zone", "units_changed",
)  # fmt: skip
NO_SUCH_FAULT = {
    ("uk_grid", "wrong_zone"),  # its answers name no zone
    ("electricity_maps", "empty_list"),  # its latest value is not a list
    ("entsoe", "json_list"),
}


@pytest.mark.parametrize("fault", REFUSED)
async def test_a_fault_is_a_feed_error_and_nothing_else(bench, fault):
    if (bench.name, fault) in NO_SUCH_FAULT:
        return
    bench.emulator.faults = {fault}
    with pytest.raises(FeedError) as caught:
        await bench.feed.current(bench.zone)
    assert "secret-token" not in str(caught.value)
    assert "dXNlcjpwYXNz" not in str(caught.value)
    assert fault != "too_big" or "bytes" in str(caught.value)


@pytest.mark.parametrize("name", FEEDS)
async def test_a_server_that_never_answers_is_given_up(name, monkeypatch):
    monkeypatch.setattr(Bench, "faults", {"timeout"}, raising=False)
    bench = Bench(name, NOWS["ordinary"])
    bench.feed._http._limits = HttpLimits(total_s=0.02)
    bench.emulator.faults = {"timeout"}
    with pytest.raises(FeedError, match="within"):
        await bench.feed.current(bench.zone)
    assert len(bench.waits) == 2


@pytest.mark.parametrize("fault", ["negative", "clock_skew"])
@pytest.mark.parametrize("name", ["electricity_maps", "watttime", "uk_grid"])
async def test_impossible_figures_and_clocks_are_refused(name, fault):
    bench = Bench(name, NOWS["ordinary"])
    bench.emulator.faults = {fault}
    with pytest.raises(FeedError, match=r"outside|clock|ahead"):
        await bench.feed.current(bench.zone)


@pytest.mark.parametrize("fault", ["server_error", "throttled", "timeout"])
async def test_one_hiccup_is_retried_with_backoff_and_served(bench, fault):
    if fault == "timeout":
        bench.feed._http._limits = HttpLimits(total_s=0.05)
    bench.emulator.once = {fault}
    value = await bench.feed.current(bench.zone)
    assert value.g_per_kwh == pytest.approx(bench.expected(value.start))
    assert bench.waits == [1.0 if fault == "throttled" else 0.5]


async def test_a_long_retry_after_is_handed_on_and_not_slept(bench):
    bench.emulator.faults = {"throttled_long"}
    with pytest.raises(FeedError) as caught:
        await bench.feed.current(bench.zone)
    assert caught.value.retry_after_s == 600.0
    assert bench.waits == []


async def test_late_data_is_returned_as_old_as_it_is(bench):
    if bench.name in ("watttime", "carbon_aware_sdk"):
        return  # their current value is asked for by time, so late data is no data
    bench.emulator.faults = {"missing_last_hours"}
    value = await bench.feed.current(bench.zone)
    assert value.end <= bench.now - timedelta(hours=2)


async def test_disorder_and_duplicates_do_not_reach_the_series(bench):
    bench.emulator.faults = {"disordered"}
    end = bench.now - timedelta(hours=5)
    series = await bench.feed.history(bench.zone, bench.now - timedelta(hours=20), end)
    assert all(a.end == b.start for a, b in itertools.pairwise(series))
    value = await bench.feed.current(bench.zone)
    assert value.start <= bench.now


async def test_gaps_in_the_source_stay_gaps(bench):
    bench.emulator.faults = {"gap"}
    series = await bench.feed.history(bench.zone, bench.now - timedelta(hours=20), bench.now - timedelta(hours=5))
    assert len(series.gaps()) == 1


async def test_watttime_logs_in_once_and_again_when_the_token_expires_mid_run():
    bench = Bench("watttime", NOWS["ordinary"])
    await bench.feed.current(bench.zone)
    await bench.feed.current(bench.zone)
    assert bench.emulator.logins == 1
    bench.emulator.once = {"token_expired"}
    await bench.feed.current(bench.zone)
    assert bench.emulator.logins == 2
    bench.now += timedelta(minutes=26)
    bench.emulator.now = bench.now
    await bench.feed.current(bench.zone)
    assert bench.emulator.logins == 3
    bench.emulator.faults = {"token_expired"}
    with pytest.raises(FeedError, match="401"):
        await bench.feed.current(bench.zone)


async def test_watttime_refuses_the_percentile_index():
    bench = Bench("watttime", NOWS["ordinary"])
    bench.emulator.faults = {"percentile"}
    with pytest.raises(FeedError, match="not a known carbon intensity"):
        await bench.feed.current(bench.zone)
    with pytest.raises(ValueError, match="not a carbon intensity"):
        WattTimeFeed(bench.http(bench.emulator), "user", "pass", signal="health_damage")
    average = WattTimeFeed(bench.http(bench.emulator), "user", "pass", signal="co2_aoer")
    assert average.methodology.basis is Basis.AVERAGE
    assert bench.feed.methodology.basis is Basis.MARGINAL


async def test_electricity_maps_checks_factors_and_the_old_no_data_answer():
    bench = Bench("electricity_maps", NOWS["ordinary"])
    for fault, words in (("factors_changed", "factors"), ("no_data_status", "no data")):
        bench.emulator.faults = {fault}
        with pytest.raises(FeedError, match=words):
            await bench.feed.current(bench.zone)
    assert all(query["zone"] == "DE" for _, query in bench.emulator.requests)


async def test_the_sdks_minus_one_is_missing_and_an_ignored_window_is_noticed():
    bench = Bench("carbon_aware_sdk", NOWS["ordinary"])
    bench.emulator.faults = {"minus_one"}
    with pytest.raises(FeedError, match="missing"):
        await bench.feed.current(bench.zone)
    bench.emulator.faults = {"window_ignored"}
    with pytest.raises(FeedError, match="outside the window"):
        await bench.feed.history(bench.zone, bench.now - timedelta(hours=20), bench.now - timedelta(hours=5))


@pytest.mark.parametrize("minutes", [15, 30, 60])
@pytest.mark.parametrize("curve", ["A01", "A03"])
async def test_entsoe_holds_a03_values_and_leaves_storage_out(curve, minutes):
    bench = Bench("entsoe", NOWS["ordinary"])
    bench.emulator.curve, bench.emulator.step = curve, timedelta(minutes=minutes)
    end = bench.now - timedelta(hours=2, minutes=20)
    series = await bench.feed.history(bench.zone, end - timedelta(hours=3), end)
    assert [point.g_per_kwh for point in series] == [pytest.approx(MIX_G_PER_KWH)] * 12
    direct = EntsoeFeed(bench.http(bench.emulator), "secret-token", Boundary.DIRECT, now=lambda: bench.now)
    assert (await direct.current("NL")).g_per_kwh == pytest.approx(92.5)


async def test_entsoe_reads_archives_and_refuses_entities():
    bench = Bench("entsoe", NOWS["ordinary"])
    bench.emulator.zipped = True
    assert (await bench.feed.current("NL")).g_per_kwh == pytest.approx(MIX_G_PER_KWH)
    bench.emulator.zipped, bench.emulator.faults = False, {"entities"}
    with pytest.raises(FeedError, match="entities"):
        await bench.feed.current("NL")
    with pytest.raises(FeedError, match="EIC"):
        await bench.feed.current("Atlantis")


async def test_eia_pages_reads_text_numbers_and_skips_the_incomplete_hour(monkeypatch):
    monkeypatch.setattr(carbon.feeds.eia, "PAGE", 7)
    bench = Bench("eia", NOWS["ordinary"])
    value = await bench.feed.current("CISO")
    assert value.g_per_kwh == pytest.approx(MIX_G_PER_KWH)
    # the newest hour, stamped with its end 12:00, has no wind yet; the one before ends at 11:00
    assert value.end == datetime(2025, 3, 4, 11, tzinfo=UTC)
    assert len(bench.emulator.requests) > 10


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://grid.example", "not encrypted"),
        ("https://other.example", "not allowed"),
        ("https://grid.example@other.example", "not allowed"),
        ("ftp://grid.example", "not encrypted"),
    ],
)
def test_only_https_to_allowed_hosts(url, words):
    with pytest.raises(ValueError, match=words):
        FeedHttp(url, allowed_hosts=frozenset({"grid.example"}))


def test_retry_after_in_both_forms():
    now = datetime(2025, 1, 1, tzinfo=UTC)
    assert retry_after_s({"retry-after": "30"}, now) == 30.0
    assert retry_after_s({"retry-after": "Wed, 01 Jan 2025 00:01:00 GMT"}, now) == 60.0
    assert retry_after_s({"retry-after": "soon"}, now) is None
    assert retry_after_s({}, now) is None
