"""Real kills: the writer process at any moment, and the PostgreSQL server under it."""

import random
import threading
import time

import pytest

from serving.ledger.engine import sqlite_module
from serving.ledger.reader import LedgerReader
from serving.ledger.rows import AuditEntry
from serving.ledger.writer import LedgerWriter

WRITER = """
import sys, threading
from pathlib import Path
from serving.ledger.engine import Location
from serving.ledger.rows import AuditEntry, RequestRow
from serving.ledger.telemetry import SeriesSpec
from serving.ledger.writer import LedgerWriter, WriterSettings

where, generation = sys.argv[1:]
location = Location.at_url(where) if where.startswith("postgresql") else Location(Path(where))
writer = LedgerWriter(location, WriterSettings(gather_s=0.005, flush_s=0.02))
writer.start()
print("up", flush=True)
out = threading.Lock()

def work(worker):
    number = 0
    while True:
        futures = []
        for _ in range(20):
            name = f"{generation}-{worker}-{number}"
            at_us = 1_768_478_400_000_000 + number
            row = RequestRow(request_id=name, arrived_us=at_us, model="m", tenant="t", energy_j=1.0)
            futures.append((name, writer.submit(row)))
            writer.put(AuditEntry(at_us=at_us, kind="decision", actor="c", inputs={"n": number}))
            writer.sample(SeriesSpec(f"s{worker}", "J", True), at_us, float(number))
            number += 1
        for name, future in futures:
            future.result()
            with out:
                print(name, flush=True)

for worker in range(2):
    threading.Thread(target=work, args=(worker,), daemon=True).start()
threading.Event().wait()
"""
KILLS = 10


def killed_under_load(child, where, generation, load_s):
    """Names of the rows that were acknowledged before the kill."""
    process = child(WRITER, where, str(generation))
    assert process.stdout.readline() == "up\n"
    timer = threading.Timer(load_s, process.kill)
    timer.start()
    acknowledged = [line.strip() for line in process.stdout if line.endswith("\n")]
    process.wait()
    return acknowledged


def stored(location):
    reader = LedgerReader(location)
    with reader.engine.connect() as connection:
        names = set(connection.exec_driver_sql("SELECT request_id FROM requests").scalars())
        used = connection.exec_driver_sql("SELECT requests, joules FROM budgets WHERE tenant = 't'").first()
    verification = reader.verify_audit()
    reader.close()
    assert verification.ok, verification.problem
    assert (used or (0, 0.0)) == (len(names), float(len(names))), "budgets count every row once"
    return names


def test_the_writer_killed_again_and_again_on_sqlite(child, sqlite_location):
    dice, acknowledged = random.Random(7), []
    for generation in range(KILLS):
        fresh = killed_under_load(child, str(sqlite_location.folder), generation, dice.uniform(0.05, 0.5))
        acknowledged += fresh
        names = stored(sqlite_location)
        assert names.issuperset(acknowledged)
        for database in ("ledger", "telemetry"):
            connection = sqlite_module().connect(str(sqlite_location.file(database)))
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            connection.close()
    assert len(acknowledged) > 20 * KILLS
    connection = sqlite_module().connect(str(sqlite_location.file("telemetry")))
    for series, first, last, count in connection.execute(
        "SELECT series, min(at_us), max(at_us), count(*) FROM samples GROUP BY series"
    ):
        assert last - first + 1 == count, f"series {series} has a hole before its end"
    connection.close()


def test_the_writer_killed_on_postgresql(child, postgres):
    location = postgres.new_database()
    where = location.url.set(drivername="postgresql").render_as_string(hide_password=False)
    acknowledged = []
    for generation in range(3):
        acknowledged += killed_under_load(child, where, generation, 0.3)
        assert stored(location).issuperset(acknowledged)
    assert acknowledged


def test_the_server_killed_under_the_writer(postgres, quick, make_request, noon_us):
    """Rows wait while the server is away; each is written once, though commits broke half way."""
    location = postgres.new_database()
    futures = []
    with LedgerWriter(location, quick) as writer:
        stop = threading.Event()

        def load():
            number = 0
            while not stop.is_set():
                futures.append(writer.submit(make_request(number, tenant="t", energy_j=1.0)))
                writer.put(AuditEntry(at_us=noon_us, kind="decision", actor="c"))
                number += 1
                time.sleep(0.0005)

        thread = threading.Thread(target=load)
        thread.start()
        for _ in range(3):
            wait_for(lambda: writer.status.written_rows > 20 and writer.status.trouble is None)
            postgres.stop("immediate")
            try:
                wait_for(lambda: writer.status.trouble is not None)
            except AssertionError:
                postgres.start()
                raise
            assert "rows wait" in writer.status.alarm
            before = writer.status.written_rows
            postgres.start()
            wait_for(lambda before=before: writer.status.written_rows > before, 60.0)
        stop.set()
        thread.join()
        assert all(future.exception(30) is None for future in futures)
        assert writer.status.rejected_rows == 0
    assert stored(location) == {f"r{number}" for number in range(len(futures))}


def wait_for(holds, limit_s=30.0):
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.005)


@pytest.mark.parametrize("torn", [1, 100, 4096])
def test_a_torn_end_of_the_log_is_left_out(child, sqlite_location, torn):
    """What a power cut leaves: the last bytes of the write-ahead log are missing."""
    killed_under_load(child, str(sqlite_location.folder), 0, 0.2)
    log = sqlite_location.folder / "ledger.db-wal"
    size = log.stat().st_size
    with log.open("r+b") as file:
        file.truncate(max(0, size - torn))
    stored(sqlite_location)


@pytest.mark.parametrize("takes_effect", [True, False])
def test_a_commit_that_breaks_is_made_good_exactly_once(location, quick, make_request, noon_us, takes_effect):
    """The connection is lost on commit, after or before it took effect; the writer cannot know which."""
    with LedgerWriter(location, quick) as writer:
        writer.submit(AuditEntry(at_us=noon_us, kind="decision", actor="c")).result(20)
        dialect = writer._engine.dialect
        commit, broken = dialect.do_commit, []

        def lose(connection):
            if takes_effect or broken:
                commit(connection)
            if not broken:
                broken.append(True)
                raise dialect.dbapi.OperationalError("the connection was lost")

        dialect.do_commit = lose
        rows = [writer.submit(make_request(number, tenant="t", energy_j=1.0)) for number in range(5)]
        entries = [writer.submit(AuditEntry(at_us=noon_us, kind="decision", actor="c")) for _ in range(5)]
        assert [future.exception(20) for future in rows + entries] == [None] * 10
        dialect.do_commit = commit
        writer.submit(AuditEntry(at_us=noon_us, kind="decision", actor="c")).result(20)
        assert broken
        assert (writer.status.rejected_rows, writer.status.written_rows) == (0, 12)
    assert stored(location) == {f"r{number}" for number in range(5)}
