"""What every power device offers, and the errors it may raise. Units: W, J, MHz, °C, seconds."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol

from msgspec import Struct

from power.quantities import Method, Scope, Source


class Capability(enum.StrEnum):
    """What may be done with a device here and now."""

    READ = "read"
    CAP = "cap"
    CLOCKS = "clocks"


class ClockReason(enum.StrEnum):
    """Why the SM clock is where it is (NVML's clocks event reasons)."""

    IDLE = "gpu_idle"
    APPLICATION_CLOCKS = "application_clocks"
    POWER_CAP = "sw_power_cap"
    HW_SLOWDOWN = "hw_slowdown"
    SYNC_BOOST = "sync_boost"
    THERMAL = "sw_thermal"
    HW_THERMAL = "hw_thermal"
    POWER_BRAKE = "hw_power_brake"
    DISPLAY = "display_clock"


class DeviceError(Exception):
    """A device call failed. `str(error)` says what happened and, where known, how to mend it."""


class PermissionRefusedError(DeviceError):
    """The caller lacks the privilege for this call."""


class UnsupportedOperationError(DeviceError):
    """The device or driver cannot do this."""


class DeviceLostError(DeviceError):
    """The device has fallen off the bus or the driver is gone."""


@dataclass(frozen=True, slots=True)
class PowerLimits:
    """Constraints of the power limit, W."""

    min_w: float
    max_w: float
    default_w: float

    def clamp(self, watts: float) -> float:
        return min(max(watts, self.min_w), self.max_w)


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """Identity and limits of a device. `clocks_mhz`: lockable SM clocks, ascending, empty when unknown.

    `notes` say why a capability is missing and how to grant it.
    """

    uuid: str
    name: str
    kind: str
    method: Method
    source: Source
    scope: Scope
    capabilities: frozenset[Capability]
    limits: PowerLimits | None = None
    clocks_mhz: tuple[int, ...] = ()
    counter_resolution_j: float | None = None
    gain_error_percent: float | None = None
    notes: tuple[str, ...] = ()

    def can(self, capability: Capability) -> bool:
        return capability in self.capabilities

    def snap_clock(self, clock_mhz: float) -> int:
        """The lowest supported clock at or above `clock_mhz`, or the highest there is. `ValueError` without a list."""
        if not self.clocks_mhz:
            raise ValueError(f"{self.name} reports no supported clocks, so none can be chosen")
        return next((clock for clock in self.clocks_mhz if clock >= clock_mhz), self.clocks_mhz[-1])


class Reading(Struct, frozen=True, gc=False):
    """One look at a device. A field is `None` when the device does not report it.

    `power_w` is instantaneous, `power_average_w` the device's own average (1 s on Hopper); `energy_j` is
    cumulative since some earlier moment and may restart. `foreign_processes` counts compute processes on the
    board that are not ours.
    """

    time_s: float
    power_w: float | None = None
    power_average_w: float | None = None
    energy_j: float | None = None
    sm_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    temperature_c: float | None = None
    utilisation: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    power_limit_w: float | None = None
    enforced_limit_w: float | None = None
    clock_reasons: frozenset[ClockReason] | None = None
    foreign_processes: int | None = None


class PowerDevice(Protocol):
    """A device that can be read and, where its capabilities say so, controlled.

    Setters return the value read back after the call, `None` where the device offers no way to read it back.
    They raise `DeviceError`; they never pretend success.
    """

    @property
    def info(self) -> DeviceInfo: ...

    def read(self) -> Reading:
        """A full reading. Raises `DeviceLostError` when the device is gone; missing fields are `None`."""
        ...

    def sample(self) -> Reading:
        """The cheap part of a reading: instant power and energy counter only."""
        ...

    def set_power_limit(self, watts: float) -> float | None: ...

    def lock_clocks(self, min_mhz: int, max_mhz: int) -> float | None:
        """Lock the SM clock to a range; returns the SM clock in force just after."""
        ...

    def reset_clocks(self) -> None: ...

    def close(self) -> None: ...
