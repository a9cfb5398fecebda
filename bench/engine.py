"""`gridserve bench engine`: whole engines side by side, same model file, same lengths, same threads, in one run.

The systems take turns, round by round, so that a drift of the machine meets them all; each figure is the median of
the rounds. Decode throughput counts the tokens after the last request's first token; output throughput counts all
tokens of the run, prefill included.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from bench import _gpu_engine
from bench._gpu_shapes import SHAPES
from bench._gpu_systems import SYSTEMS as GPU_SYSTEMS
from bench._machine import cpu_name
from bench._systems import SYSTEMS, Measurement, Workload

DEFAULT_SYSTEMS = ("gridserve", "llama.cpp", "transformers-generate", "transformers-continuous")


@dataclass(frozen=True, slots=True)
class Row:
    """One system at one concurrency. Rates in tokens per second, times in milliseconds, memory in MiB."""

    system: str
    concurrency: int
    output_tok_s: float
    decode_tok_s: float
    prefill_tok_s: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    itl_p50_ms: float
    itl_p99_ms: float
    peak_memory_mib: float


class Peer:
    """One system in its own process."""

    def __init__(self, name: str, model: str, threads: int, ranks: int) -> None:
        self.name = name
        environment = dict(os.environ, OMP_NUM_THREADS=str(threads), TOKENIZERS_PARALLELISM="false")
        environment["HF_HUB_OFFLINE"] = "1"
        # A file, not a pipe: what a library says at length must not block it.
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the peer
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench._systems", name, model, str(threads), str(ranks)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env=environment,
        )
        hello = self._answer()
        self.missing: str | None = hello.get("missing")
        self.version: str | None = hello.get("version")

    def run(self, workload: Workload) -> Measurement:
        assert self._process.stdin is not None
        print(json.dumps(asdict(workload)), file=self._process.stdin, flush=True)
        return Measurement(**self._answer())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._said.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._said.seek(0)
            raise RuntimeError(f"{self.name} ended without an answer:\n{self._said.read()[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def row(system: str, workload: Workload, rounds: list[Measurement]) -> Row:
    """Medians over the rounds of one system at one concurrency."""

    def median(values: list[float]) -> float:
        return float(statistics.median(values))

    output, decode, prefill, ttfts, gaps = [], [], [], [], []
    for measured in rounds:
        times = measured.token_times_s
        total = sum(len(each) for each in times)
        end_s, last_first_s = max(each[-1] for each in times), max(each[0] for each in times)
        later = sum(1 for each in times for stamp in each if stamp > last_first_s)
        output.append(total / end_s)
        decode.append(later / (end_s - last_first_s) if later else float("nan"))
        prefill.append(workload.concurrency * workload.prompt_tokens / last_first_s)
        ttfts.append(np.percentile([each[0] for each in times], [50, 99]) * 1e3)
        gaps.append(np.percentile(np.concatenate([np.diff(each) for each in times]), [50, 99]) * 1e3)
    return Row(
        system,
        workload.concurrency,
        median(output),
        median(decode),
        median(prefill),
        median([float(pair[0]) for pair in ttfts]),
        median([float(pair[1]) for pair in ttfts]),
        median([float(pair[0]) for pair in gaps]),
        median([float(pair[1]) for pair in gaps]),
        max(measured.peak_memory_bytes for measured in rounds) / 2**20,
    )


def table(rows: list[Row]) -> str:
    """Markdown: one line per concurrency and system, with decode throughput as a ratio to llama.cpp's."""
    lines = [
        "| concurrency | system | output tok/s | decode tok/s | x llama.cpp | prefill tok/s | TTFT p50 / p99 ms "
        "| ITL p50 / p99 ms | peak MiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    base: dict[int, float] = {}
    for peer in ("llama.cpp-plain", "llama.cpp"):
        base |= {each.concurrency: each.decode_tok_s for each in rows if each.system == peer}
    for each in rows:
        ratio = f"{each.decode_tok_s / base[each.concurrency]:.2f}" if each.concurrency in base else "n/a"
        lines.append(
            f"| {each.concurrency} | {each.system} | {each.output_tok_s:.0f} | {each.decode_tok_s:.0f} | {ratio} "
            f"| {each.prefill_tok_s:.0f} | {each.ttft_p50_ms:.0f} / {each.ttft_p99_ms:.0f} "
            f"| {each.itl_p50_ms:.1f} / {each.itl_p99_ms:.1f} | {each.peak_memory_mib:.0f} |"
        )
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="gridserve bench engine", description=__doc__)
    made.add_argument("--model", default="smollm2-135m-instruct", help="what every system loads (default: %(default)s)")
    made.add_argument("--systems", nargs="+", choices=sorted({*SYSTEMS, *GPU_SYSTEMS}), help="default: ours and peers")
    made.add_argument("--concurrency", nargs="+", type=int, default=[1, 4, 8, 16, 32])
    made.add_argument("--prompt-tokens", type=int, default=128)
    made.add_argument("--output-tokens", type=int, default=64)
    made.add_argument("--rounds", type=int, default=3, help="each system once a round (default: %(default)s)")
    made.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    made.add_argument("--json", type=Path, metavar="FILE", help="also write the figures and raw times")
    made.add_argument(
        "--tensor-parallel", type=int, default=1, metavar="N", help="ranks of gridserve, on a GPU each (%(default)s)"
    )
    gpu = made.add_argument_group("on a GPU (of the options above --systems, --json and --tensor-parallel apply)")
    gpu.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where the engines run (%(default)s)")
    gpu.add_argument("--shapes", nargs="+", default=sorted(SHAPES), choices=sorted(SHAPES), help="default: all")
    gpu.add_argument("--markdown", type=Path, metavar="FILE", help="write the table")
    gpu.add_argument("--dry-run", action="store_true", help="take every step with tiny shapes on a CPU")
    return made


def main(argv: list[str]) -> int:
    from engine.model_store import resolve_model

    arguments = parser().parse_args(argv)
    known = GPU_SYSTEMS if arguments.device == "cuda" else SYSTEMS
    strangers = [name for name in arguments.systems or () if name not in known]
    if strangers:
        raise ValueError(f"{', '.join(strangers)} does not run on {arguments.device}; there are {', '.join(known)}")
    if arguments.device == "cuda":
        return _gpu_engine.run(
            arguments.shapes,
            arguments.systems or list(_gpu_engine.DEFAULT_SYSTEMS),
            arguments.dry_run,
            arguments.json,
            arguments.markdown,
            arguments.tensor_parallel,
        )
    model = str(resolve_model(arguments.model))
    peers: list[Peer] = []
    for name in arguments.systems or DEFAULT_SYSTEMS:
        peer = Peer(name, model, arguments.threads, arguments.tensor_parallel)
        if peer.missing:
            print(f"{name}: not installed ({peer.missing}); pip install 'gridserve[bench]'", file=sys.stderr)
        else:
            peers.append(peer)
    rows: list[Row] = []
    raw: list[dict[str, Any]] = []
    # A run of many minutes that is stopped keeps the concurrencies that it has measured.
    terminate = signal.signal(signal.SIGTERM, signal.default_int_handler)
    interrupted = False
    try:
        for concurrency in arguments.concurrency:
            measured: dict[str, list[Measurement]] = {peer.name: [] for peer in peers}
            # Round 0 warms every system up and is not counted.
            for turn in range(arguments.rounds + 1):
                workload = Workload(concurrency, arguments.prompt_tokens, arguments.output_tokens, seed=1000 * turn)
                for peer in peers:
                    result = peer.run(workload)
                    if turn:
                        measured[peer.name].append(result)
                    if sys.stderr.isatty():
                        print(f"\rconcurrency {concurrency} round {turn} {peer.name:<28}", end="", file=sys.stderr)
            for peer in peers:
                rows.append(row(peer.name, workload, measured[peer.name]))
                raw += [{"system": peer.name, **asdict(workload), **asdict(each)} for each in measured[peer.name]]
    except KeyboardInterrupt:
        interrupted = True
    finally:
        signal.signal(signal.SIGTERM, terminate)
        for peer in peers:
            peer.close()
    if sys.stderr.isatty():
        print(file=sys.stderr)
    if interrupted:
        print(f"interrupted at concurrency {concurrency}: that one is not in the table", file=sys.stderr)
    print(f"{cpu_name()}, {arguments.threads} threads, load average {os.getloadavg()[0]:.2f}")
    print(table(rows))
    if arguments.json:
        document = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "cpu": cpu_name(),
            "threads": arguments.threads,
            "tensor_parallel": arguments.tensor_parallel,
            "model": arguments.model,
            "versions": {peer.name: peer.version for peer in peers},
            "interrupted": interrupted,
            "rows": [asdict(each) for each in rows],
            "raw": raw,
        }
        arguments.json.write_text(json.dumps(document, indent=1))
    return 130 if interrupted else 0
