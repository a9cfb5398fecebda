"""Offline search for the kernels' meta-parameters: each entry of the tables against its candidates, on this card."""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from triton.errors import TritonError

from bench import _kernel_timing
from bench._kernel_cases import HEAD_DIM, KernelCase, all_cases
from kernels.gpu import tuning


@dataclasses.dataclass(frozen=True)
class Sweep:
    """One entry of a table: the cases that decide it and the configurations that compete."""

    table: str
    key: tuple[Any, ...]
    cases: tuple[str, ...]
    candidates: tuple[Any, ...]


def sweeps(capability: int) -> Iterator[Sweep]:
    decodes: tuple[tuple[int, tuple[str, ...]], ...] = (
        (2, ("decode 32 x 2048 bf16", "decode 32 x 8192 bf16", "decode 8 x 8192 bf16")),
        (1, ("decode 32 x 8192 int8", "decode 32 x 8192 float8_e4m3fn")),
    )
    prefills: tuple[tuple[int, tuple[str, ...]], ...] = (
        (2, ("prefill 8192 bf16", "chunk 2048 of 16384 bf16")),
        (1, ("prefill 8192 int8",)),
    )
    for element_bytes, cases in decodes:
        candidates = tuple(
            tuning.DecodeConfig(tile, warps, stages, per_sm)
            for tile, warps, stages, per_sm in itertools.product((32, 64, 128), (4, 8), (3, 5, 6), (1, 2, 4))
        )
        yield Sweep("decode", (capability, element_bytes, HEAD_DIM), cases, candidates)
    for element_bytes, cases in prefills:
        blocks = tuple(
            tuning.PrefillConfig(block_m, tile, warps, stages)
            for block_m, tile, warps, stages in itertools.product((64, 128), (32, 64, 128), (4, 8), (2, 3, 5))
        )
        yield Sweep("prefill", (capability, element_bytes, HEAD_DIM), cases, blocks)
    names = {
        tuning.PackedFormat.DENSE: "dense bf16",
        tuning.PackedFormat.INT8: "int8",
        tuning.PackedFormat.INT4: "int4",
    }
    for kind, tokens in itertools.product(names, (16, 64)):
        steps = (64,) if kind is tuning.PackedFormat.INT4 else (64, 128)
        linears = tuple(
            tuning.LinearConfig(tokens, block_n, block_k, warps, stages, per_sm)
            for block_n, block_k, warps, stages, per_sm in itertools.product(
                (64, 128), steps, (4,), (3, 4, 5), (1, 2, 3)
            )
        )
        yield Sweep("linear", (kind, 2, tokens), (f"linear {names[kind]} {tokens} x",), linears)


def write_table(path: Path) -> None:
    """Measure every sweep and write the winners as `tuning.load_table` reads them."""
    capability = 10 * torch.cuda.get_device_capability(0)[0] + torch.cuda.get_device_capability(0)[1]
    card = torch.cuda.get_device_name(0)
    found = [entry for sweep in sweeps(capability) if (entry := decide(sweep, all_cases())) is not None]
    path.write_text(json.dumps({"measured_on": card, "entries": found}, indent=2) + "\n")


def decide(sweep: Sweep, cases: list[KernelCase]) -> dict[str, Any] | None:
    """Put the fastest candidate in the table and describe it; None, with the table as it was, when none runs."""
    chosen = [case for case in cases if any(case.name.startswith(name) for name in sweep.cases)]
    table = tuning.tables()[sweep.table]
    before = table.get(sweep.key)
    times = time_candidates(sweep, chosen, table)
    if times:
        best = min(times, key=lambda config: times[config])
        table[sweep.key] = best
        return {"table": sweep.table, "key": list(sweep.key), "config": dataclasses.asdict(best), "us": times[best]}
    print(f"no candidate runs for {sweep.table} {sweep.key}; the entry stays as it is", file=sys.stderr)
    if before is None:
        del table[sweep.key]
    else:
        table[sweep.key] = before
    return None


def time_candidates(sweep: Sweep, cases: list[KernelCase], table: dict[Any, Any]) -> dict[Any, float]:
    """Geometric-mean time of each candidate that runs; those over the card's limits are left out."""
    inputs = [
        [case.build("cuda", False) for _ in range(_kernel_timing.copies_for_cold_l2(case.bytes_moved))]
        for case in cases
    ]
    times: dict[Any, float] = {}
    for number, config in enumerate(sweep.candidates, 1):
        if sys.stderr.isatty():
            print(f"{sweep.table} {sweep.key}: {number}/{len(sweep.candidates)}", file=sys.stderr)
        table[sweep.key] = config
        product = 1.0
        try:
            for case, sets in zip(cases, inputs):
                product *= _kernel_timing.median_us([partial(case.ours, each) for each in sets])
        except (RuntimeError, ValueError, TritonError) as error:
            print(f"{config}: {str(error).splitlines()[0]}", file=sys.stderr)
            continue
        times[config] = product ** (1 / len(cases))
    return times
