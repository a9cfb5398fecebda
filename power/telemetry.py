"""Telemetry: samples every device at a fixed rate and keeps the latest full reading of each."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from power.books import EnergySample
from power.device import DeviceError, PowerDevice, Reading
from power.periodic import Periodic
from power.quantities import Clock

RATE_HZ = 20.0
READ_EVERY = 4
STALE_S = 1.0
SLOW_CALL_S = 0.5


@dataclass(slots=True)
class _Seen:
    """`quick`: newer power and energy than those of the full `reading`; joined when somebody asks."""

    reading: Reading | None = None
    quick: Reading | None = None
    looked_s: float = float("-inf")
    error: str | None = None


class Telemetry:
    """One thread for all devices of this server. `on_sample` gets their sum: power in W, energy in J, and whether
    other processes use a board. A missing part makes the sum `None`, never smaller."""

    def __init__(
        self,
        devices: Sequence[PowerDevice],
        on_sample: Callable[[EnergySample, bool], None],
        *,
        rate_hz: float = RATE_HZ,
        clock: Clock = time.monotonic,
        on_alarm: Callable[[str], None] | None = None,
    ) -> None:
        self._devices = tuple(devices)
        self._on_sample = on_sample
        self._on_alarm = on_alarm
        self._clock = clock
        self._seen = {device.info.uuid: _Seen() for device in devices}
        self._count = 0
        self._lock = threading.Lock()
        self.samples = 0
        self.lost_samples = 0
        self.slow_calls = 0
        self.loop = Periodic("power-telemetry", 1.0 / rate_hz, self.tick, on_alarm)

    def start(self) -> None:
        self.loop.start()

    def stop(self) -> None:
        self.loop.stop()

    def tick(self) -> None:
        """Look once at every device; every fourth look is a full reading."""
        full = self._count % READ_EVERY == 0
        self._count += 1
        readings = [self._look(device, full=full) for device in self._devices]
        known = [reading for reading in readings if reading is not None]
        if len(known) < len(self._devices):
            self.lost_samples += 1
            return
        self.samples += 1
        foreign = any(bool(self._full(device).foreign_processes) for device in self._devices)
        sample = EnergySample(
            time_s=max(reading.time_s for reading in known),
            energy_j=_sum([reading.energy_j for reading in known]),
            power_w=_sum([reading.power_w for reading in known]),
        )
        self._on_sample(sample, foreign)

    def latest(self, uuid: str) -> Reading | None:
        """The latest reading of a device, `None` when the last look is a second ago or the device is lost."""
        with self._lock:
            seen = self._seen[uuid]
            if self._clock() - seen.looked_s > STALE_S:
                return None
            quick = seen.quick
            if quick is not None and seen.reading is not None:
                seen.reading = replace(
                    seen.reading, time_s=quick.time_s, power_w=quick.power_w, energy_j=quick.energy_j
                )
                seen.quick = None
            return seen.reading

    def error(self, uuid: str) -> str | None:
        """Why the device cannot be read now."""
        with self._lock:
            return self._seen[uuid].error

    def _look(self, device: PowerDevice, *, full: bool) -> Reading | None:
        seen = self._seen[device.info.uuid]
        before = self._clock()
        full = full or seen.reading is None
        try:
            reading = device.read() if full else device.sample()
        except DeviceError as error:
            with self._lock:
                first = seen.error is None
                seen.reading, seen.quick, seen.error = None, None, str(error)
            if first and self._on_alarm is not None:
                self._on_alarm(f"{device.info.name}: {error}")
            return None
        now = self._clock()
        if now - before > SLOW_CALL_S:
            self.slow_calls += 1
        with self._lock:
            seen.looked_s, seen.error = now, None
            if full:
                seen.reading, seen.quick = reading, None
            else:
                seen.quick = reading
        return reading

    def _full(self, device: PowerDevice) -> Reading:
        reading = self._seen[device.info.uuid].reading
        assert reading is not None
        return reading


def _sum(values: list[float | None]) -> float | None:
    total = 0.0
    for value in values:
        if value is None:
            return None
        total += value
    return total
