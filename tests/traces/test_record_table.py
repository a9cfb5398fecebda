"""Records in columns are the records, and figures worked out from columns are those worked out one by one."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import traces.results_io
from traces.metrics import busiest_second, good_requests, samples
from traces.record import Outcome, RequestRecord
from traces.record_table import NUMBERS, TEXTS, RecordTable, TableBuilder
from traces.results import RunInfo, RunResult
from traces.results_io import read_run, write_run

seconds = st.none() | st.floats(0.0, 100.0)
counts = st.none() | st.integers(0, 5000)


@st.composite
def drawn_records(draw):
    found = []
    for index in range(draw(st.integers(1, 8))):
        outcome = draw(st.sampled_from(Outcome))
        sent = draw(st.floats(0.0, 10.0))
        first = sent + draw(st.floats(0.0, 5.0))
        done = outcome is Outcome.COMPLETED
        gaps = draw(st.lists(st.floats(0.0, 1.0), max_size=3))
        found.append(
            RequestRecord(
                index=index,
                request_id=f"name-{draw(st.integers(0, 9))}",
                outcome=outcome,
                scheduled_s=draw(st.floats(0.0, 10.0)),
                requested_input_tokens=draw(st.integers(1, 2**53)),
                requested_output_tokens=draw(st.integers(1, 2000)),
                recorded_output_tokens=draw(st.integers(0, 2000)),
                sent_s=sent if done else draw(seconds),
                first_token_s=first if done else draw(seconds),
                last_token_s=first + sum(gaps) if done else draw(seconds),
                input_tokens=draw(counts),
                output_tokens=draw(counts),
                cached_tokens=draw(counts),
                finish_reason=draw(st.none() | st.just("length")),
                error=draw(st.none() | st.text(max_size=5)),
                task=draw(st.none() | st.sampled_from(["a", "b"])),
                session_id=draw(st.none() | st.text(max_size=3)),
                directive=draw(st.none() | st.sampled_from(["L0", "L1"])),
                energy_j=draw(seconds),
                energy_method=draw(st.none() | st.just("simulated")),
                co2e_g=draw(seconds),
                itl_s=tuple(gaps),
            )
        )
    return found


@given(drawn_records())
def test_a_table_gives_its_records_back(records):
    table = RecordTable.of(records)
    assert list(table) == records
    assert table == records
    assert RecordTable.of(table) is table
    assert list(table[1:]) == records[1:]
    assert list(table.where(table.of_outcome(Outcome.FAILED))) == [r for r in records if r.outcome is Outcome.FAILED]
    assert table.texts_of("task") == list(dict.fromkeys(record.task for record in records))


@given(drawn_records(), st.fixed_dictionaries({"ttft": st.floats(0, 5e3), "tpot": st.floats(0, 1e3)}))
def test_figures_from_columns_are_those_of_the_records(records, limits):
    done = [record for record in records if record.completed]
    found = samples(records)
    for name in ("ttft", "tpot", "e2el", "ttft_scheduled", "e2el_scheduled"):
        expected = [value for record in done if (value := getattr(record, f"{name}_s")) is not None]
        assert found[name].tolist() == expected
    assert found["itl"].tolist() == [gap for record in done for gap in record.itl_s]
    assert found["send_lag"].tolist() == [record.send_lag_s for record in records if record.sent_s is not None]
    good = [all((getattr(r, f"{name}_s") or 0.0) <= limit / 1e3 for name, limit in limits.items()) for r in done]
    assert good_requests(records, limits) == sum(good)


def test_the_busiest_second_counts_every_chunk():
    """Two answers of three chunks: 0.5, 1.5, 1.6 and 1.2, 1.3, 4.0 s after the first send."""
    records = [_record(0, 0.0, 0.5, (1.0, 0.1)), _record(1, 0.2, 1.2, (0.1, 2.7))]
    assert busiest_second(records) == (4.0, 2)
    assert busiest_second(RecordTable.of(records)) == (4.0, 2)
    assert busiest_second([]) is None


def _record(index, sent, first, gaps, **fields):
    return RequestRecord(
        index, f"sim-{index}", Outcome.COMPLETED, sent, 10, 3, 3, sent, first, first + sum(gaps), 10, 3, 0,
        itl_s=gaps, **fields,
    )  # fmt: skip


def test_rows_added_out_of_order_come_back_by_index():
    builder = TableBuilder()
    for index in (2, 0, 1):
        row = {"index": index, "co2e_g": np.nan} | dict.fromkeys(NUMBERS[1:-1], 1.0)
        builder.add([row[name] for name in NUMBERS], ["completed", *[None] * (len(TEXTS) - 1)])
    table = builder.table().in_order()
    assert [record.request_id for record in table] == ["sim-0", "sim-1", "sim-2"]
    assert table[0].co2e_g is None
    assert table[0].input_tokens == 1
    assert isinstance(table[0].input_tokens, int)


def test_a_million_records_would_fit_in_200_mb():
    builder = TableBuilder()
    builder.add([0.0] * len(NUMBERS), ["completed"] * len(TEXTS))
    table = builder.table()
    assert table.numbers.nbytes + table.codes.nbytes <= 200


@pytest.mark.parametrize("named", [True, False])
def test_requests_are_written_in_row_groups_and_read_back(tmp_path, monkeypatch, named):
    monkeypatch.setattr(traces.results_io, "ROW_GROUP", 4)
    records = [_record(index, float(index), index + 0.5, ()) for index in range(10)]
    table = RecordTable.of(records)
    given_records = records if named else RecordTable(table.numbers, table.codes, table.texts)
    info = RunInfo("simulation", "2026-01-01", "b", "m", "t", "o", "recorded", "simulated")
    write_run(RunResult(info, 20.0, given_records), tmp_path)
    assert pq.ParquetFile(tmp_path / "requests.parquet").num_row_groups == 3
    assert read_run(tmp_path).records == records
