"""`gridserve bench kernels`: the Triton kernels beside peers, against the copy and GEMM rates of the same run.

Without an NVIDIA GPU nothing can be measured: the definitions run on tiny CPU shapes, to show that every case can be
built, and the report says of each figure that it is missing and why.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from triton.errors import TritonError

from bench import _kernel_sweep, _kernel_timing
from bench._kernel_cases import KernelCase, all_cases
from bench._kernel_peers import PeerUnavailableError
from kernels.gpu import tuning

NO_GPU = "no NVIDIA GPU on this machine: nothing was measured"
# Results whose random draws or types make an elementwise comparison meaningless.
_NOT_COMPARED = {"softmax + multinomial", "torch.sort", "cuBLAS bf16"}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="gridserve bench kernels", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables as Markdown (default: print)")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name or family contains TEXT")
    parser.add_argument("--table", type=Path, metavar="FILE", help="use a table of meta-parameters written by --sweep")
    parser.add_argument("--sweep", type=Path, metavar="FILE", help="measure candidate meta-parameters; write the table")
    arguments = parser.parse_args(argv)
    if arguments.table:
        tuning.load_table(arguments.table)
    if arguments.sweep:
        if not torch.cuda.is_available():
            print(f"gridserve bench kernels: {NO_GPU}; a sweep needs one", file=sys.stderr)
            return 1
        _kernel_sweep.write_table(arguments.sweep)
        return 0

    cases = [case for case in all_cases() if arguments.only in case.name or arguments.only in case.family]
    if not cases:
        raise ValueError(f"no case has {arguments.only!r} in its name or family")
    report = measure(cases) if torch.cuda.is_available() else dry_run(cases)
    text = to_markdown(report)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    if arguments.markdown:
        arguments.markdown.write_text(text)
    else:
        print(text)
    return 0


def environment() -> dict[str, Any]:
    cuda = torch.cuda.is_available()
    return {
        "torch": torch.__version__,
        "triton": triton.__version__,
        "device": torch.cuda.get_device_name(0) if cuda else None,
        "capability": list(torch.cuda.get_device_capability(0)) if cuda else None,
        "tuned_on": tuning.measured_on,
    }


def dry_run(cases: list[KernelCase]) -> dict[str, Any]:
    """Every case built tiny on the CPU and run by its definition; no time is taken."""
    rows = []
    for case in cases:
        case.definition(case.build("cpu", True))
        rows.append(
            {
                "case": case.name,
                "family": case.family,
                "bytes": case.bytes_moved,
                "flops": case.flops,
                "missing": NO_GPU,
            }
        )
    return {"measured": False, "reason": NO_GPU, "environment": environment(), "ceilings": None, "cases": rows}


def measure(cases: list[KernelCase]) -> dict[str, Any]:
    torch.manual_seed(0)
    ceilings = {
        "copy_gbps": _kernel_timing.copy_ceiling_gbps(),
        "gemm_bf16_tflops": _kernel_timing.gemm_ceiling_tflops(),
    }
    rows = []
    for number, case in enumerate(cases, 1):
        if sys.stderr.isatty():
            print(f"[{number}/{len(cases)}] {case.name}", file=sys.stderr)
        rows.append(measure_case(case, ceilings))
        torch.cuda.empty_cache()
    return {
        "measured": True,
        "method": "median of CUDA-graph replays over rotated inputs of 4 x L2",
        "environment": environment(),
        "ceilings": ceilings,
        "cases": rows,
    }


def measure_case(case: KernelCase, ceilings: dict[str, float]) -> dict[str, Any]:
    sets = [case.build("cuda", False) for _ in range(_kernel_timing.copies_for_cold_l2(case.bytes_moved))]
    ours_us = _kernel_timing.median_us([partial(case.ours, each) for each in sets])
    gbps = case.bytes_moved / ours_us * 1e-3
    tflops = case.flops / ours_us * 1e-6
    row: dict[str, Any] = {
        "case": case.name,
        "family": case.family,
        "bytes": case.bytes_moved,
        "flops": case.flops,
        "us": ours_us,
        "gbps": gbps,
        "tflops": tflops,
        "of_copy": gbps / ceilings["copy_gbps"],
        "of_gemm": tflops / ceilings["gemm_bf16_tflops"],
        "peers": {},
    }
    for name, prepare in case.peers.items():
        try:
            calls = [prepare(each) for each in sets]
            error = None if name in _NOT_COMPARED else relative_error(case.ours(sets[0]), calls[0]())
            peer_us = _kernel_timing.median_us(calls)
        except PeerUnavailableError as unavailable:
            row["peers"][name] = {"missing": str(unavailable)}
        except (RuntimeError, ValueError, TypeError, AssertionError, TritonError) as failure:
            row["peers"][name] = {"missing": f"{type(failure).__name__}: {str(failure).splitlines()[0][:200]}"}
        else:
            row["peers"][name] = {"us": peer_us, "speed_of_ours": peer_us / ours_us, "relative_difference": error}
    return row


def relative_error(ours: object, theirs: object) -> float:
    """Norm of the difference over the norm of ours, of the first tensor of each result."""
    first, second = (each[0] if isinstance(each, tuple) else each for each in (ours, theirs))
    assert isinstance(first, torch.Tensor)
    assert isinstance(second, torch.Tensor)
    wide = first.double()
    return float((wide - second.double().reshape(first.shape)).norm() / wide.norm().clamp(min=1e-12))


def to_markdown(report: dict[str, Any]) -> str:
    lines = ["# Kernels", ""]
    if not report["measured"]:
        lines += [f"**{report['reason']}.** Shapes and the work any implementation has to do:", ""]
        lines += ["| case | MB to move | GFLOP |", "|---|---|---|"]
        lines += [f"| {row['case']} | {row['bytes'] / 1e6:.1f} | {row['flops'] / 1e9:.1f} |" for row in report["cases"]]
        return "\n".join(lines) + "\n"
    found, ceilings = report["environment"], report["ceilings"]
    tuned = found["tuned_on"] or "no card: the table was derived from compiled kernels"
    lines += [
        f"{found['device']}, torch {found['torch']}, triton {found['triton']}; meta-parameters measured on {tuned}.",
        f"Ceilings of this run: copy {ceilings['copy_gbps']:.0f} GB/s, bf16 GEMM "
        f"{ceilings['gemm_bf16_tflops']:.0f} TFLOP/s. {report['method'].capitalize()}.",
        "",
        "| case | us | GB/s (of copy) | TFLOP/s (of GEMM) | peers: us, our speed over theirs |",
        "|---|---|---|---|---|",
    ]
    for row in report["cases"]:
        rivals = "; ".join(
            f"{name} {peer['us']:.1f}, {peer['speed_of_ours']:.2f}x" if "us" in peer else f"{name}: not measured"
            for name, peer in row["peers"].items()
        )
        lines.append(
            f"| {row['case']} | {row['us']:.1f} | {row['gbps']:.0f} ({row['of_copy']:.0%}) "
            f"| {row['tflops']:.1f} ({row['of_gemm']:.0%}) | {rivals} |"
        )
    missing = sorted(
        {(name, peer["missing"]) for row in report["cases"] for name, peer in row["peers"].items() if "missing" in peer}
    )
    lines += ["", *(f"- {name} not measured: {reason}" for name, reason in missing)]
    return "\n".join(lines) + "\n"
