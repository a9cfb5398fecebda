"""The compiled library, loaded once for the process, or the reason why the torch definitions are used instead."""

from __future__ import annotations

import ctypes
import sys
from ctypes import POINTER, c_char_p, c_int, c_long, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from kernels.backend import cpu_mode
from kernels.cpu import abi
from kernels.cpu.build import BuildError, build_library
from kernels.threads import usable_cores


@dataclass(frozen=True, slots=True)
class CpuStatus:
    """What runs the operations on CPU tensors. `instruction_set` and `threads` are None where torch does (`reason`)."""

    native: bool
    instruction_set: str | None
    threads: int | None
    path: Path | None
    reason: str | None


class Library:
    """Typed access to the shared library; ctypes releases the GIL during every call."""

    def __init__(self, path: Path) -> None:
        self.path = path
        library = ctypes.CDLL(str(path))
        self.set_threads = _function(library, "gs_set_threads", None, c_int)
        self.threads = _function(library, "gs_threads", c_int)
        self.packed_bytes = _function(library, "gs_packed_bytes", c_long, c_int, c_int, c_int)
        self.pack_bf16 = _function(library, "gs_pack_bf16", None, c_void_p, c_int, c_int, c_void_p)
        self.pack_int4 = _function(library, "gs_pack_int4", None, c_void_p, c_void_p, c_void_p, c_int, c_int, c_void_p)
        self.pack_int8 = _function(library, "gs_pack_int8", None, c_void_p, c_void_p, c_int, c_int, c_void_p)
        self.linear = _function(
            library, "gs_linear", None, POINTER(abi.LinearABI), c_void_p, c_long, c_int, c_void_p, c_int
        )
        self.attention = _function(library, "gs_attention", None, POINTER(abi.AttentionABI))
        self.norm = _function(library, "gs_norm", None, POINTER(abi.NormABI))
        self.silu_and_mul = _function(library, "gs_silu_and_mul", None, POINTER(abi.SiluABI))
        self.rope_and_write_kv = _function(library, "gs_rope_and_write_kv", None, POINTER(abi.RopeABI))
        self.workspace_bytes = _function(library, "gs_workspace_bytes", c_long, POINTER(abi.ModelABI), c_int)
        self.forward = _function(library, "gs_forward", None, POINTER(abi.ModelABI), POINTER(abi.StepABI))
        self.instruction_set = str(_function(library, "gs_instruction_set", c_char_p)().decode())
        self.rounds_blocks = bool(_function(library, "gs_blocks_rounded", c_int)())
        self.set_threads(usable_cores())


def _function(library: ctypes.CDLL, name: str, result: object, *arguments: object) -> ctypes._NamedFuncPointer:
    function = library[name]
    function.restype = result  # type: ignore[assignment]
    function.argtypes = arguments  # type: ignore[assignment]
    return function


@cache
def _load() -> tuple[Library | None, str | None]:
    mode = cpu_mode()
    if mode != "auto":
        return None, f"GRIDSERVE_CPU_KERNELS={mode}"
    if sys.platform != "linux":
        return None, f"the compiled kernels are built on Linux only, this is {sys.platform}"
    try:
        return Library(build_library()), None
    except (BuildError, OSError) as error:
        print(f"gridserve: CPU kernels not built, using torch instead: {error}", file=sys.stderr)
        return None, str(error)


def native_library() -> Library | None:
    """The compiled library, built on the first call; None where it cannot be had (`cpu_status().reason`)."""
    return _load()[0]


def cpu_status() -> CpuStatus:
    """Which CPU kernels this process uses; builds them if that has not happened yet."""
    library, reason = _load()
    if library is None:
        return CpuStatus(native=False, instruction_set=None, threads=None, path=None, reason=reason)
    return CpuStatus(True, library.instruction_set, int(library.threads()), library.path, None)
