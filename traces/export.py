"""Write a workload in the formats that other load generators and simulators read, each in the units it expects."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from traces.formats.native import NATIVE, NATIVE_VERSION, NativeHeader, native_lines
from traces.formats.prefix_traces import MOONCAKE_BLOCK_TOKENS
from traces.formats.simulators import SPLITWISE_COLUMNS
from traces.request import TraceRequest
from traces.workload import Workload

# Ids of blocks that share nothing: above those of any known trace, within the 32 bits that guidellm reads.
FRESH_IDS_FROM = 2**30


@dataclass(frozen=True, slots=True)
class ExportFormat:
    """`usage`: how the other tool reads the file. `lines` takes the workload, its requests and a block size."""

    name: str
    suffix: str
    usage: str
    lines: Callable[[Workload, Iterable[TraceRequest], int], Iterator[bytes]]
    needs_blocks: bool = False


@dataclass(frozen=True, slots=True)
class Exported:
    """`left_out`: requests recorded without an answer, which only our own format can express."""

    written: int
    left_out: int


def export(workload: Workload, path: Path, format: str) -> Exported:
    """Write the file, complete or not at all. Raises `ValueError` for what the format cannot say.

    Without loss only in `native`; the others keep arrivals, lengths and (where they know them) prefix ids.
    """
    if format not in EXPORTS:
        raise ValueError(f"unknown export format {format!r}; known: {', '.join(EXPORTS)}")
    requests = left_out = 0

    def counted() -> Iterator[TraceRequest]:
        nonlocal requests, left_out
        for request in workload:
            if request.output_tokens == 0 and format != NATIVE.name:
                left_out += 1
                continue
            requests += 1
            yield request

    block_tokens = MOONCAKE_BLOCK_TOKENS
    if EXPORTS[format].needs_blocks:
        known = (request.block_tokens for request in workload if request.block_tokens is not None)
        block_tokens = next(known, MOONCAKE_BLOCK_TOKENS)
    scratch = path.with_name(f".{path.name}.part")
    try:
        with scratch.open("wb") as stream:
            stream.writelines(EXPORTS[format].lines(workload, counted(), block_tokens))
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
    return Exported(requests, left_out)


Requests = Iterable[TraceRequest]


def _native(workload: Workload, requests: Requests, _block_tokens: int) -> Iterator[bytes]:
    started = workload.origin.started_at
    header = NativeHeader(
        format=NATIVE_VERSION,
        name=workload.name,
        obtained=workload.obtained,
        source=workload.steps[0] if workload.steps else workload.name,
        started_at=started.isoformat() if started else None,
        seconds_of_day=workload.origin.seconds_of_day,
        steps=workload.steps,
    )
    return native_lines(header, requests)


def _block_ids(requests: Requests, block_tokens: int) -> Iterator[tuple[TraceRequest, list[int]]]:
    """Each request with ids for all its blocks: its own first, then fresh ones.

    vllm and guidellm build the prompt from the ids alone: a request without them would get an empty prompt.
    """
    fresh = FRESH_IDS_FROM
    for request in requests:
        ids: list[int] = []
        if request.block_tokens is not None and request.prefix_ids:
            if request.block_tokens != block_tokens:
                raise ValueError(
                    f"requests have prefix blocks of {block_tokens} and of {request.block_tokens} tokens: "
                    "this format knows one size for all; export the parts apart"
                )
            ids = list(request.prefix_ids)
            if max(ids) >= FRESH_IDS_FROM:
                raise ValueError(
                    f"prefix id {max(ids)} is not below {FRESH_IDS_FROM}; readers of this format take 32 bits"
                )
        needed = -(-request.input_tokens // block_tokens)
        missing = needed - len(ids)
        if missing > 0:
            ids += range(fresh, fresh + missing)
            fresh += missing
        yield request, ids[:needed]


def _mooncake_rows(requests: Requests, block_tokens: int, stamp: Callable[[float], float]) -> Iterator[bytes]:
    first_s: float | None = None
    for request, ids in _block_ids(requests, block_tokens):
        first_s = request.arrival_s if first_s is None else first_s
        row: dict[str, Any] = {
            "timestamp": stamp(request.arrival_s - first_s),
            "input_length": request.input_tokens,
            "output_length": request.output_tokens,
            "hash_ids": ids,
        }
        yield msgspec.json.encode(row) + b"\n"


def _milliseconds(at_s: float) -> int:
    return round(at_s * 1e3)


def _seconds(at_s: float) -> float:
    return round(at_s, 6)


def _mooncake(_workload: Workload, requests: Requests, block_tokens: int) -> Iterator[bytes]:
    return _mooncake_rows(requests, block_tokens, _milliseconds)


def _in_seconds(_workload: Workload, requests: Requests, block_tokens: int) -> Iterator[bytes]:
    return _mooncake_rows(requests, block_tokens, _seconds)


def _vidur(_workload: Workload, requests: Requests, _block_tokens: int) -> Iterator[bytes]:
    yield b"arrived_at,num_prefill_tokens,num_decode_tokens\n"
    for request in requests:
        yield f"{request.arrival_s:.6f},{request.input_tokens},{request.output_tokens}\n".encode()


def _splitwise(_workload: Workload, requests: Requests, _block_tokens: int) -> Iterator[bytes]:
    """splitwise-sim cannot take an arrival at 0 (its instances start then): all arrive 1 ms later."""
    yield (",".join(SPLITWISE_COLUMNS) + "\n").encode()
    for index, request in enumerate(requests):
        row = (index, 2, 0, f"{request.arrival_s + 1e-3:.6f}", 1, request.input_tokens, request.output_tokens)
        yield (",".join(map(str, row)) + "\n").encode()


EXPORTS: Mapping[str, ExportFormat] = {
    form.name: form
    for form in (
        ExportFormat("native", ".jsonl", "gridserve replay FILE", _native),
        ExportFormat(
            "aiperf",
            ".jsonl",
            "aiperf profile --input-file FILE --custom-dataset-type mooncake-trace --fixed-schedule",
            _mooncake,
            needs_blocks=True,
        ),
        ExportFormat(
            "vllm",
            ".jsonl",
            "vllm bench serve --dataset-name timed_trace --dataset-path FILE --self-timed --ignore-eos "
            "--timed-trace-chunk-hash-size BLOCK",
            _in_seconds,
            needs_blocks=True,
        ),
        ExportFormat(
            "guidellm",
            ".jsonl",
            "guidellm run --profile kind=replay --data kind=mooncake,path=FILE,hash_id_block_size=BLOCK",
            _in_seconds,
            needs_blocks=True,
        ),
        ExportFormat("vidur", ".csv", "Vidur, trace replay request generator", _vidur),
        ExportFormat("splitwise-sim", ".csv", "splitwise-sim trace file", _splitwise),
    )
}
