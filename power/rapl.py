"""`RaplDevice`: CPU package and DRAM energy from the kernel's powercap tree. Read-only.

`energy_uj` wraps at `max_energy_range_uj`; differences are taken modulo that range, so the tree must be read at
least once in half a wrap (about ten minutes at 200 W). `psys` overlaps the packages and is never added to them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from power.device import Capability, DeviceInfo, Reading, UnsupportedOperationError
from power.quantities import Clock, Method, Scope, Source

POWERCAP = Path("/sys/class/powercap")
MAX_PLAUSIBLE_W = 2000.0
GRANT_READ = (
    "energy_uj is readable by root only (CVE-2020-8694): grant CAP_DAC_READ_SEARCH, or bind-mount "
    "/sys/devices/virtual/powercap read-only into the container"
)


@dataclass(slots=True)
class _Zone:
    name: str
    path: Path
    range_j: float
    last_uj: int
    last_s: float
    total_j: float = 0.0


class RaplDevice:
    """Sum of CPU packages and DRAM. Use `open_rapl`, which answers `None` where nothing can be read."""

    def __init__(self, zones: list[_Zone], notes: tuple[str, ...], clock: Clock) -> None:
        self._zones = zones
        self._clock = clock
        self.dropped_samples = 0
        names = ", ".join(zone.name for zone in zones)
        self._info = DeviceInfo(
            uuid="rapl-" + "-".join(zone.name for zone in zones),
            name=f"CPU energy ({names})",
            kind="rapl",
            method=Method.MEASURED,
            source=Source.RAPL,
            scope=Scope.PACKAGE,
            capabilities=frozenset({Capability.READ}),
            counter_resolution_j=1e-6,
            gain_error_percent=None,
            notes=notes,
        )
        self._previous: tuple[float, float] | None = None

    @property
    def info(self) -> DeviceInfo:
        return self._info

    def read(self) -> Reading:
        return self.sample()

    def sample(self) -> Reading:
        now = self._clock()
        for zone in self._zones:
            self._update(zone, now)
        total = sum(zone.total_j for zone in self._zones)
        power = None
        if self._previous is not None and now > self._previous[0]:
            power = (total - self._previous[1]) / (now - self._previous[0])
        self._previous = (now, total)
        return Reading(time_s=now, power_w=power, power_average_w=power, energy_j=total)

    def by_zone(self) -> dict[str, float]:
        """Joules of each zone since opening, as of the last sample."""
        return {zone.name: zone.total_j for zone in self._zones}

    def set_power_limit(self, watts: float) -> float | None:
        raise UnsupportedOperationError("CPU power limits are not controlled here")

    def lock_clocks(self, min_mhz: int, max_mhz: int) -> float | None:
        raise UnsupportedOperationError("CPU clocks are not controlled here")

    def reset_clocks(self) -> None:
        raise UnsupportedOperationError("CPU clocks are not controlled here")

    def close(self) -> None:
        return None

    def _update(self, zone: _Zone, now: float) -> None:
        value = _read_int(zone.path / "energy_uj")
        if value is None:
            self.dropped_samples += 1
            return
        delta_j = ((value - zone.last_uj) % round(zone.range_j * 1e6)) / 1e6
        elapsed = now - zone.last_s
        zone.last_uj, zone.last_s = value, now
        if delta_j > MAX_PLAUSIBLE_W * max(elapsed, 0.001):
            self.dropped_samples += 1
            return
        zone.total_j += delta_j


def open_rapl(root: Path = POWERCAP, *, clock: Clock = time.monotonic) -> tuple[RaplDevice | None, str | None]:
    """The device and, where there is none, the reason. Missing is `None`, never zero joules."""
    if not root.is_dir():
        return None, "no powercap tree here (virtual machine, container or unsupported CPU)"
    zones, unreadable = [], 0
    now = clock()
    for path in sorted(root.glob("intel-rapl:*")):
        name = _read_text(path / "name")
        if name is None or not (name.startswith("package") or name == "dram"):
            continue
        value, wrap = _read_int(path / "energy_uj"), _read_int(path / "max_energy_range_uj")
        if value is None or not wrap:
            unreadable += 1
            continue
        label = name if name != "dram" else f"dram-{path.name.split(':')[1]}"
        zones.append(_Zone(label, path, wrap / 1e6, value, now))
    if not zones:
        return None, GRANT_READ if unreadable else "no package or dram zone in the powercap tree"
    notes = (f"{unreadable} zones could not be read; {GRANT_READ}",) if unreadable else ()
    return RaplDevice(zones, notes, clock), None


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _read_int(path: Path) -> int | None:
    text = _read_text(path)
    return int(text) if text is not None and text.isdigit() else None
