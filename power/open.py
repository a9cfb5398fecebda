"""Devices by name: `auto`, `nvml`, `rapl`, `simulated:PROFILE`, `simulated:PROFILE@FOLDER`."""

from __future__ import annotations

import time
from pathlib import Path

from power.device import DeviceError, PowerDevice
from power.model_shape import ModelShape
from power.profile import load_engine, load_profile
from power.quantities import Clock
from power.simulated import SimulatedDevice
from power.twin import Twin

SPECS = "auto, nvml, rapl or simulated:PROFILE (h100-sxm, a100-sxm, h200-sxm or a .json file)"


def open_devices(
    spec: str,
    shape: ModelShape,
    *,
    count: int = 1,
    engine: str = "vllm-0.11",
    clock: Clock = time.monotonic,
) -> list[PowerDevice]:
    """The devices of one engine with `count` GPUs (tensor parallel).

    `auto` takes visible NVIDIA GPUs, else CPU energy; an empty list means that nothing can be measured here. With
    `@FOLDER` a simulated device shares its settings with other processes there, as a real board's driver does.
    Raises `ValueError` for an unknown spec and `DeviceError` when what was named cannot be opened.
    """
    kind, _, name = spec.partition(":")
    if kind == "simulated":
        profile, _, folder = name.partition("@")
        registers = Path(folder) if folder else None
        twin = Twin(load_profile(profile or "h100-sxm"), load_engine(engine), shape, count)
        return [SimulatedDevice(twin, ordinal=ordinal, clock=clock, registers=registers) for ordinal in range(count)]
    if kind == "nvml":
        return _open_nvml(count, clock)
    if kind == "rapl":
        return _open_rapl(count, clock)
    if kind != "auto":
        raise ValueError(f"unknown power device {spec!r}; known: {SPECS}")
    for opener in (_open_nvml, _open_rapl):
        try:
            return opener(count, clock)
        except DeviceError:
            continue
    return []


def _open_nvml(count: int, clock: Clock) -> list[PowerDevice]:
    from power.nvml import NvmlDevice, visible_uuids

    uuids = visible_uuids()
    if len(uuids) < count:
        raise DeviceError(f"{count} GPUs wanted, {len(uuids)} visible; check CUDA_VISIBLE_DEVICES")
    return [NvmlDevice(uuid, clock=clock) for uuid in uuids[:count]]


def _open_rapl(count: int, clock: Clock) -> list[PowerDevice]:
    from power.rapl import open_rapl

    if count != 1:
        raise DeviceError("CPU energy is of the whole machine; it cannot stand for several GPUs")
    device, why = open_rapl(clock=clock)
    if device is None:
        raise DeviceError(f"no CPU energy: {why}")
    return [device]
