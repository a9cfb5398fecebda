"""`gridserve bench engine --device cuda`: whole engines on one GPU, random weights of published shapes, with joules.

Two workloads: the common one of small engines (256 requests, 100 to 1024 tokens in and out, seed 0) and one request
alone. Energy is the difference of the board's own counter over the run. A single request is set against the time that
reading its weights and cache takes at the copy rate measured in the same run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench._gpu_shapes import SHAPES, TINY, step_weight_bytes
from bench._gpu_systems import GpuMeasurement, GpuWorkload

DRY = "dry run on CPU shapes: every step taken, no figure means anything"
DEFAULT_SYSTEMS = ("gridserve", "transformers-continuous", "vllm")


@dataclass(frozen=True, slots=True)
class GpuRow:
    """One system, shape and workload; None where it was not measured, with the reason.

    `of_floor`: for one request, tokens a second as a part of what the copy rate of all its cards allows
    for the bytes that this system stores.
    """

    system: str
    shape: str
    workload: str
    version: str | None
    output_tok_s: float | None
    total_tok_s: float | None
    joules_per_token: float | None
    of_floor: float | None
    start_s: float | None
    missing: str | None = None


def workloads(dry: bool) -> dict[str, GpuWorkload]:
    if dry:
        return {"common": GpuWorkload(6, 4, 12), "single": GpuWorkload(1, 8, 8)}
    return {"common": GpuWorkload(256, 100, 1024), "single": GpuWorkload(1, 512, 512)}


class GpuPeer:
    """One system in its own process, so that each finds the card empty."""

    def __init__(self, name: str, shape: str, device: str, ranks: int) -> None:
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the peer
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench._gpu_systems", name, shape, device, str(ranks)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        )
        self.hello = self._answer()

    def run(self, workload: GpuWorkload) -> GpuMeasurement:
        assert self._process.stdin is not None
        print(json.dumps(asdict(workload)), file=self._process.stdin, flush=True)
        return GpuMeasurement(**self._answer())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._said.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._said.seek(0)
            said = self._said.read().strip().splitlines() or ["no message"]
            raise RuntimeError(f"ended without an answer: {said[-1][:300]}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def rows_of(name: str, shape: str, dry: bool, copy_gbps: float | None, ranks: int) -> list[GpuRow]:
    """Measure one system on one shape; a system that is absent or fails leaves rows that say why."""
    wanted = workloads(dry)
    served, device = ("tiny", "cpu") if dry else (shape, "cuda")

    def absent(reason: str, labels: Iterable[str] = wanted) -> list[GpuRow]:
        return [GpuRow(name, shape, each, None, None, None, None, None, None, reason) for each in labels]

    peer = None
    try:
        peer = GpuPeer(name, served, device, ranks)
        if "missing" in peer.hello:
            return absent(f"not installed: {peer.hello['missing']}")
        rows = []
        for label, workload in wanted.items():
            if not dry:
                peer.run(GpuWorkload(min(workload.requests, 32), 8, 16, seed=1))
            measured = peer.run(workload)
            if dry:
                rows += absent(f"dry run, {measured.output_tokens} tokens came out", [label])
            else:
                rows.append(row(name, shape, label, workload, measured, peer.hello["version"], copy_gbps, ranks))
        return rows
    except (RuntimeError, OSError) as error:
        return absent(str(error))
    finally:
        if peer is not None:
            peer.close()


BF16_BYTES = (2, 2)
# Of a weight and of an element of keys and values, where a system stores one of them in 8 bits.
STORED_BYTES = {"gridserve-int8-weights": (1, 2), "gridserve-int8-kv": (2, 1), "gridserve-fp8-kv": (2, 1)}


def row(
    name: str,
    shape: str,
    label: str,
    workload: GpuWorkload,
    measured: GpuMeasurement,
    version: str,
    copy_gbps: float | None,
    ranks: int = 1,
) -> GpuRow:
    rate = measured.output_tokens / measured.seconds
    of_floor = None
    if workload.requests == 1 and copy_gbps is not None:
        config = SHAPES[shape]
        context = workload.longest + workload.longest / 2
        weight, element = STORED_BYTES.get(name, BF16_BYTES)
        step_bytes = step_weight_bytes(config, weight) + context * config.kv_bytes_per_token(element)
        of_floor = rate * step_bytes / (copy_gbps * ranks * 1e9)
    return GpuRow(
        system=name,
        shape=shape,
        workload=label,
        version=version,
        output_tok_s=rate,
        total_tok_s=(measured.output_tokens + measured.prompt_tokens) / measured.seconds,
        joules_per_token=None if measured.energy_j is None else measured.energy_j / measured.output_tokens,
        of_floor=of_floor,
        start_s=measured.start_seconds,
    )


def table(rows: list[GpuRow]) -> str:
    """Markdown, one line for each system, shape and workload; ratios to transformers and vLLM of the same run."""
    base = {
        (each.system, each.shape, each.workload): each.output_tok_s for each in rows if each.output_tok_s is not None
    }

    def ratio(each: GpuRow, other: str) -> str:
        theirs = base.get((other, each.shape, each.workload))
        return f"{each.output_tok_s / theirs:.2f}" if each.output_tok_s is not None and theirs else "n/a"

    def figure(value: float | None, form: str) -> str:
        return "n/a" if value is None else format(value, form)

    lines = [
        "| shape | workload | system | output tok/s | x transformers | x vLLM | J/token | of floor | start s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for each in rows:
        if each.missing is not None:
            lines.append(f"| {each.shape} | {each.workload} | {each.system} | not measured: {each.missing} | | | | | |")
            continue
        lines.append(
            f"| {each.shape} | {each.workload} | {each.system} | {figure(each.output_tok_s, '.0f')} "
            f"| {ratio(each, 'transformers-continuous')} | {ratio(each, 'vllm')} "
            f"| {figure(each.joules_per_token, '.3f')} | {figure(each.of_floor, '.0%')} "
            f"| {figure(each.start_s, '.1f')} |"
        )
    return "\n".join(lines)


def run(
    shapes: list[str],
    systems: list[str],
    dry: bool,
    json_path: Path | None,
    markdown: Path | None,
    ranks: int = 1,
) -> int:
    """Measure, print the table, write the reports. Raises `ValueError` where a GPU is asked for and there is none."""
    import torch

    if not dry and not torch.cuda.is_available():
        raise ValueError("no NVIDIA GPU on this machine: nothing can be measured; --dry-run takes every step on a CPU")
    copy_gbps = None
    found: dict[str, Any] = {"torch": torch.__version__, "device": None, "driver": None}
    if not dry:
        from bench._kernel_timing import copy_ceiling_gbps

        copy_gbps = copy_ceiling_gbps()
        torch.cuda.empty_cache()
        found |= {"device": torch.cuda.get_device_name(0), "driver": _driver()}
    rows: list[GpuRow] = []
    for shape in shapes:
        for name in systems:
            if sys.stderr.isatty():
                print(f"{shape}: {name}", file=sys.stderr)
            rows += rows_of(name, shape, dry, copy_gbps, ranks)
    text = _heading(dry, found, copy_gbps) + table(rows) + "\n"
    print(text)
    if markdown is not None:
        markdown.write_text(text)
    if json_path is not None:
        document = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "measured": not dry,
            "environment": found,
            "copy_gbps": copy_gbps,
            "tensor_parallel": ranks,
            "tiny": asdict(TINY) if dry else None,
            "workloads": {name: asdict(each) for name, each in workloads(dry).items()},
            "rows": [asdict(each) for each in rows],
        }
        json_path.write_text(json.dumps(document, indent=1, default=str) + "\n")
    return 0


def _heading(dry: bool, found: dict[str, Any], copy_gbps: float | None) -> str:
    if dry:
        return f"**{DRY}.**\n\n"
    return f"{found['device']}, driver {found['driver']}, torch {found['torch']}; copy {copy_gbps:.0f} GB/s.\n\n"


def _driver() -> str | None:
    import pynvml

    try:
        pynvml.nvmlInit()
        version = pynvml.nvmlSystemGetDriverVersion()
        pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return None
    return version.decode() if isinstance(version, bytes) else str(version)
