"""The hash chain: sound as written, on both back ends, and every change is found."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from serving.ledger.audit import HASHED, ChainHead, row_hash, verify
from serving.ledger.engine import writer_engine
from serving.ledger.reader import LedgerReader
from serving.ledger.retention import LedgerRetention
from serving.ledger.rows import DAY_US, AuditEntry
from serving.ledger.writer import LedgerWriter


def entry(number: int, at_us: int, **fields: object) -> AuditEntry:
    return AuditEntry(
        at_us=at_us,
        kind="actuation",
        actor="controller",
        policy_revision="3f9c0a",
        device="GPU-1",
        asked={"sm_clock_mhz": 1200 + number, "power_limit_w": None},
        read_back={"sm_clock_mhz": 1200.0},
        inputs={"power_w": 312.5, "Ω": ["µ", 1e-7]},
        latency_s=1,
        slo_violated=False,
        **fields,
    )


@pytest.fixture
def chained(location, quick, noon_us):
    """Three writers one after another, so that the chain is taken up twice."""
    for part in range(3):
        with LedgerWriter(location, quick) as writer:
            for number in range(20):
                writer.put(entry(number, noon_us + DAY_US * part + number))
    return location


@pytest.fixture
def reader(chained):
    opened = LedgerReader(chained)
    yield opened
    opened.close()


def test_the_chain_goes_on_after_a_restart(reader):
    found = reader.verify_audit()
    assert (found.ok, found.rows, found.head.seq) == (True, 60, 60)
    newest = reader.audit(limit=2)
    assert [row["seq"] for row in newest] == [60, 59]
    assert newest[0]["prev_hash"] == newest[1]["hash"]
    assert [row["seq"] for row in reader.audit(before_seq=3)] == [2, 1]
    assert reader.audit(kind="hold") == []


@pytest.mark.parametrize(
    ("statement", "seq", "words"),
    [
        ("UPDATE audit SET asked = '{}' WHERE seq = 30", 30, "was changed after it was written"),
        ("UPDATE audit SET latency_s = 1.0000000000000002 WHERE seq = 30", 30, "was changed"),
        ("UPDATE audit SET slo_violated = NULL WHERE seq = 30", 30, "was changed"),
        ("DELETE FROM audit WHERE seq = 30", 31, "rows are missing"),
        ("DELETE FROM audit WHERE seq = 1", 2, "rows are missing"),
        ("UPDATE audit SET hash = prev_hash WHERE seq = 30", 30, "was changed"),
        ("UPDATE audit SET prev_hash = hash WHERE seq = 30", 30, "does not refer to the row before"),
    ],
)
def test_tampering_is_found(chained, reader, statement, seq, words):
    engine = writer_engine(chained, "telemetry" if not chained.is_sqlite else "ledger")
    with engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()
    found = reader.verify_audit()
    assert (found.ok, found.broken_seq) == (False, seq)
    assert words in found.problem


def test_retention_leaves_an_anchor_to_verify_from(chained, quick, noon_us):
    with LedgerWriter(chained, quick) as writer:
        writer.prune(noon_us + 2 * DAY_US, LedgerRetention(audit_days=0.5))
        reader = LedgerReader(chained)
        found = reader.verify_audit()
        assert (found.ok, found.rows, found.head.seq) == (True, 20, 60)
        writer.prune(noon_us + 30 * DAY_US, LedgerRetention(audit_days=1))
        assert reader.verify_audit().rows == 0
    with LedgerWriter(chained, quick) as writer:
        writer.submit(entry(1, noon_us + 31 * DAY_US)).result(20)
        found = reader.verify_audit()
        assert (found.ok, found.rows, found.head.seq) == (True, 1, 61)
        reader.close()


def test_retention_of_requests(location, quick, make_request, noon_us):
    with LedgerWriter(location, quick) as writer:
        for day in range(5):
            writer.put(make_request(day, arrived_us=noon_us + day * DAY_US))
        writer.submit(make_request(9, arrived_us=noon_us + 9 * DAY_US)).result(20)
        writer.prune(noon_us + 4 * DAY_US + DAY_US // 2, LedgerRetention(request_days=2))
        reader = LedgerReader(location)
        assert [row["request_id"] for row in reader.requests()] == ["r9", "r4", "r3"]
        reader.close()


VALUES = st.none() | st.integers(-(2**60), 2**60) | st.text(max_size=5)


@given(st.lists(st.fixed_dictionaries({name: st.none() | st.text(max_size=4) for name in HASHED if name not in
       ("seq", "at_us", "latency_s", "slo_violated")} | {"at_us": st.integers(0, 2**50), "latency_s": st.floats(0, 9),
       "slo_violated": st.none() | st.booleans()}), min_size=1, max_size=6), st.data())  # fmt: skip
def test_any_single_change_breaks_the_chain(entries, data):
    rows, head = [], ChainHead()
    for one in entries:
        row, head = head.next_row(one)
        rows.append(row)
    assert verify(rows).head == head
    position = data.draw(st.integers(0, len(rows) - 1))
    column = data.draw(st.sampled_from([name for name in HASHED if name != "seq"]))
    changed = dict(rows[position])
    changed[column] = 9.5 if column == "latency_s" else 7 if column == "at_us" else "changed"
    if column == "slo_violated":
        changed[column] = not rows[position][column]
    if changed[column] != rows[position][column]:
        assert verify([*rows[:position], changed, *rows[position + 1 :]]).broken_seq == position + 1


def test_the_hash_is_that_of_the_documented_text():
    """The form of the hash is a promise to whoever verifies an export."""
    row = dict.fromkeys(HASHED) | {"seq": 1, "at_us": 2, "kind": "k", "actor": "a", "latency_s": 0.5}
    text = '["0000", 1, 2, "k", "a", null, null, null, null, null, null, null, null, null, 0.5, null, null, null]'
    assert row_hash("0000", row) == __import__("hashlib").sha256(text.encode()).hexdigest()
