"""Roll-ups keep every joule; charts get what they ask for; old telemetry goes."""

import itertools
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import insert, select, text

from serving.ledger.engine import Location, writer_engine
from serving.ledger.migrate import upgrade
from serving.ledger.rollup import MINUTE_US, SECOND_US, Retention, prune, roll_up
from serving.ledger.rows import DAY_US
from serving.ledger.tables import MINUTES, SAMPLES, SECONDS, SERIES
from serving.ledger.telemetry import SeriesSpec
from serving.ledger.telemetry_reader import TelemetryReader
from serving.ledger.writer import LedgerWriter

ENERGY = SeriesSpec('gpu_energy_joules{gpu="0"}', "J", is_counter=True)
POWER = SeriesSpec('gpu_power_watts{gpu="0"}', "W")


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    location = Location(tmp_path_factory.mktemp("telemetry"))
    engine = writer_engine(location, "telemetry")
    upgrade(engine, "telemetry")
    yield engine
    engine.dispose()


def counted(values):
    """What a counter grew by: a fall is a restart from 0."""
    return math.fsum(b - a if b >= a else b for a, b in itertools.pairwise(values))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(1, 90_000_000), st.floats(0, 1e6)), min_size=2, max_size=60),
    st.lists(st.integers(0, 60), max_size=4),
)
def test_joules_survive_whenever_roll_ups_run(engine, steps, runs):
    """Samples at any distance, a counter that restarts, roll-ups at any moment: the sum of increases is the same."""
    with engine.begin() as connection:
        for table in ("series", "samples", "samples_1s", "samples_1min", "rollup_state"):
            connection.execute(text(f"DELETE FROM {table}"))
        connection.execute(insert(SERIES).values(id=1, name="e", unit="J", is_counter=True))
        at_us, values = 1_768_478_400_000_000, []
        for index, (gap_us, value) in enumerate(steps):
            at_us += gap_us
            values.append(value)
            connection.execute(insert(SAMPLES).values(series=1, at_us=at_us, value=value))
            if index in runs:
                roll_up(connection, at_us)
                prune(connection, at_us, Retention(raw_days=0.0))
        end_us = (at_us // MINUTE_US + 1) * MINUTE_US
        roll_up(connection, end_us)
        for table in (SECONDS, MINUTES):
            rows = connection.execute(select(table)).mappings().all()
            assert math.fsum(row["increase"] for row in rows) == pytest.approx(counted(values), rel=1e-9, abs=1e-6)
            assert sum(row["count"] for row in rows) == len(values)
            assert (min(row["min"] for row in rows), max(row["max"] for row in rows)) == (min(values), max(values))
            assert max(rows, key=lambda row: row["start_us"])["last"] == values[-1]


@pytest.fixture
def filled(writer, noon_us):
    """Three minutes of 10 Hz: a counter at 300 W that restarts once, and its power."""
    for tick in range(1800):
        at_us = noon_us + tick * 100_000
        writer.sample(ENERGY, at_us, 30.0 * (tick % 1000))
        writer.sample(POWER, at_us, 300.0 + tick % 10)
    writer.telemetry.flush()
    with writer.telemetry._engine.begin() as connection:
        roll_up(connection, noon_us + 3 * MINUTE_US)
    return writer


def reader_at(location, now_us, **retention):
    return TelemetryReader(location, Retention(**retention), lambda: now_us)


def test_both_back_ends_roll_up_alike(location, filled, noon_us):
    reader = reader_at(location, noon_us + 3 * MINUTE_US)
    assert reader.increase(ENERGY.name, noon_us, noon_us + 3 * MINUTE_US) == 30.0 * (999 + 799)
    assert reader.increase(POWER.name, noon_us, noon_us + 3 * MINUTE_US) is None
    latest = {found.name: (found.value, found.unit, found.is_counter) for found in reader.latest()}
    assert latest == {ENERGY.name: (30.0 * 799, "J", True), POWER.name: (309.0, "W", False)}
    reader.close()


def test_a_chart_gets_no_more_points_than_it_asks_for(location, filled, noon_us):
    reader = reader_at(location, noon_us + 3 * MINUTE_US)
    points = reader.range(POWER.name, noon_us, noon_us + MINUTE_US, points=7)
    assert len(points) == 7
    assert {(point.min, point.max, point.increase) for point in points} == {(300.0, 309.0, None)}
    with pytest.raises(ValueError, match="no series"):
        reader.range("x", 0, 1)
    with pytest.raises(ValueError, match="1 to 2000 points"):
        reader.range(POWER.name, 0, 1, points=2001)
    reader.close()


def test_older_ranges_come_from_the_roll_ups(location, filled, noon_us):
    end_us = noon_us + 3 * MINUTE_US
    reader = reader_at(location, noon_us + 2 * DAY_US)
    by_second = reader.range(ENERGY.name, noon_us, end_us, points=180)
    assert len(by_second) == 180
    assert math.fsum(point.increase for point in by_second) == 30.0 * (999 + 799)
    assert by_second[1].mean == pytest.approx(30.0 * 14.5)
    reader.close()
    reader = reader_at(location, noon_us + 20 * DAY_US)
    by_minute = reader.range(ENERGY.name, noon_us, end_us, points=2000)
    assert [point.start_us for point in by_minute] == [noon_us, noon_us + MINUTE_US, noon_us + 2 * MINUTE_US]
    assert by_minute[1].last == 30.0 * 199
    reader.close()


def test_pruning_keeps_what_the_next_level_has_not_taken(location, filled, noon_us):
    engine = filled.telemetry._engine
    now_us = noon_us + 100 * DAY_US
    filled.sample(POWER, now_us - 50 * DAY_US, 1.0)
    filled.telemetry.flush()
    with engine.begin() as connection:
        prune(connection, now_us, Retention())
        left = connection.execute(select(SAMPLES.c.at_us).where(SAMPLES.c.at_us >= noon_us + DAY_US)).scalars().all()
        assert left == [now_us - 50 * DAY_US]
        assert connection.execute(select(SECONDS)).first() is None
        assert len(connection.execute(select(MINUTES)).all()) == 6


def test_each_roll_up_reads_only_its_range(engine):
    """By series and time, not the whole table: the plan searches the primary key."""
    from serving.ledger.rollup import _DELETE, _MINUTES, _SECONDS

    bounds = {"since": 0, "until": SECOND_US}
    with engine.connect() as connection:
        for statement, table in (
            (_SECONDS, "samples"),
            (_MINUTES, "samples_1s"),
            (_DELETE.format(table="samples", column="at_us"), "samples"),
        ):
            plan = [row[3] for row in connection.execute(text(f"EXPLAIN QUERY PLAN {statement}"), bounds)]
            assert any(line.startswith(f"SEARCH {table} USING PRIMARY KEY (series=? AND ") for line in plan), plan


def test_samples_arrive_through_the_thread_too(location, quick, noon_us):
    with LedgerWriter(location, quick) as writer:
        for number in range(500):
            writer.sample(POWER, noon_us + number, float(number))
    reader = TelemetryReader(location)
    assert reader.latest()[0].value == 499.0
    reader.close()
    assert writer.status.written_samples == 500
