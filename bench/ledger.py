"""The ledger under load: rows written a second while readers read. `gridserve bench ledger [--json FILE]`.

One writer fed by one thread with whole request rows (45 columns, energy and intensity set, a random id), acknowledged
after fsync; beside it telemetry at 960 samples/s and reader processes that page, sum a tenant's day and draw a chart
without pause. `--url` measures PostgreSQL instead of SQLite.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.synchronize import Event
from pathlib import Path

from serving.ledger.engine import Location, sqlite_module
from serving.ledger.reader import LedgerReader
from serving.ledger.rows import AuditEntry, RequestRow
from serving.ledger.telemetry import SeriesSpec
from serving.ledger.telemetry_reader import TelemetryReader
from serving.ledger.writer import LedgerWriter, WriterSettings

SERIES = [SeriesSpec(f"bench_{number}", "J", is_counter=True) for number in range(96)]
TICK_S = 0.1
ACK_EVERY = 100
BURST = 20
CHART_US = 600_000_000
MAX_QUEUED = 5000
"""The feeder pauses above this, so that an acknowledgement measures the writer and not an endless queue."""


@dataclass(frozen=True, slots=True)
class LedgerSpeed:
    """Measured wall time. `acknowledge_*`: from handing a row over to its being on disk, under this load."""

    backend: str
    seconds: float
    rows: int
    rows_per_s: float
    refused_rows: int
    rejected_rows: int
    samples: int
    dropped_samples: int
    acknowledge_p50_ms: float
    acknowledge_p99_ms: float
    readers: int
    reads: int
    read_errors: int
    read_p50_ms: float | None
    read_p99_ms: float | None
    bytes_per_row: float | None


def measure(location: Location, seconds: float, readers: int, rate: float | None = None) -> LedgerSpeed:
    """Write for `seconds` as fast as rows are taken, or `rate` rows a second; ends with the last row on disk."""
    context = multiprocessing.get_context("spawn")
    stop, ready, results = context.Event(), context.Semaphore(0), context.Queue()
    with LedgerWriter(location, WriterSettings()) as writer:
        writer.submit(_request(0, time.time_ns() // 1000)).result()
        others = [
            context.Process(target=_read, args=(location, stop, ready, results), daemon=True) for _ in range(readers)
        ]
        for other in others:
            other.start()
        for _ in others:
            ready.acquire()
        before = writer.status
        started_s = time.monotonic()
        rows, waits_s = _feed(writer, started_s, seconds, rate)
        elapsed_s = time.monotonic() - started_s
        stop.set()
        found = [results.get(timeout=60) for _ in others]
        for other in others:
            other.join()
        after = writer.status
    reads_s = sorted(taken for times, _ in found for taken in times)
    size = location.file("ledger").stat().st_size if location.is_sqlite else None
    return LedgerSpeed(
        backend=_backend(location),
        seconds=elapsed_s,
        rows=rows,
        rows_per_s=rows / elapsed_s,
        refused_rows=after.refused_rows - before.refused_rows,
        rejected_rows=after.rejected_rows,
        samples=after.written_samples - before.written_samples,
        dropped_samples=after.dropped_samples,
        acknowledge_p50_ms=1e3 * statistics.median(waits_s),
        acknowledge_p99_ms=1e3 * _quantile(sorted(waits_s), 0.99),
        readers=readers,
        reads=len(reads_s),
        read_errors=sum(errors for _, errors in found),
        read_p50_ms=1e3 * statistics.median(reads_s) if reads_s else None,
        read_p99_ms=1e3 * _quantile(reads_s, 0.99) if reads_s else None,
        bytes_per_row=size / rows if size is not None else None,
    )


def _feed(writer: LedgerWriter, started_s: float, seconds: float, rate: float | None) -> tuple[int, list[float]]:
    """Rows handed over and written, and how long acknowledged ones took."""
    rows, tick = 0, 0
    waiting: list[Future[None]] = []
    waits_s: list[float] = []
    next_tick_s = time.monotonic()
    while (now_s := time.monotonic()) < started_s + seconds:
        at_us = time.time_ns() // 1000
        if now_s >= next_tick_s:
            next_tick_s += TICK_S
            tick += 1
            for series in SERIES:
                writer.sample(series, at_us, float(tick))
            writer.put(AuditEntry(at_us=at_us, kind="decision", actor="bench", inputs={"tick": tick}))
            rows += 1
        for number in range(BURST):
            row = _request(number, at_us + number)
            if rows % ACK_EVERY == 0:
                handed_s = time.monotonic()
                future = writer.submit(row)
                future.add_done_callback(partial(_note, waits_s, handed_s))
                waiting.append(future)
            else:
                writer.put(row)
            rows += 1
        due_s = started_s + rows / rate if rate is not None else 0.0
        while writer.status.queued_rows > MAX_QUEUED or time.monotonic() < due_s:
            time.sleep(0.001)
    waiting.append(writer.submit(_request(0, time.time_ns() // 1000)))
    for future in waiting:
        future.result()
    return rows + 1, waits_s


def _note(waits_s: list[float], handed_s: float, _done: object) -> None:
    waits_s.append(time.monotonic() - handed_s)


def _request(number: int, at_us: int) -> RequestRow:
    return RequestRow(
        request_id=f"chatcmpl-{uuid.uuid4().hex}",
        arrived_us=at_us,
        finished_us=at_us + 1_500_000,
        model="bench",
        tenant=f"tenant-{number % 10}",
        endpoint="chat",
        task_class="chat",
        directive="L1",
        directive_reason="mix",
        policy_revision="3f9c0a3f9c0a",
        policy_mode="enforce",
        priority=0,
        prompt_tokens=512,
        completion_tokens=128,
        cached_tokens=256,
        choices=1,
        queue_s=0.001,
        ttft_s=0.12,
        tpot_s=0.011,
        e2e_s=1.5,
        energy_j=12.4,
        prefill_j=3.1,
        decode_j=8.2,
        idle_j=1.1,
        energy_method="measured",
        energy_source="nvml_energy_counter",
        energy_scope="gpu",
        attribution_method="work_share",
        energy_uncertainty_percent=3.0,
        operational_g=0.00049,
        embodied_g=0.00003,
        pue=1.2,
        intensity_g_per_kwh=142.0,
        intensity_source="uk_grid",
        intensity_kind="estimated",
        intensity_tier="live",
        intensity_basis="average",
        intensity_boundary="direct",
        intensity_age_s=420.0,
        zone="GB",
        finish_reason="stop",
        status=200,
    )


def _read(location: Location, stop: Event, ready: object, results: object) -> None:
    """A reader process: the dashboard's questions, one after another."""
    ledger, telemetry = LedgerReader(location), TelemetryReader(location)
    times_s: list[float] = []
    errors = 0
    ready.release()  # type: ignore[attr-defined]
    while not stop.is_set():
        now_us = time.time_ns() // 1000
        started_s = time.monotonic()
        try:
            page = ledger.requests(limit=100)
            ledger.usage("tenant-1", now_us)
            if page:
                ledger.request(page[-1]["request_id"])
            telemetry.latest()
            if telemetry.latest():
                telemetry.range(SERIES[0].name, now_us - CHART_US, now_us)
        except Exception:  # noqa: BLE001 - whatever it is, it is counted and reported
            errors += 1
        times_s.append(time.monotonic() - started_s)
        stop.wait(0.005)
    ledger.close()
    telemetry.close()
    results.put((times_s, errors))  # type: ignore[attr-defined]


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _backend(location: Location) -> str:
    if location.is_sqlite:
        return f"SQLite {sqlite_module().sqlite_version} WAL, synchronous=FULL"
    reader = LedgerReader(location)
    with reader.engine.connect() as connection:
        version = connection.exec_driver_sql("SHOW server_version").scalar()
    reader.close()
    return f"PostgreSQL {version}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="gridserve bench ledger", description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rate", type=float, help="rows a second; default as many as are taken")
    parser.add_argument("--readers", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the SQLite files go; default a temporary folder")
    parser.add_argument("--url", help="PostgreSQL database to measure instead; its tables are filled")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        location = Location.at_url(arguments.url) if arguments.url else Location(Path(folder))
        speed = measure(location, arguments.seconds, arguments.readers, arguments.rate)
    print(f"{speed.backend}: {speed.rows_per_s:,.0f} rows/s over {speed.seconds:.1f} s with {speed.readers} readers")
    print(f"acknowledged p50 {speed.acknowledge_p50_ms:.1f} ms, p99 {speed.acknowledge_p99_ms:.1f} ms")
    if speed.read_p50_ms is not None:
        print(f"{speed.reads} reads, p50 {speed.read_p50_ms:.1f} ms, p99 {speed.read_p99_ms:.1f} ms")
    print(f"refused {speed.refused_rows}, rejected {speed.rejected_rows}, read errors {speed.read_errors}")
    if arguments.json:
        machine = {"machine": platform.platform(), "cores": os.cpu_count(), "load_1m": os.getloadavg()[0]}
        arguments.json.write_text(json.dumps({"method": "measured", **machine, **asdict(speed)}, indent=2) + "\n")
    return 0
