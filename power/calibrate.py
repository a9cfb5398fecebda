"""Measure a device and write a twin profile of it.

Read-only by default: idle, active idle, prefill and decode at several batches, at the clocks the driver chooses.
With an actuator the SM clock is swept too, and the voltage curve is fitted; without, the frequency response of the
base profile is kept and said to be so. Energy comes from the counter, over windows of seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec

from power.calibration_load import Load
from power.client import ActuatorPort
from power.device import ClockReason, DeviceInfo, PowerDevice
from power.model_shape import ModelShape
from power.profile import EngineProfile, GpuProfile
from power.twin import StepWork, Twin, decode_work, prefill_work, voltage_ratio

PREFILL_TOKENS = 2048
CONTEXT = 512
BATCHES = (1, 8, 32, 128)
CLOCK_FRACTIONS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
THERMAL = frozenset({ClockReason.THERMAL, ClockReason.HW_THERMAL, ClockReason.HW_SLOWDOWN})


@dataclass(frozen=True, slots=True)
class Point:
    """One window: mean power, mean step time (`None` when idle), mean SM clock, and whether heat spoiled it."""

    kind: str
    size: int
    asked_mhz: int | None
    clock_mhz: float
    power_w: float
    step_s: float | None
    seconds: float
    discarded: str | None = None

    def work(self) -> StepWork:
        return prefill_work(self.size) if self.kind == "prefill" else decode_work(self.size, CONTEXT)


class Calibration:
    """Runs the windows. `seconds`: length of each; `progress` is told what comes next."""

    def __init__(
        self, device: PowerDevice, load: Load, seconds: float, progress: Callable[[str], None] = lambda text: None
    ) -> None:
        if seconds < 1.0:
            raise ValueError(f"windows shorter than 1 s say little: the counter moves every 0.1 s; got {seconds:g} s")
        self._device = device
        self._load = load
        self._seconds = seconds
        self._progress = progress

    def sweep(self, actuator: ActuatorPort | None) -> list[Point]:
        """All windows. With an actuator every point is taken at eight clocks; it is released at the end."""
        points = [self.window("active_idle", 0, None)]
        if actuator is None:
            return points + self._loads(None)
        info = self._device.info
        actuator.acquire()
        try:
            for fraction in CLOCK_FRACTIONS:
                clock = info.snap_clock(fraction * info.clocks_mhz[-1])
                actuation = actuator.lock_clocks(info.uuid, clock, clock)
                if not actuation.outcome.took_effect:
                    raise ValueError(f"clock {clock} MHz was not set: {actuation.outcome.value} {actuation.reason}")
                points += self._loads(clock, actuator)
        finally:
            actuator.release()
        return points

    def window(self, kind: str, size: int, asked_mhz: int | None, actuator: ActuatorPort | None = None) -> Point:
        """Run one kind of work for the window's length and measure it."""
        self._progress(f"{kind} {size or ''} {f'at {asked_mhz} MHz' if asked_mhz else ''}".strip())
        load, steps = self._load, 0
        self._step(kind, size)
        begin = self._device.read()
        started, clocks, reasons = load.now(), list[float](), set[ClockReason]()
        beat = started
        while load.now() - started < self._seconds:
            self._step(kind, size)
            steps += 1
            if load.now() - beat > 0.5:
                beat = load.now()
                reading = self._device.read()
                clocks += [reading.sm_clock_mhz] if reading.sm_clock_mhz is not None else []
                reasons |= reading.clock_reasons or set()
                if actuator is not None:
                    actuator.heartbeat()
        end = self._device.read()
        elapsed = load.now() - started
        if begin.energy_j is None or end.energy_j is None:
            raise ValueError(f"{self._device.info.name} has no energy counter; it cannot be calibrated")
        hot = reasons & THERMAL
        return Point(
            kind=kind,
            size=size,
            asked_mhz=asked_mhz,
            clock_mhz=sum(clocks) / len(clocks) if clocks else end.sm_clock_mhz or 0.0,
            power_w=(end.energy_j - begin.energy_j) / elapsed,
            step_s=elapsed / steps if kind in ("prefill", "decode") else None,
            seconds=elapsed,
            discarded=", ".join(sorted(reason.value for reason in hot)) or None,
        )

    def _loads(self, clock_mhz: int | None, actuator: ActuatorPort | None = None) -> list[Point]:
        points = [self.window("prefill", PREFILL_TOKENS, clock_mhz, actuator)]
        return points + [self.window("decode", batch, clock_mhz, actuator) for batch in BATCHES]

    def _step(self, kind: str, size: int) -> None:
        if kind == "prefill":
            self._load.prefill(size)
        elif kind == "decode":
            self._load.decode(size, CONTEXT)
        else:
            self._load.wait(0.2)


def adapted(base: GpuProfile, info: DeviceInfo) -> GpuProfile:
    """The base profile with the clocks and limits this very device reports."""
    changes: dict[str, Any] = {}
    if info.kind != "simulated":
        changes["product"] = info.name
    if info.clocks_mhz:
        changes |= {"clock_min_mhz": info.clocks_mhz[0], "clock_max_mhz": info.clocks_mhz[-1]}
    if info.limits is not None:
        limits = info.limits
        changes |= {"limit_min_w": limits.min_w, "limit_max_w": limits.max_w, "limit_default_w": limits.default_w}
    return msgspec.structs.replace(base, **changes)


def fit_profile(
    base: GpuProfile, shape: ModelShape, points: Sequence[Point], deep_idle_w: float | None, name: str, where: str
) -> tuple[GpuProfile, EngineProfile, float]:
    """A profile from the points: efficiencies from step times, then watts from utilisations (non-negative least
    squares), the voltage curve by search when clocks were swept. Returns the profile, the load's own overheads,
    and the root mean square error of the power in W. `ValueError` when too few points are sound."""
    sound = [point for point in points if point.discarded is None and point.step_s is not None]
    if len(sound) < 3:
        raise ValueError("fewer than three windows are sound; check the discarded ones (heat?) and repeat")
    idle = next((point.power_w for point in points if point.kind == "active_idle"), None)
    gpu, engine = _fit_times(base, shape, sound)
    deep = deep_idle_w if deep_idle_w is not None else base.idle_w
    active_idle = max(0.0, idle - deep) if idle is not None else base.active_idle_w
    gpu = msgspec.structs.replace(gpu, idle_w=deep, active_idle_w=active_idle)
    swept = len({point.asked_mhz for point in sound}) > 2
    curves = _curves() if swept else [(base.voltage_knee, base.voltage_floor)]
    best = min((_fit_power(gpu, engine, shape, sound, *curve) for curve in curves), key=lambda found: found[1])
    gpu, error = best
    date = datetime.now(UTC).date().isoformat()
    response = "clocks swept" if swept else f"frequency response kept from {base.name}: clocks were not swept"
    gpu = msgspec.structs.replace(
        gpu,
        name=name,
        source=f"gridserve power calibrate, {date}; {base.source}",
        fitted_on=f"{where}, {shape.name}, {len(sound)} windows; {response}",
        provisional="" if swept else response,
    )
    return gpu, engine, error


def _fit_times(base: GpuProfile, shape: ModelShape, points: Sequence[Point]) -> tuple[GpuProfile, EngineProfile]:
    from scipy.optimize import least_squares

    def build(values: Any) -> tuple[GpuProfile, EngineProfile]:
        compute, memory, host, sequence = (float(value) for value in values)
        gpu = msgspec.structs.replace(base, compute_efficiency=compute, memory_efficiency=memory)
        return gpu, EngineProfile(
            name="calibration", source="gridserve power calibrate", fitted_on="", host_s=host, per_sequence_s=sequence
        )

    def errors(values: Any) -> list[float]:
        twin = Twin(*build(values), shape)
        return [twin.predict(point.work(), point.clock_mhz).duration_s / (point.step_s or 1.0) - 1 for point in points]

    start = (base.compute_efficiency, base.memory_efficiency, 1e-4, 1e-5)
    found = least_squares(
        errors, start, bounds=((0.05, 0.05, 0.0, 0.0), (1.0, 1.0, 0.05, 1e-3)), x_scale=(0.1, 0.1, 1e-4, 1e-5)
    )
    return build(found.x)


def _fit_power(
    gpu: GpuProfile, engine: EngineProfile, shape: ModelShape, points: Sequence[Point], knee: float, floor: float
) -> tuple[GpuProfile, float]:
    import numpy as np
    from scipy.optimize import nnls

    gpu = msgspec.structs.replace(gpu, voltage_knee=knee, voltage_floor=floor)
    twin, rows, watts = Twin(gpu, engine, shape), [], []
    for point in points:
        fraction = point.clock_mhz / gpu.clock_max_mhz
        step = twin.predict(point.work(), point.clock_mhz)
        switching = fraction * voltage_ratio(fraction, knee, floor) ** 2
        rows.append([switching * step.busy, switching * step.compute_utilisation, step.memory_utilisation])
        watts.append(point.power_w - gpu.idle_w - gpu.active_idle_w)
    found, norm = nnls(np.array(rows), np.array(watts))
    active, compute, memory = (float(value) for value in found)
    fitted = msgspec.structs.replace(gpu, active_w=active, compute_w=compute, memory_w=memory)
    return fitted, float(norm) / len(points) ** 0.5


def _curves() -> list[tuple[float, float]]:
    return [(knee / 100, floor / 100) for knee in range(50, 76, 2) for floor in range(50, 91, 4)]


def points_table(points: Sequence[Point]) -> list[dict[str, object]]:
    """The windows as rows for a file."""
    return [asdict(point) for point in points]
