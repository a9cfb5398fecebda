"""`NvmlDevice`: an NVIDIA GPU addressed by its UUID. Milliwatts and millijoules stop here.

Instant power (field 186) is for control, the energy counter for accounting. Every setter is read back; the
power limit uses the first version of the setter because the second reports success on failure.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

import pynvml

from power.device import (
    Capability,
    ClockReason,
    DeviceError,
    DeviceInfo,
    PermissionRefusedError,
    PowerLimits,
    Reading,
    UnsupportedOperationError,
)
from power.nvml_library import GRANT_CONTROL, call, close_nvml, open_nvml, read_or_none
from power.quantities import Clock, Method, Scope, Source

GAIN_ERROR_PERCENT = 5.0
"""Class of gain errors of on-board sensors (arXiv 2312.02741)."""
REASONS = {
    0x1: ClockReason.IDLE,
    0x2: ClockReason.APPLICATION_CLOCKS,
    0x4: ClockReason.POWER_CAP,
    0x8: ClockReason.HW_SLOWDOWN,
    0x10: ClockReason.SYNC_BOOST,
    0x20: ClockReason.THERMAL,
    0x40: ClockReason.HW_THERMAL,
    0x80: ClockReason.POWER_BRAKE,
    0x100: ClockReason.DISPLAY,
}
_BARE_METAL = (pynvml.NVML_GPU_VIRTUALIZATION_MODE_NONE, pynvml.NVML_GPU_VIRTUALIZATION_MODE_PASSTHROUGH)


class NvmlDevice:
    """One GPU. With `control`, the right to set is probed by writing the present power limit again.

    Raises `NvmlUnavailableError` without a driver and `DeviceError` for an unknown UUID. What the GPU, the driver or
    the permissions do not allow is missing from `info.capabilities` and explained in `info.notes`.
    """

    def __init__(
        self,
        uuid: str,
        *,
        control: bool = False,
        clock: Clock = time.monotonic,
        own_pids: frozenset[int] | None = None,
        settle_s: float = 0.02,
    ) -> None:
        open_nvml()
        try:
            self._handle = call(pynvml.nvmlDeviceGetHandleByUUID, uuid)
            self._clock = clock
            self._own_pids = own_pids if own_pids is not None else frozenset({os.getpid()})
            self._settle_s = settle_s
            self._instant_scope = self._find_power_scope()
            self._info = self._discover(uuid, control)
        except DeviceError:
            close_nvml()
            raise

    @property
    def info(self) -> DeviceInfo:
        return self._info

    def own(self, pids: frozenset[int]) -> None:
        """Processes whose energy is ours; any other compute process on the board counts as foreign."""
        self._own_pids = pids

    def sample(self) -> Reading:
        return Reading(time_s=self._clock(), power_w=self._instant_power_w(), energy_j=self._energy_j())

    def read(self) -> Reading:
        handle = self._handle
        memory = read_or_none(pynvml.nvmlDeviceGetMemoryInfo, handle)
        rates = read_or_none(pynvml.nvmlDeviceGetUtilizationRates, handle)
        mask = read_or_none(pynvml.nvmlDeviceGetCurrentClocksEventReasons, handle)
        return Reading(
            time_s=self._clock(),
            power_w=self._instant_power_w(),
            power_average_w=_watts(read_or_none(pynvml.nvmlDeviceGetPowerUsage, handle)),
            energy_j=self._energy_j(),
            sm_clock_mhz=read_or_none(pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_SM),
            memory_clock_mhz=read_or_none(pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_MEM),
            temperature_c=self._temperature_c(),
            utilisation=rates.gpu / 100 if rates is not None else None,
            memory_used_bytes=memory.used if memory is not None else None,
            memory_total_bytes=memory.total if memory is not None else None,
            power_limit_w=self._limit_w(),
            enforced_limit_w=_watts(read_or_none(pynvml.nvmlDeviceGetEnforcedPowerLimit, handle)),
            clock_reasons=frozenset(reason for bit, reason in REASONS.items() if mask & bit)
            if mask is not None
            else None,
            foreign_processes=self._foreign_processes(),
        )

    def set_power_limit(self, watts: float) -> float | None:
        self._require(Capability.CAP)
        limits = self._info.limits
        if limits is not None and limits.clamp(watts) != watts:
            raise ValueError(f"power limit {watts:g} W is outside {limits.min_w:g} to {limits.max_w:g} W")
        call(pynvml.nvmlDeviceSetPowerManagementLimit, self._handle, round(watts * 1000))
        return self._limit_w()

    def lock_clocks(self, min_mhz: int, max_mhz: int) -> float | None:
        """NVML cannot report a lock; the SM clock just after is what can be read back."""
        self._require(Capability.CLOCKS)
        if min_mhz > max_mhz or {min_mhz, max_mhz} - set(self._info.clocks_mhz):
            raise ValueError(f"clock range {min_mhz} to {max_mhz} MHz is not on the device's list of supported clocks")
        call(pynvml.nvmlDeviceSetGpuLockedClocks, self._handle, min_mhz, max_mhz)
        time.sleep(self._settle_s)
        clock = read_or_none(pynvml.nvmlDeviceGetClockInfo, self._handle, pynvml.NVML_CLOCK_SM)
        return float(clock) if clock is not None else None

    def reset_clocks(self) -> None:
        self._require(Capability.CLOCKS)
        call(pynvml.nvmlDeviceResetGpuLockedClocks, self._handle)

    def close(self) -> None:
        close_nvml()

    def _require(self, capability: Capability) -> None:
        if not self._info.can(capability):
            why = "; ".join(self._info.notes) or GRANT_CONTROL
            raise PermissionRefusedError(f"{self._info.name} does not allow {capability.value} control here: {why}")

    def _discover(self, uuid: str, control: bool) -> DeviceInfo:
        handle, notes = self._handle, []
        limits = self._limits()
        clocks = self._clocks()
        capabilities = {Capability.READ}
        refused = self._refusal()
        if refused:
            notes.append(refused)
        elif control:
            capabilities |= self._probe_control(limits, clocks, notes)
        else:
            notes.append("opened read-only; control goes through powerd")
        counter = self._energy_j() is not None
        if not counter:
            notes.append("no energy counter on this GPU or driver: energy is integrated from power samples")
        if self._instant_scope is None:
            notes.append("no instant power field (needs a newer driver): power is the driver's average")
        return DeviceInfo(
            uuid=uuid,
            name=str(call(pynvml.nvmlDeviceGetName, handle)),
            kind="nvml",
            method=Method.MEASURED if counter else Method.ESTIMATED,
            source=Source.NVML_COUNTER if counter else Source.NVML_POWER,
            scope=Scope.MODULE if self._instant_scope == pynvml.NVML_POWER_SCOPE_MODULE else Scope.GPU,
            capabilities=frozenset(capabilities),
            limits=limits,
            clocks_mhz=clocks,
            counter_resolution_j=0.001 if counter else None,
            gain_error_percent=GAIN_ERROR_PERCENT,
            notes=tuple(notes),
        )

    def _probe_control(self, limits: PowerLimits | None, clocks: tuple[int, ...], notes: list[str]) -> set[Capability]:
        """Write the present limit again: changes nothing and shows whether writing is allowed."""
        present = read_or_none(pynvml.nvmlDeviceGetPowerManagementLimit, self._handle)
        found: set[Capability] = set()
        try:
            if present is None or limits is None:
                raise UnsupportedOperationError("this GPU has no power limit that can be set")
            call(pynvml.nvmlDeviceSetPowerManagementLimit, self._handle, present)
            found.add(Capability.CAP)
        except PermissionRefusedError as error:
            notes.append(str(error))
            return found
        except DeviceError as error:
            notes.append(f"no power cap: {error}")
            if os.geteuid() != 0:
                notes.append(GRANT_CONTROL)
                return found
        if clocks:
            found.add(Capability.CLOCKS)
        else:
            notes.append("no list of supported clocks, so none can be locked")
        return found

    def _refusal(self) -> str | None:
        mig = read_or_none(pynvml.nvmlDeviceGetMigMode, self._handle)
        if mig is not None and mig[0] == 1:
            return "MIG is on: power and clocks belong to the whole GPU, so control is refused; measure only"
        mode = read_or_none(pynvml.nvmlDeviceGetVirtualizationMode, self._handle)
        if mode is not None and mode not in _BARE_METAL:
            return "this is a vGPU: the host owns power and clocks, so control is refused; measure only"
        return None

    def _limits(self) -> PowerLimits | None:
        constraints = read_or_none(pynvml.nvmlDeviceGetPowerManagementLimitConstraints, self._handle)
        default = read_or_none(pynvml.nvmlDeviceGetPowerManagementDefaultLimit, self._handle)
        if constraints is None or default is None:
            return None
        return PowerLimits(constraints[0] / 1000, constraints[1] / 1000, default / 1000)

    def _clocks(self) -> tuple[int, ...]:
        memory = read_or_none(pynvml.nvmlDeviceGetSupportedMemoryClocks, self._handle)
        if not memory:
            return ()
        graphics = read_or_none(pynvml.nvmlDeviceGetSupportedGraphicsClocks, self._handle, max(memory))
        return tuple(sorted(graphics or ()))

    def _find_power_scope(self) -> int | None:
        for scope in (pynvml.NVML_POWER_SCOPE_GPU, pynvml.NVML_POWER_SCOPE_MODULE):
            if self._field_watts(scope) is not None:
                return int(scope)
        return None

    def _field_watts(self, scope: int) -> float | None:
        wanted = [(pynvml.NVML_FI_DEV_POWER_INSTANT, scope)]
        values = read_or_none(pynvml.nvmlDeviceGetFieldValues, self._handle, wanted)
        if values is None or values[0].nvmlReturn != pynvml.NVML_SUCCESS:
            return None
        return float(values[0].value.uiVal / 1000)

    def _instant_power_w(self) -> float | None:
        if self._instant_scope is not None:
            return self._field_watts(self._instant_scope)
        return _watts(read_or_none(pynvml.nvmlDeviceGetPowerUsage, self._handle))

    def _energy_j(self) -> float | None:
        millijoules = read_or_none(pynvml.nvmlDeviceGetTotalEnergyConsumption, self._handle)
        return millijoules / 1000 if millijoules is not None else None

    def _limit_w(self) -> float | None:
        return _watts(read_or_none(pynvml.nvmlDeviceGetPowerManagementLimit, self._handle))

    def _temperature_c(self) -> float | None:
        celsius = read_or_none(pynvml.nvmlDeviceGetTemperatureV, self._handle, pynvml.NVML_TEMPERATURE_GPU)
        if celsius is None:
            celsius = read_or_none(pynvml.nvmlDeviceGetTemperature, self._handle, pynvml.NVML_TEMPERATURE_GPU)
        return float(celsius) if celsius is not None else None

    def _foreign_processes(self) -> int | None:
        """`None` also when none of ours is listed: in a container the list may be empty or of another PID namespace,
        and who is foreign cannot be told."""
        running = read_or_none(pynvml.nvmlDeviceGetComputeRunningProcesses, self._handle)
        if running is None:
            return None
        pids = {process.pid for process in running}
        return len(pids - self._own_pids) if pids & self._own_pids or not pids else None


def visible_uuids(environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """UUIDs of the GPUs this process may use: all, or those named by `CUDA_VISIBLE_DEVICES` (indices or UUIDs).

    Indices count in PCI order, as NVML does. Raises `NvmlUnavailableError` without a driver, `ValueError` for an entry
    that names no GPU.
    """
    environment = os.environ if environment is None else environment
    open_nvml()
    try:
        count = call(pynvml.nvmlDeviceGetCount)
        handles = [call(pynvml.nvmlDeviceGetHandleByIndex, index) for index in range(count)]
        every = [str(call(pynvml.nvmlDeviceGetUUID, handle)) for handle in handles]
    finally:
        close_nvml()
    wanted = environment.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return tuple(every)
    chosen = []
    for entry in filter(None, (part.strip() for part in wanted.split(","))):
        if entry.lstrip("-").isdigit():
            if not 0 <= int(entry) < count:
                break  # CUDA ignores this entry and all after it
            chosen.append(every[int(entry)])
            continue
        matching = [uuid for uuid in every if uuid.startswith(entry)]
        if len(matching) != 1:
            raise ValueError(
                f"CUDA_VISIBLE_DEVICES entry {entry!r} names no GPU here; GPUs: {', '.join(every) or 'none'}"
            )
        chosen.append(matching[0])
    return tuple(chosen)


def _watts(milliwatts: int | None) -> float | None:
    return milliwatts / 1000 if milliwatts is not None else None
