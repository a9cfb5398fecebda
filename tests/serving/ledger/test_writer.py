"""What goes in comes out, on both back ends; what the writer does with bad rows, full queues and second writers."""

import dataclasses
import threading
from concurrent.futures import CancelledError

import pytest
from sqlalchemy.exc import DBAPIError

from serving.ledger.engine import ENVIRONMENT, LedgerError, Location, sqlite_module
from serving.ledger.reader import LedgerReader
from serving.ledger.rows import AuditEntry, ExperimentRow, FeedRow, HoldRow, RequestRow, micros, moment_of
from serving.ledger.tables import REQUESTS
from serving.ledger.writer import LedgerFullError, LedgerWriter, WriterSettings


@pytest.fixture
def reader(location, writer):
    opened = LedgerReader(location)
    yield opened
    opened.close()


def full_request(**changes: object) -> RequestRow:
    """A request with a value in every column."""
    kinds = {column.name: column.type.python_type for column in REQUESTS.columns}
    sample = {int: 7, float: 0.1, str: "x"}
    values = {name: sample[kind] for name, kind in kinds.items()}
    return RequestRow(**{**values, "prompt_text": None, "answer_text": None, **changes})


def test_row_classes_have_the_columns_of_their_tables():
    assert {field.name for field in dataclasses.fields(RequestRow)} == {column.name for column in REQUESTS.columns}


def test_a_request_comes_back_as_it_went_in(writer, reader):
    row = full_request(request_id="r1", tenant='a "quoted"; DROP TABLE requests; --', model="модель 🔌")
    writer.submit(row).result(20)
    assert reader.request("r1") == dataclasses.asdict(row)


def test_unknown_is_null_and_never_zero(writer, reader, make_request, noon_us):
    writer.put(make_request(1, tenant="t", energy_j=0.0, operational_g=0.0))
    writer.submit(make_request(2, tenant="t")).result(20)
    first, second = reader.request("r1"), reader.request("r2")
    assert first["energy_j"] == 0.0
    assert {second[name] for name in ("energy_j", "operational_g", "ttft_s", "zone", "intensity_age_s")} == {None}
    usage = reader.usage("t", noon_us)
    assert (usage.requests, usage.requests_without_joules, usage.requests_without_grams) == (2, 1, 1)


def test_budgets_add_up_by_tenant_and_utc_day(writer, reader, make_request, noon_us):
    midnight_us = noon_us + 43_200_000_000
    for number in range(30):
        at_us = midnight_us + (number - 20)
        tenant = "ab"[number % 2]
        writer.put(
            make_request(number, arrived_us=at_us, tenant=tenant, energy_j=2.0, operational_g=0.5, embodied_g=0.25)
        )
    writer.submit(make_request(99)).result(20)
    assert dataclasses.astuple(reader.usage("a", noon_us))[2:] == (10, 20.0, 7.5, 0, 0)
    assert reader.usage("b", midnight_us).requests == 5
    assert reader.usage("nobody", noon_us).requests == 0
    assert [usage.tenant for usage in reader.usages(midnight_us)] == ["a", "b"]


def test_text_is_kept_only_with_consent(location, quick, make_request):
    with LedgerWriter(location, quick, keep_text=lambda tenant: tenant == "open") as writer:
        for number, tenant in enumerate(("open", "closed", None)):
            writer.submit(make_request(number, tenant=tenant, prompt_text="secret", answer_text="word")).result(20)
        reader = LedgerReader(location)
        kept = [(row["prompt_text"], row["answer_text"]) for row in reader.requests()]
        reader.close()
    assert sorted(kept, key=str) == [("secret", "word"), (None, None), (None, None)]


def test_by_default_nobody_consents(writer, reader, make_request):
    writer.submit(make_request(1, tenant="t", prompt_text="secret")).result(20)
    assert reader.request("r1")["prompt_text"] is None


def test_pages_are_newest_first_and_do_not_overlap(writer, reader, make_request, noon_us):
    for number in range(25):
        writer.put(make_request(number, arrived_us=noon_us + number // 3))
    writer.submit(make_request(99, arrived_us=noon_us - 1)).result(20)
    seen, before = [], None
    while page := reader.requests(since_us=noon_us, before=before, limit=4):
        seen += [row["request_id"] for row in page]
        before = (page[-1]["arrived_us"], page[-1]["request_id"])
    assert sorted(seen) == sorted(f"r{number}" for number in range(25))
    assert [row["arrived_us"] for row in reader.requests(limit=100)] == sorted(
        [noon_us + number // 3 for number in range(25)] + [noon_us - 1], reverse=True
    )
    with pytest.raises(ValueError, match="1 to 1000"):
        reader.requests(limit=1001)


def test_holds_feeds_and_experiments(writer, reader, noon_us):
    hold = HoldRow(
        hold_id="h",
        mode="pin",
        placed_us=noon_us,
        placed_by="ann",
        reason="noise",
        clock_mhz=900,
        expires_us=noon_us + 9,
    )
    writer.submit(hold).result(20)
    assert [row["hold_id"] for row in reader.active_holds(noon_us + 8)] == ["h"]
    assert reader.active_holds(noon_us + 9) == []
    writer.submit(dataclasses.replace(hold, released_us=noon_us + 5, released_by="bob")).result(20)
    assert reader.active_holds(noon_us + 6) == []
    value = FeedRow(
        zone="GB", start_us=noon_us, end_us=noon_us + 1800, source="uk_grid", kind="estimated", fetched_us=noon_us,
        g_per_kwh=142.0, basis="average", boundary="direct",
    )  # fmt: skip
    for row in (value, value, dataclasses.replace(value, fetched_us=noon_us + 1, g_per_kwh=150.0)):
        writer.submit(row).result(20)
    assert [row["g_per_kwh"] for row in reader.feed_values("GB", noon_us, noon_us + 1)] == [142.0, 150.0]
    run = ExperimentRow(experiment_id="e", name="n", started_us=1, status="running", config="{}")
    writer.put(run)
    writer.submit(dataclasses.replace(run, status="done", result="{}", ended_us=2)).result(20)
    assert [(row["status"], row["ended_us"]) for row in reader.experiments()] == [("done", 2)]


def test_a_bad_row_is_rejected_alone_and_counted(writer, reader, make_request):
    rows = [make_request(number, tenant="t") for number in range(20)]
    rows[7] = make_request(7, tenant="t", prompt_tokens=object())
    rows[11] = make_request(3, tenant="t")
    rows[13] = make_request(13, tenant="t", arrived_us=2**70)
    futures = [writer.submit(row) for row in rows]
    failed = [number for number, future in enumerate(futures) if future.exception(20) is not None]
    assert failed == [7, 11, 13]
    assert isinstance(futures[7].exception(), LedgerError)
    assert len(reader.requests()) == reader.usage("t", rows[0].arrived_us).requests == 17
    assert (writer.status.rejected_rows, writer.status.written_rows) == (3, 17)


def test_an_acknowledged_row_cannot_be_cancelled(writer, make_request):
    future = writer.submit(make_request(1))
    assert not future.cancel()
    try:
        future.result(20)
    except CancelledError:
        pytest.fail("the row was written and yet cancelled")


def test_many_threads_write_at_once(writer, reader, make_request):
    def put(start):
        for number in range(start, start + 200):
            assert writer.put(make_request(number, tenant="t", energy_j=1.0))

    threads = [threading.Thread(target=put, args=(1000 * start,)) for start in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.submit(make_request(99_999)).result(20)
    assert reader.usage("t", make_request().arrived_us).joules == 1000.0


def test_closing_writes_what_is_queued(location, quick, make_request):
    with LedgerWriter(location, quick) as writer:
        for number in range(3000):
            writer.put(make_request(number))
    assert not writer.put(make_request(1))
    with LedgerWriter(location, quick):
        reader = LedgerReader(location)
        assert len(reader.requests(limit=1000)) == 1000
        assert reader.request("r2999") is not None
        reader.close()


def test_a_second_writer_is_refused(location, writer, quick):
    with pytest.raises(LedgerError, match="another process writes to"):
        LedgerWriter(location, quick).start()
    assert writer.status.trouble is None


def test_readers_cannot_write(reader):
    with reader.engine.connect() as connection, pytest.raises(DBAPIError, match=r"readonly|read-only"):
        connection.exec_driver_sql("DELETE FROM requests")


def test_a_full_queue_refuses_and_says_so(sqlite_location, make_request):
    settings = WriterSettings(gather_s=0.001, max_queued_rows=10, close_timeout_s=0.2)
    alarms = []
    writer = LedgerWriter(sqlite_location, settings, on_alarm=alarms.append)
    writer.start()
    other = sqlite_module().connect(str(sqlite_location.file("ledger")), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    taken = sum(writer.put(make_request(number)) for number in range(100))
    assert 10 <= taken < 100
    future = writer.submit(make_request(1000))
    assert isinstance(future.exception(1), LedgerFullError)
    assert writer.status.refused_rows == 101 - taken
    assert alarms == ["ledger rows were refused since the start"]
    other.execute("ROLLBACK")
    other.close()
    writer.close()
    assert writer.status.written_rows == taken


def test_times():
    moment = moment_of(1_768_478_400_123_456)
    assert moment.isoformat() == "2026-01-15T12:00:00.123456+00:00"
    assert micros(moment) == 1_768_478_400_123_456
    with pytest.raises(ValueError, match="has no zone"):
        micros(moment.replace(tzinfo=None))


def test_old_sqlite_is_refused(monkeypatch):
    import pysqlite3.dbapi2

    monkeypatch.setattr(pysqlite3.dbapi2, "sqlite_version_info", (3, 51, 2))
    monkeypatch.setattr("sqlite3.sqlite_version_info", (3, 40, 1))
    with pytest.raises(LedgerError, match=r"can corrupt a ledger; install pysqlite3 \(it brings 3\.51\.3"):
        sqlite_module()
    monkeypatch.setattr("sqlite3.sqlite_version_info", (3, 52, 0))
    assert sqlite_module().__name__ == "sqlite3"


@pytest.mark.parametrize("url", ["mysql://u:hidden@h/d", "not a url hidden", "sqlite:///hidden.db"])
def test_only_postgresql_urls_and_never_a_password_in_the_message(url, monkeypatch, tmp_path):
    monkeypatch.setenv(ENVIRONMENT, url)
    with pytest.raises(LedgerError) as caught:
        Location.from_environment(tmp_path)
    assert "hidden" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_where_the_ledger_is(monkeypatch, tmp_path):
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    assert Location.from_environment(tmp_path) == Location(tmp_path)
    monkeypatch.setenv(ENVIRONMENT, "postgres://u:pw@h/d")
    assert str(Location.from_environment(tmp_path)) == "postgresql+psycopg://u:***@h/d"
    with pytest.raises(LedgerError, match="cannot be opened"):
        LedgerWriter(Location.at_url("postgresql://nobody@127.0.0.1:1/none")).start()


def test_audit_entries_take_json_only(writer, noon_us):
    future = writer.submit(AuditEntry(at_us=noon_us, kind="decision", actor="x", inputs=object()))
    assert "JSON values only" in str(future.exception(20))
