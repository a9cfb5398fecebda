"""Results on disk: `result.json` (everything but the requests), `summary.csv` (one row), `requests.parquet`."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from traces.record import Outcome, RequestRecord
from traces.results import SCHEMA, DeviceEnergy, RunInfo, RunResult

RESULT_FILE, SUMMARY_FILE, REQUESTS_FILE = "result.json", "summary.csv", "requests.parquet"
_INDENT = 2

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
    columns = {name: [getattr(record, name) for record in result.records] for name in _COLUMNS.names}
    columns["outcome"] = [str(outcome) for outcome in columns["outcome"]]
    columns["itl_s"] = [list(gaps) for gaps in columns["itl_s"]]
    scratch = folder / f".{REQUESTS_FILE}.part"
    pq.write_table(pa.table(columns, schema=_COLUMNS), scratch, compression="zstd")
    os.replace(scratch, folder / REQUESTS_FILE)


def read_run(folder: Path) -> RunResult:
    """A run as written by `write_run`. Raises `ValueError` where there is none or it has another schema."""
    path = folder / RESULT_FILE
    if not path.is_file():
        raise ValueError(f"{folder}: no {RESULT_FILE}; give a folder that `replay` or `simulate` wrote")
    document: dict[str, Any] = msgspec.json.decode(path.read_bytes())
    if document.get("schema") != SCHEMA:
        raise ValueError(f"{path}: schema {document.get('schema')!r}, known here is {SCHEMA!r}")
    rows = pq.read_table(folder / REQUESTS_FILE, schema=_COLUMNS).to_pylist()
    device = document["device"]
    return RunResult(
        info=msgspec.convert(document["info"], RunInfo),
        duration_s=document["run_duration_s"],
        records=[RequestRecord(**(row | {"outcome": Outcome(row["outcome"])})) for row in rows],
        aborted=document["aborted"],
        device=None if device is None else msgspec.convert(device, DeviceEnergy),
        slo_ms=document["slo_ms"],
        percentiles=document["percentiles"],
    )


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
