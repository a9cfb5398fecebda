# ruff: noqa: N802  (methods bear the names of the C functions they stand for)
"""A stateful NVML in pure Python, to be placed under the real `nvidia-ml-py` where there is no GPU.

The binding's own ctypes packing and error mapping run unchanged; only the shared library is replaced. Setting a
clock or a limit changes power, energy and event reasons through the twin. The state of each GPU is one file under
a directory, so it outlives processes exactly as a driver's does: a process that dies leaves its locks behind.
`Faults` make it misbehave. For tests, benchmarks and rehearsals; nothing in production selects it.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pynvml

from power.board import Board, BoardState
from power.device import ClockReason
from power.nvml import REASONS
from power.quantities import Clock
from power.twin import Demand, Twin

REASON_BITS = {reason: bit for bit, reason in REASONS.items()}


class Faults(msgspec.Struct):
    """What goes wrong. Function names are NVML's, without a version suffix; no `slow_functions` means all."""

    no_permission: bool = False
    not_supported: list[str] = []
    lost: bool = False
    ignore_sets: bool = False
    stuck_sensor: bool = False
    slow_s: float = 0.0
    slow_functions: list[str] = []
    mig: bool = False
    vgpu: bool = False
    foreign_pids: list[int] = []


class GpuFile(msgspec.Struct):
    """One fake GPU as stored."""

    board: BoardState
    faults: Faults = msgspec.field(default_factory=Faults)
    load: dict[str, float] | None = None
    counter_offset_j: float = 0.0
    stuck_w: float | None = None
    switches_s: list[float] = []


class FakeNvml:
    """Put it in place with `installed()`. `count` GPUs of one twin; `directory` holds their state."""

    def __init__(self, twin: Twin, directory: Path, *, count: int = 1, clock: Clock = time.monotonic) -> None:
        self.twin = twin
        self.directory = directory
        self.uuids = tuple(f"GPU-fa4e0000-0000-4000-8000-{index:012d}" for index in range(count))
        self._clock = clock
        self._memory_mhz = twin.gpu.memory_clock_mhz
        directory.mkdir(parents=True, exist_ok=True)
        for index in range(count):
            if not self._path(index).exists():
                state = Board(twin, self.uuids[index], start_s=clock(), exact_sensor=True).snapshot()
                self._path(index).write_bytes(msgspec.json.encode(GpuFile(state)))

    @contextmanager
    def open(self, index: int = 0, *, advance: bool = True) -> Iterator[tuple[GpuFile, Board]]:
        """One GPU under its file lock, brought up to now; changes are stored when the block ends."""
        path = self._path(index)
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            gpu = msgspec.json.decode(path.read_bytes(), type=GpuFile)
            board = Board(self.twin, self.uuids[index], exact_sensor=True, state=gpu.board)
            if advance:
                board.advance(self._clock(), Demand(**gpu.load) if gpu.load else None)
            yield gpu, board
            gpu.board = board.snapshot()
            fresh = path.with_suffix(f".{os.getpid()}.new")
            fresh.write_bytes(msgspec.json.encode(gpu))
            fresh.replace(path)

    def set_load(self, demand: Demand | None, index: int = 0) -> None:
        """From now on the GPU runs steps of this demand back to back, or nothing."""
        with self.open(index) as (gpu, _):
            gpu.load = {name: getattr(demand, name) for name in demand.__struct_fields__} if demand else None

    def set_faults(self, faults: Faults, index: int = 0) -> None:
        with self.open(index) as (gpu, board):
            gpu.faults = faults
            gpu.stuck_w = board.state.shown_power_w if faults.stuck_sensor else None

    def reset_counter(self, index: int = 0) -> None:
        """As a driver reload does: the energy counter starts again at zero."""
        with self.open(index) as (gpu, board):
            gpu.counter_offset_j = board.state.shown_energy_j

    def other_tool_sets(self, *, limit_w: float | None = None, lock_mhz: int | None = None, index: int = 0) -> None:
        """Somebody else changes the limit or the lock."""
        with self.open(index) as (_, board):
            if limit_w is not None:
                board.set_limit(limit_w)
            if lock_mhz is not None:
                board.set_lock(lock_mhz, lock_mhz, 0.0)

    def left_behind(self, index: int = 0) -> list[str]:
        """What differs from the driver's defaults; empty when the GPU is as it was found."""
        with self.open(index, advance=False) as (_, board):
            state, found = board.state, []
            if state.lock_max_mhz is not None:
                found.append(f"clocks locked to {state.lock_min_mhz}-{state.lock_max_mhz} MHz")
            if state.limit_w != self.twin.gpu.limit_default_w:
                found.append(f"power limit {state.limit_w:g} W")
            return found

    @contextmanager
    def installed(self) -> Iterator[FakeNvml]:
        """Stand in for `libnvidia-ml.so.1` while the block runs."""
        before = pynvml.nvmlLib
        pynvml.nvmlLib = self
        pynvml._nvmlGetFunctionPointer_cache.clear()
        try:
            yield self
        finally:
            pynvml.nvmlLib = before
            pynvml._nvmlGetFunctionPointer_cache.clear()

    def __getattr__(self, name: str) -> Callable[..., int]:
        if not name.startswith("nvml"):
            raise AttributeError(name)
        plain = name.split("_v")[0]
        method = getattr(type(self), f"_{plain}", None)
        if method is None:
            raise AttributeError(name)
        if plain.startswith("nvmlDevice") and "Handle" not in plain and plain != "nvmlDeviceGetCount":
            return functools.partial(self._device_call, plain, method)
        return functools.partial(method, self)

    def _device_call(self, name: str, method: Callable[..., int], handle: Any, *arguments: Any) -> int:
        index = (ctypes.cast(handle, ctypes.c_void_p).value or 1) - 1
        setter = name.startswith(("nvmlDeviceSet", "nvmlDeviceReset"))
        with self.open(index) as (gpu, board):
            faults = gpu.faults
            if faults.lost:
                return int(pynvml.NVML_ERROR_GPU_IS_LOST)
            if name in faults.not_supported:
                return int(pynvml.NVML_ERROR_NOT_SUPPORTED)
            if setter and faults.no_permission:
                return int(pynvml.NVML_ERROR_NO_PERMISSION)
            if setter and faults.ignore_sets:
                return int(pynvml.NVML_SUCCESS)
            slow = not faults.slow_functions or name in faults.slow_functions
            slow_s = faults.slow_s if slow else 0.0
            answer = method(self, gpu, board, *arguments)
        if slow_s:
            time.sleep(slow_s)
        return int(answer)

    def _path(self, index: int) -> Path:
        return self.directory / f"gpu-{index}.json"

    def _nvmlInitWithFlags(self, flags: int) -> int:
        return int(pynvml.NVML_SUCCESS)

    def _nvmlShutdown(self) -> int:
        return int(pynvml.NVML_SUCCESS)

    def _nvmlDeviceGetCount(self, count: Any) -> int:
        return _put(count, len(self.uuids))

    def _nvmlDeviceGetHandleByIndex(self, index: Any, handle: Any) -> int:
        if index.value >= len(self.uuids):
            return int(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return _put_handle(handle, index.value)

    def _nvmlDeviceGetHandleByUUID(self, uuid: Any, handle: Any) -> int:
        wanted = uuid.value.decode()
        if wanted not in self.uuids:
            return int(pynvml.NVML_ERROR_NOT_FOUND)
        return _put_handle(handle, self.uuids.index(wanted))

    def _nvmlDeviceGetUUID(self, gpu: GpuFile, board: Board, text: Any, size: Any) -> int:
        text.value = board.uuid.encode()
        return int(pynvml.NVML_SUCCESS)

    def _nvmlDeviceGetName(self, gpu: GpuFile, board: Board, text: Any, size: Any) -> int:
        text.value = f"FAKE {board.gpu.product}".encode()
        return int(pynvml.NVML_SUCCESS)

    def _nvmlDeviceGetTotalEnergyConsumption(self, gpu: GpuFile, board: Board, value: Any) -> int:
        return _put(value, round((board.state.shown_energy_j - gpu.counter_offset_j) * 1000))

    def _nvmlDeviceGetPowerUsage(self, gpu: GpuFile, board: Board, value: Any) -> int:
        return _put(value, round(board.state.shown_average_w * 1000))

    def _nvmlDeviceGetFieldValues(self, gpu: GpuFile, board: Board, count: Any, values: Any) -> int:
        for value in values._obj:
            known = value.fieldId == pynvml.NVML_FI_DEV_POWER_INSTANT and value.scopeId == pynvml.NVML_POWER_SCOPE_GPU
            value.nvmlReturn = pynvml.NVML_SUCCESS if known else pynvml.NVML_ERROR_NOT_SUPPORTED
            shown = gpu.stuck_w if gpu.stuck_w is not None else board.state.shown_power_w
            value.value.uiVal = round(shown * 1000)
        return int(pynvml.NVML_SUCCESS)

    def _nvmlDeviceGetPowerManagementLimit(self, gpu: GpuFile, board: Board, value: Any) -> int:
        return _put(value, round(board.state.limit_w * 1000))

    def _nvmlDeviceGetEnforcedPowerLimit(self, gpu: GpuFile, board: Board, value: Any) -> int:
        return _put(value, round(board.state.limit_w * 1000))

    def _nvmlDeviceGetPowerManagementDefaultLimit(self, gpu: GpuFile, board: Board, value: Any) -> int:
        return _put(value, round(board.gpu.limit_default_w * 1000))

    def _nvmlDeviceGetPowerManagementLimitConstraints(self, gpu: GpuFile, board: Board, low: Any, high: Any) -> int:
        _put(low, round(board.gpu.limit_min_w * 1000))
        return _put(high, round(board.gpu.limit_max_w * 1000))

    def _nvmlDeviceSetPowerManagementLimit(self, gpu: GpuFile, board: Board, milliwatts: Any) -> int:
        watts = milliwatts.value / 1000
        if not board.gpu.limit_min_w <= watts <= board.gpu.limit_max_w:
            return int(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        board.set_limit(watts)
        return int(pynvml.NVML_SUCCESS)

    def _nvmlDeviceSetGpuLockedClocks(self, gpu: GpuFile, board: Board, low: Any, high: Any) -> int:
        if low.value > high.value:
            return int(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        time.sleep(board.set_lock(_snap(board, low.value), _snap(board, high.value)))
        gpu.switches_s = [*gpu.switches_s[-999:], self._clock()]
        return int(pynvml.NVML_SUCCESS)

    def _nvmlDeviceResetGpuLockedClocks(self, gpu: GpuFile, board: Board) -> int:
        time.sleep(board.set_lock(None, None))
        return int(pynvml.NVML_SUCCESS)

    def _nvmlDeviceGetSupportedMemoryClocks(self, gpu: GpuFile, board: Board, count: Any, clocks: Any) -> int:
        return _put_list([self._memory_mhz], count, clocks)

    def _nvmlDeviceGetSupportedGraphicsClocks(
        self, gpu: GpuFile, board: Board, memory: Any, count: Any, clocks: Any
    ) -> int:
        if memory.value != self._memory_mhz:
            return int(pynvml.NVML_ERROR_NOT_FOUND)
        return _put_list(sorted(board.gpu.clocks_mhz, reverse=True), count, clocks)

    def _nvmlDeviceGetClockInfo(self, gpu: GpuFile, board: Board, kind: Any, value: Any) -> int:
        memory = kind.value == pynvml.NVML_CLOCK_MEM
        return _put(value, self._memory_mhz if memory else round(board.state.clock_mhz))

    def _nvmlDeviceGetCurrentClocksEventReasons(self, gpu: GpuFile, board: Board, value: Any) -> int:
        reasons: frozenset[ClockReason] = board.clock_reasons()
        return _put(value, sum(REASON_BITS[reason] for reason in reasons))

    def _nvmlDeviceGetTemperature(self, gpu: GpuFile, board: Board, sensor: Any, value: Any) -> int:
        return _put(value, round(board.state.temperature_c))

    def _nvmlDeviceGetUtilizationRates(self, gpu: GpuFile, board: Board, value: Any) -> int:
        value._obj.gpu = round(100 * board.state.busy)
        return int(pynvml.NVML_SUCCESS)

    def _nvmlDeviceGetMemoryInfo(self, gpu: GpuFile, board: Board, value: Any) -> int:
        total = board.gpu.memory_bytes
        value._obj.total, value._obj.used, value._obj.free = total, 0, total
        return int(pynvml.NVML_SUCCESS)

    def _nvmlDeviceGetMigMode(self, gpu: GpuFile, board: Board, current: Any, pending: Any) -> int:
        _put(pending, int(gpu.faults.mig))
        return _put(current, int(gpu.faults.mig))

    def _nvmlDeviceGetVirtualizationMode(self, gpu: GpuFile, board: Board, mode: Any) -> int:
        plain, shared = pynvml.NVML_GPU_VIRTUALIZATION_MODE_NONE, pynvml.NVML_GPU_VIRTUALIZATION_MODE_VGPU
        return _put(mode, shared if gpu.faults.vgpu else plain)

    def _nvmlDeviceGetComputeRunningProcesses(self, gpu: GpuFile, board: Board, count: Any, processes: Any) -> int:
        pids = [os.getpid(), *gpu.faults.foreign_pids]
        if processes is None:
            _put(count, len(pids))
            return int(pynvml.NVML_ERROR_INSUFFICIENT_SIZE)
        for slot, pid in enumerate(pids):
            processes[slot].pid = pid
        return _put(count, len(pids))


def _snap(board: Board, clock_mhz: int) -> int:
    return min(board.gpu.clocks_mhz, key=lambda supported: abs(supported - clock_mhz))


def _put(reference: Any, value: int) -> int:
    reference._obj.value = value
    return int(pynvml.NVML_SUCCESS)


def _put_handle(reference: Any, index: int) -> int:
    pointer = ctypes.c_void_p(index + 1)
    ctypes.memmove(ctypes.addressof(reference._obj), ctypes.addressof(pointer), ctypes.sizeof(pointer))
    return int(pynvml.NVML_SUCCESS)


def _put_list(values: list[int], count: Any, slots: Any) -> int:
    if slots is None:
        _put(count, len(values))
        return int(pynvml.NVML_ERROR_INSUFFICIENT_SIZE)
    for slot, value in enumerate(values):
        slots[slot] = value
    return _put(count, len(values))
