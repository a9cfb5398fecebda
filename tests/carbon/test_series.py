"""Series and files: order, duplicates, gaps, steps of 5 to 60 minutes, and days on which clocks change."""

from __future__ import annotations

import asyncio
import itertools
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from carbon.feeds.feed import FeedError
from carbon.feeds.recorded import FileFormat, RecordedFeed, electricity_maps_format, gridserve_format, read_series
from carbon.intensity import Basis, Boundary, CarbonIntensity, IncomparableError, Kind, Methodology
from carbon.series import IntensitySeries, infer_step

DIRECT = Methodology(Basis.AVERAGE, Boundary.DIRECT)
DAY = datetime(2025, 3, 4, tzinfo=UTC)


def point(start, g=100.0, minutes=60, issued=None, zone="GB", methodology=DIRECT):
    end = start + timedelta(minutes=minutes)
    return CarbonIntensity(zone, start, end, g, methodology, Kind.MEASURED, "t", DAY, issued)


@given(st.lists(st.tuples(st.integers(0, 50), st.floats(0, 900)), max_size=40), st.randoms())
def test_any_order_of_points_gives_the_same_ordered_series_without_overlap(pairs, random):
    points = [point(DAY + timedelta(hours=h), g, issued=DAY + timedelta(seconds=i)) for i, (h, g) in enumerate(pairs)]
    series = IntensitySeries(points)
    random.shuffle(points)
    assert list(IntensitySeries(points)) == list(series)
    assert all(a.end <= b.start for a, b in itertools.pairwise(series))


def test_the_later_issued_of_two_values_wins():
    early, late = point(DAY, 100, issued=DAY), point(DAY, 200, issued=DAY + timedelta(hours=1))
    assert IntensitySeries([late, early])[0].g_per_kwh == 200
    assert IntensitySeries([point(DAY, 1), point(DAY, 2)])[0].g_per_kwh == 2


def test_gaps_stay_gaps():
    series = IntensitySeries([point(DAY), point(DAY + timedelta(hours=3))])
    assert series.at(DAY + timedelta(hours=2)) is None
    assert series.gaps() == [(DAY + timedelta(hours=1), DAY + timedelta(hours=3))]
    assert len(series.between(DAY + timedelta(minutes=30), DAY + timedelta(hours=3))) == 1


def test_zones_and_methodologies_do_not_mix():
    with pytest.raises(ValueError, match="one zone"):
        IntensitySeries([point(DAY), point(DAY, zone="NL")])
    with pytest.raises(IncomparableError):
        IntensitySeries([point(DAY), point(DAY, methodology=Methodology(Basis.MARGINAL, Boundary.DIRECT))])


@pytest.mark.parametrize("minutes", [5, 15, 30, 60])
def test_resampling_to_hours_keeps_the_mean(minutes):
    count = 180 // minutes
    points = [point(DAY + timedelta(minutes=minutes * i), 10.0 * i, minutes) for i in range(count)]
    series = IntensitySeries(points)
    hourly = series.resampled(3600)
    assert infer_step([p.start for p in points]) == timedelta(minutes=minutes)
    assert len(hourly) == 3
    assert hourly.mean() == pytest.approx(series.mean())


def test_an_hour_with_a_missing_part_is_a_gap():
    points = [point(DAY + timedelta(minutes=15 * i), 100, 15) for i in range(8) if i != 5]
    assert [p.start for p in IntensitySeries(points).resampled(3600)] == [DAY]


def write(path, header, rows):
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def test_reads_the_electricity_maps_layout(tmp_path):
    header = (
        "Datetime (UTC),Zone Id,Carbon Intensity gCO₂eq/kWh (direct),Carbon Intensity gCO₂eq/kWh (LCA),"
        "Data Estimated,Data Estimation Method"
    )
    rows = ["2023-01-01 01:00:00,GB,65.29,95.6,true,MODE", "2023-01-01 00:00:00,GB,71.54,103.5,false,"]
    path = write(tmp_path / "gb.csv", header, rows)
    series = read_series(path, electricity_maps_format(Boundary.DIRECT), DAY)
    assert [p.g_per_kwh for p in series] == [71.54, 65.29]
    assert [p.kind for p in series] == [Kind.MEASURED, Kind.ESTIMATED]
    assert series[1].method == "MODE"
    assert read_series(path, electricity_maps_format(Boundary.LIFECYCLE), DAY)[0].g_per_kwh == 103.5


LOCAL = FileFormat("t", "g", "g/kWh", DIRECT, time_zone="Europe/Amsterdam", zone="NL")


def test_the_hour_that_occurs_twice_is_two_hours(tmp_path):
    rows = [f"2025-10-26 {clock},{g}" for clock, g in (("01:00", 1), ("02:00", 2), ("02:00", 3), ("03:00", 4))]
    series = read_series(write(tmp_path / "nl.csv", "t,g", rows), LOCAL, DAY)
    assert [p.g_per_kwh for p in series] == [1, 2, 3, 4]
    assert not series.gaps()
    assert series[0].start == datetime(2025, 10, 25, 23, tzinfo=UTC)


def test_quarter_hours_through_the_autumn_change(tmp_path):
    clocks = [f"{h:02}:{m:02}" for h in (1, 2, 2, 3) for m in (0, 15, 30, 45)]
    rows = [f"2025-10-26 {clock},{i}" for i, clock in enumerate(clocks)]
    series = read_series(write(tmp_path / "nl.csv", "t,g", rows), LOCAL, DAY)
    assert [p.g_per_kwh for p in series] == list(range(16))
    assert not series.gaps()


def test_spring_skips_an_hour_without_a_gap_and_refuses_the_hour_that_is_not(tmp_path):
    rows = ["2025-03-30 01:00,1", "2025-03-30 03:00,2", "2025-03-30 04:00,3"]
    assert not read_series(write(tmp_path / "a.csv", "t,g", rows), LOCAL, DAY).gaps()
    with pytest.raises(ValueError, match=r"row 3.*does not exist"):
        read_series(write(tmp_path / "b.csv", "t,g", ["2025-03-30 01:00,1", "2025-03-30 02:30,2"]), LOCAL, DAY)


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        (["2025-01-01 00:00,1", "2025-01-01 01:00,2"], "no zone"),
        (["2025-01-01T00:00Z,x", "2025-01-01T01:00Z,2"], "row 2"),
        (["2025-01-01T00:00Z,1"], "two points"),
        (["2025-01-01T00:00Z,-1", "2025-01-01T01:00Z,2"], "outside"),
        (["2025-01-01T00:00Z,1", "2025-01-01T07:00Z,2"], "none of"),
        ([], "no rows"),
    ],
)
def test_what_cannot_be_taken_at_face_value_is_refused_by_row(tmp_path, rows, complaint):
    with pytest.raises(ValueError, match=complaint):
        read_series(write(tmp_path / "x.csv", "start,g_per_kwh", rows), gridserve_format(DIRECT), DAY)


def test_missing_values_are_gaps_and_columns_are_checked(tmp_path):
    path = write(
        tmp_path / "GB.csv", "start,g_per_kwh", [f"2025-01-01T0{h}:00Z,{'' if h == 1 else h}" for h in range(4)]
    )
    assert len(read_series(path, gridserve_format(DIRECT), DAY).gaps()) == 1
    with pytest.raises(ValueError, match="no column"):
        read_series(path, electricity_maps_format(Boundary.DIRECT), DAY)


def test_parquet_reads_like_csv(tmp_path):
    path = tmp_path / "GB.parquet"
    starts = [DAY + timedelta(minutes=30 * i) for i in range(4)]
    pq.write_table(pa.table({"start": starts, "g_per_kwh": [1.0, 2.0, None, 4.0]}), path)
    series = read_series(path, gridserve_format(DIRECT), DAY)
    assert [p.g_per_kwh for p in series] == [1.0, 2.0, 4.0]
    assert series[0].zone == "GB"


def test_a_replay_says_that_it_is_one(noon):
    series = IntensitySeries(point(DAY - timedelta(days=700) + timedelta(hours=h), float(h)) for h in range(48))
    clock = [noon + timedelta(minutes=20)]
    feed = RecordedFeed.replay_from(series, series[5].start, now=lambda: clock[0])
    current = asyncio.run(feed.current("GB"))
    assert current.g_per_kwh == 5.0
    assert current.kind is Kind.REPLAYED
    assert current.holds_at(clock[0])
    assert current.method == f"recorded {series[5].start:%Y-%m-%dT%H:%MZ}"
    ahead = asyncio.run(feed.forecast("GB", clock[0] + timedelta(hours=3)))
    assert [p.g_per_kwh for p in ahead] == [5.0, 6.0, 7.0]
    assert {p.kind for p in ahead} == {Kind.FORECAST}
    past = asyncio.run(feed.history("GB", clock[0] - timedelta(hours=2), clock[0] + timedelta(hours=9)))
    assert [p.g_per_kwh for p in past] == [3.0, 4.0]
    clock[0] += timedelta(days=30)
    with pytest.raises(FeedError, match="ends before now"):
        asyncio.run(feed.forecast("GB", clock[0] + timedelta(hours=3)))
    with pytest.raises(FeedError, match="zone"):
        asyncio.run(feed.current("NL"))


def test_a_year_of_electricity_maps_has_no_gaps(carbon_data):
    path = carbon_data / "electricitymaps-2023-hourly" / "NL_2023_hourly.csv"
    series = read_series(path, electricity_maps_format(Boundary.DIRECT), DAY)
    assert len(series) == 8760
    assert not series.gaps()
    assert sum(p.kind is Kind.ESTIMATED for p in series) == 8751


def test_five_minute_marginal_data_is_read_as_marginal(carbon_data):
    layout = FileFormat(
        "oootime",
        "Caiso_North",
        "g/kWh",
        Methodology(Basis.MARGINAL, Boundary.DIRECT),
        time_zone="UTC",
        zone="CAISO_NORTH",
    )
    series = read_series(carbon_data / "vessim-watttime" / "watttime_example.csv", layout, DAY)
    assert len(series) == 8928
    assert series[0].duration_s == 300
    assert series.mean() == pytest.approx(355.3, abs=0.05)
