"""Results on disk: `result.json` (everything but the requests), `summary.csv` (one row), `requests.parquet`."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from traces.record import Outcome, RequestRecord
from traces.record_table import COUNTS, NUMBERS, TEXTS, RecordTable
from traces.results import SCHEMA, DeviceEnergy, RunInfo, RunResult

RESULT_FILE, SUMMARY_FILE, REQUESTS_FILE = "result.json", "summary.csv", "requests.parquet"
_INDENT = 2
ROW_GROUP = 65_536

_COLUMNS = pa.schema(
    [
        ("index", pa.int64()),
        ("request_id", pa.string()),
        ("outcome", pa.string()),
        ("scheduled_s", pa.float64()),
        ("requested_input_tokens", pa.int64()),
        ("requested_output_tokens", pa.int64()),
        ("recorded_output_tokens", pa.int64()),
        ("sent_s", pa.float64()),
        ("first_token_s", pa.float64()),
        ("last_token_s", pa.float64()),
        ("input_tokens", pa.int64()),
        ("output_tokens", pa.int64()),
        ("cached_tokens", pa.int64()),
        ("finish_reason", pa.string()),
        ("error", pa.string()),
        ("task", pa.string()),
        ("session_id", pa.string()),
        ("directive", pa.string()),
        ("energy_j", pa.float64()),
        ("energy_method", pa.string()),
        ("co2e_g", pa.float64()),
        ("itl_s", pa.list_(pa.float64())),
    ]
)


def write_run(result: RunResult, folder: Path) -> None:
    """Write the three files, each complete or not at all. Raises `ValueError` where the folder is a file."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; --out must be a folder")
    folder.mkdir(parents=True, exist_ok=True)
    summary = result.summary()
    info = msgspec.to_builtins(result.info)
    document = {
        **summary,
        "info": info,
        "percentiles": list(result.percentiles),
        "run_duration_s": result.duration_s,
    }
    text = msgspec.json.format(msgspec.json.encode(document), indent=_INDENT)
    _replace_file(folder / RESULT_FILE, text + b"\n")
    _write_summary(folder / SUMMARY_FILE, {**info, **summary})
    scratch = folder / f".{REQUESTS_FILE}.part"
    table = RecordTable.of(result.records)
    with pq.ParquetWriter(scratch, _COLUMNS, compression="zstd") as writer:
        for first in range(0, max(len(table), 1), ROW_GROUP):
            writer.write_table(_arrow(table[first : first + ROW_GROUP]))
    os.replace(scratch, folder / REQUESTS_FILE)


def _arrow(table: RecordTable) -> pa.Table:
    columns: dict[str, Any] = {}
    for name in NUMBERS:
        values = table.column(name)
        unknown = np.isnan(values)
        if name in COUNTS:
            values = np.where(unknown, 0.0, values).astype(np.int64)
        columns[name] = pa.array(values, mask=unknown)
    known = pa.array(table.texts, pa.string())
    for name in TEXTS:
        columns[name] = known.take(pa.array(table.text_codes(name)))
    columns["request_id"] = [record.request_id for record in table] if table.ids is None else table.ids
    columns["itl_s"] = [[]] * len(table) if table.gaps is None else [list(gaps) for gaps in table.gaps]
    return pa.table({name: columns[name] for name in _COLUMNS.names}, schema=_COLUMNS)


def read_run(folder: Path) -> RunResult:
    """A run as written by `write_run`. Raises `ValueError` where there is none or it has another schema."""
    path = folder / RESULT_FILE
    if not path.is_file():
        raise ValueError(f"{folder}: no {RESULT_FILE}; give a folder that `replay` or `simulate` wrote")
    document: dict[str, Any] = msgspec.json.decode(path.read_bytes())
    if document.get("schema") != SCHEMA:
        raise ValueError(f"{path}: schema {document.get('schema')!r}, known here is {SCHEMA!r}")
    device = document["device"]
    return RunResult(
        info=msgspec.convert(document["info"], RunInfo),
        duration_s=document["run_duration_s"],
        records=RecordTable.of(_records(folder / REQUESTS_FILE)),
        aborted=document["aborted"],
        device=None if device is None else msgspec.convert(device, DeviceEnergy),
        slo_ms=document["slo_ms"],
        percentiles=document["percentiles"],
    )


def _records(path: Path) -> Iterator[RequestRecord]:
    """A row group at a time: as objects, rows take ten times the room of a table."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(ROW_GROUP):
            for row in batch.to_pylist():
                row |= {"outcome": Outcome(row["outcome"]), "itl_s": tuple(row["itl_s"])}
                yield RequestRecord(**row)


def _write_summary(path: Path, figures: Mapping[str, Any]) -> None:
    """One header and one row: the scalar figures, empty where missing."""
    scalars = {name: value for name, value in figures.items() if not isinstance(value, dict | list | tuple)}
    scratch = path.with_name(f".{path.name}.part")
    with scratch.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(scalars))
        writer.writeheader()
        writer.writerow(scalars)
    os.replace(scratch, path)


def _replace_file(path: Path, content: bytes) -> None:
    scratch = path.with_name(f".{path.name}.part")
    scratch.write_bytes(content)
    os.replace(scratch, path)
