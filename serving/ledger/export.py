"""Rows of a range of time to CSV or Parquet.

Text in a CSV that a spreadsheet would run as a formula (`=`, `+`, `-`, `@`, tab, carriage return first) gets an
apostrophe before it: tenant and model names are other people's words (OWASP, "CSV injection"). Parquet is typed and
keeps them as they are.
"""

from __future__ import annotations

import csv
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from sqlalchemy import BigInteger, Boolean, Double, Integer, Table

from serving.ledger.reader import LedgerReader
from serving.ledger.tables import AUDIT, FEED_VALUES, POLICY_REVISIONS, REQUESTS

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")
EXPORTS: dict[str, tuple[Table, str]] = {
    "requests": (REQUESTS, "arrived_us"),
    "audit": (AUDIT, "at_us"),
    "feed_values": (FEED_VALUES, "start_us"),
    "policy_revisions": (POLICY_REVISIONS, "activated_us"),
}


def export(
    reader: LedgerReader,
    name: str,
    path: Path,
    since_us: int,
    until_us: int,
    progress: Callable[[int], None] = lambda _rows: None,
) -> int:
    """Write `[since, until)` of a table of `EXPORTS` to `path` (.csv or .parquet), whole or not at all.

    Returns the number of rows. Raises `ValueError` for another table or ending.
    """
    if name not in EXPORTS:
        raise ValueError(f"{name!r} is not exported; choose one of {', '.join(EXPORTS)}")
    if path.suffix not in (".csv", ".parquet"):
        raise ValueError(f"{path.name}: the name must end in .csv or .parquet")
    table, column = EXPORTS[name]
    count = 0
    with _replacing(path) as temporary, _sink(table, temporary, path.suffix) as write:
        for rows in reader.stream(table, since_us, until_us, column):
            write(rows)
            count += len(rows)
            progress(count)
    return count


def safe_cell(value: Any) -> Any:
    """A CSV cell that no spreadsheet runs; NULL is the empty cell."""
    if isinstance(value, str) and value.startswith(FORMULA_STARTS):
        return f"'{value}"
    return value


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o640)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


Sink = Callable[[Any], None]


@contextmanager
def _sink(table: Table, path: Path, suffix: str) -> Iterator[Sink]:
    if suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            yield _csv_sink(table, file)
        return
    import pyarrow
    import pyarrow.parquet

    types = {Boolean: pyarrow.bool_(), Double: pyarrow.float64(), BigInteger: pyarrow.int64(), Integer: pyarrow.int64()}
    schema = pyarrow.schema([(column.name, types.get(type(column.type), pyarrow.string())) for column in table.columns])
    with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd") as writer:

        def write(rows: Any) -> None:
            writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))

        yield write


def _csv_sink(table: Table, file: IO[str]) -> Sink:
    names = [column.name for column in table.columns]
    writer = csv.writer(file)
    writer.writerow(names)

    def write(rows: Any) -> None:
        writer.writerows([safe_cell(row[name]) for name in names] for row in rows)

    return write
