"""Compiles every kernel variant for real GPUs without one and prints what each takes, as JSON.

Usage: compile_gate.py CAPABILITY usual|all [FAMILY].

Runs the wrappers of `kernels.gpu.ops` on `meta` tensors under a driver
that names the target architecture, so each kernel is specialised exactly as a launch on that card would be. A process
with TRITON_INTERPRET set cannot compile: run this in its own.
"""

import functools
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

sys.path.insert(0, str(Path(__file__).parent))
import compile_cases

from kernels import backend
from kernels.gpu import tuning

_BIN = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_MMA = {"wgmma": "wgmma.mma_async", "mma.sync": "mma.sync", "tcgen05": "tcgen05.mma"}


class TargetDriver:
    """As much of a driver as compiling asks for."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@functools.cache
def resources(cubin: bytes) -> dict[str, int]:
    """Registers and stack bytes of one kernel; spilled registers lie on the stack."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run(
            [_BIN / "cuobjdump", "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        )
    found = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", done.stdout))
    return {"registers": int(found["REG"]), "stack_bytes": int(found["STACK"]), "local_bytes": int(found["LOCAL"])}


def compile_case(run) -> Iterator[dict[str, object]]:
    compiled = []
    launch = JITFunction.run

    def compile_only(self, *args, grid, warmup, **kwargs):
        kernel = launch(self, *args, grid=grid, warmup=True, **kwargs)
        compiled.append((self.__name__, kernel, grid))
        return kernel

    JITFunction.run = compile_only
    try:
        run()
    finally:
        JITFunction.run = launch
    for name, kernel, grid in compiled:
        assert all(0 < size <= limit for size, limit in zip(grid, (2**31 - 1, 65535, 65535))), grid
        ptx = kernel.asm["ptx"]
        yield {
            "kernel": name,
            "hash": kernel.hash,
            "shared_bytes": kernel.metadata.shared,
            "tensor_memory_columns": getattr(kernel.metadata, "tmem_size", 0) or 0,
            "num_warps": kernel.metadata.num_warps,
            "mma": sorted(kind for kind, mark in _MMA.items() if mark in ptx),
            "async_copies": ptx.count("cp.async."),
            "wide_loads": len(re.findall(r"ld\.global[.\w:]*\.v4\.b32", ptx)),
            **resources(kernel.asm["cubin"]),
        }


def main(capability: int, depth: str, families: list[str]) -> None:
    triton.runtime.driver.set_active(TargetDriver(capability))
    backend.TRITON_DEVICES.add("meta")
    tuning.assumed_traits = tuning.DeviceTraits(capability, 132)
    report = []
    for family in families:
        for name, run in compile_cases.FAMILIES[family](capability, depth):
            began = time.monotonic()
            try:
                kernels = list(compile_case(run))
                report.append({"family": family, "case": name, "kernels": kernels, "seconds": time.monotonic() - began})
            except Exception as error:
                lines = f"{type(error).__name__}: {error}".strip().splitlines()
                report.append({"family": family, "case": name, "error": "\n".join(lines[:40])})
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3:] or list(compile_cases.FAMILIES))
