"""A slow, locked or full disk: telemetry gives way first, serving never waits, and the operator is told."""

import time
from pathlib import Path

import pytest

from serving.ledger.engine import Location, sqlite_module
from serving.ledger.reader import LedgerReader
from serving.ledger.retention import LedgerRetention
from serving.ledger.telemetry import SeriesSpec
from serving.ledger.writer import LedgerWriter, WriterSettings

SERIES = SeriesSpec("gpu_power_watts", "W")


def wait_for(holds, limit_s=30.0):
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.005)


@pytest.fixture
def blocker(sqlite_location):
    """Another connection that holds the ledger's write lock until it is closed: a disk that does not answer."""

    def block():
        connection = sqlite_module().connect(str(sqlite_location.file("ledger")), isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        return connection

    return block


def test_a_stuck_ledger_drops_telemetry_first_and_loses_no_row(sqlite_location, blocker, make_request, noon_us):
    settings = WriterSettings(gather_s=0.002, flush_s=0.005, max_batch=50, max_queued_rows=1000, degrade_at=0.1)
    alarms = []
    with LedgerWriter(sqlite_location, settings, on_alarm=alarms.append) as writer:
        writer.sample(SERIES, noon_us, 1.0)
        wait_for(lambda: writer.status.written_samples == 1)
        stuck = blocker()
        for number in range(500):
            assert writer.put(make_request(number))
        wait_for(lambda: writer.status.queued_rows > 100)
        for number in range(50):
            writer.sample(SERIES, noon_us + 1 + number, 1.0)
        wait_for(lambda: writer.status.dropped_samples == 50)
        assert "telemetry is dropped: the ledger needs the disk" in writer.status.alarm
        assert writer.status.refused_rows == 0
        stuck.close()
        wait_for(lambda: writer.status.written_rows == 500)
        writer.sample(SERIES, noon_us + 1000, 1.0)
        wait_for(lambda: writer.status.written_samples == 2)
        wait_for(lambda: writer.status.telemetry_trouble is None)
        assert writer.status.alarm == "telemetry samples were dropped since the start"
    assert any("the ledger needs the disk" in (alarm or "") for alarm in alarms)


def test_a_full_ledger_keeps_its_rows_waiting_until_there_is_room(sqlite_location, make_request, noon_us):
    day_us = 86_400_000_000
    settings = WriterSettings(gather_s=0.002, flush_s=0.005, max_batch=100, ledger_max_bytes=600_000)
    with LedgerWriter(sqlite_location, settings) as writer:
        number = 0
        while writer.status.trouble is None:
            writer.put(make_request(number, arrived_us=noon_us + number, endpoint="x" * 500))
            number += 1
            time.sleep(0.0002)
        assert "full" in writer.status.trouble
        assert "rows wait" in writer.status.alarm
        writer.sample(SERIES, noon_us, 1.0)
        wait_for(lambda: writer.status.dropped_samples == 1)
        last = writer.submit(make_request(10**6, arrived_us=noon_us + 10 * day_us))
        reader = LedgerReader(sqlite_location)
        assert len(reader.requests()) == 100
        assert not last.done()
        writer.prune(noon_us + 5 * day_us, LedgerRetention(request_days=1))
        last.result(30)
        assert writer.status.trouble is None
        assert writer.status.written_rows == number + 1
        assert writer.status.rejected_rows == 0
        reader.close()


def test_full_telemetry_is_dropped_and_the_ledger_goes_on(sqlite_location, make_request, noon_us):
    settings = WriterSettings(gather_s=0.002, flush_s=0.005, telemetry_max_bytes=120_000)
    with LedgerWriter(sqlite_location, settings) as writer:
        number = 0
        while writer.status.telemetry_trouble is None:
            writer.sample(SERIES, noon_us + number, 1.0)
            number += 1
        assert "full" in writer.status.telemetry_trouble
        assert "telemetry is dropped" in writer.status.alarm
        writer.submit(make_request(1)).result(30)
        assert writer.status.trouble is None


def test_closing_gives_up_on_a_stuck_database_and_fails_what_waits(sqlite_location, blocker, make_request):
    writer = LedgerWriter(sqlite_location, WriterSettings(gather_s=0.002, close_timeout_s=0.1))
    writer.start()
    stuck = blocker()
    future = writer.submit(make_request(1))
    writer.close()
    stuck.close()
    assert "closed while the database was away" in str(future.exception(0))


def test_a_folder_that_cannot_be_written_says_so(tmp_path: Path):
    from serving.ledger.engine import LedgerError

    (tmp_path / "file").write_text("")
    with pytest.raises((LedgerError, OSError)):
        LedgerWriter(Location(tmp_path / "file" / "ledger")).start()


def test_readers_go_on_while_the_writer_writes(sqlite_location, quick, make_request):
    with LedgerWriter(sqlite_location, quick) as writer:
        reader = LedgerReader(sqlite_location)
        seen = []
        for number in range(300):
            writer.put(make_request(number))
            seen.append(len(reader.requests(limit=1000)))
        writer.submit(make_request(1000)).result(20)
        assert seen == sorted(seen)
        assert len(reader.requests(limit=1000)) == 301
        reader.close()
