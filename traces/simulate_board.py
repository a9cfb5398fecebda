"""A GPU in virtual time at the pace of the engine's steps: power, energy, heat, power cap and clock locks.

The physics are `power.twin`'s and the rules `power.board`'s. That board integrates in pieces of at most 10 ms for a
live sensor; this one takes each engine step as one piece, which makes a simulated hour cost a second. A test holds the
two together. All figures are *simulated*.
"""

from __future__ import annotations

import hashlib
import math
import random
from dataclasses import dataclass, field

from power.device import ClockReason, DeviceInfo, PowerLimits, Reading
from power.quantities import Method, Scope, Source
from power.simulated import ALL_CAPABILITIES
from power.twin import Twin
from traces.twin_step import PreparedDecode
from traces.virtual_clock import VirtualClock

HEAT_EVERY_S = 0.1


@dataclass(slots=True)
class DecodeRun:
    """What a run of decode steps did. `unit_j`: dynamic joules over the weight of all requests, summed over steps;
    `moment_j`: the same times the step's number from 0, for weights that grow with the step."""

    idle_j: float = 0.0
    unit_j: float = 0.0
    moment_j: float = 0.0
    ends_s: list[float] = field(default_factory=list)
    durations_s: list[float] = field(default_factory=list)


class VirtualGpu:
    """One engine's GPUs (`twin.tensor_parallel` equal ones that work together), as a `PowerDevice`.

    Readings and limits are those of one GPU, `energy_j` of all of them. `command_delay_s`: added to the drawn
    actuation latency, for control that is not in-band. Deterministic for a `seed`.
    """

    def __init__(self, twin: Twin, clock: VirtualClock, *, ordinal: int = 0, seed: int = 0) -> None:
        gpu = twin.gpu
        self.twin = twin
        self.clock = clock
        self.count = twin.tensor_parallel
        self.energy_j = 0.0
        self.idle_power_w = twin.idle_power_w(active=True)
        self.clock_changes = 0
        self.time_at_clock_s: dict[int, float] = {}
        self.cycles = 0.0
        self._time_s = clock.now_s
        digest = hashlib.sha256(f"{gpu.name}/{ordinal}/{seed}".encode()).digest()
        self._random = random.Random(int.from_bytes(digest[:8], "big"))
        self._limit_w = gpu.limit_default_w
        self._lock_mhz: int | None = None
        self._due_s = math.inf
        self._due_mhz: int | None = None
        self._ceiling_mhz = float(gpu.clock_max_mhz)
        self._clock_mhz = float(gpu.clock_max_mhz)
        self._slow_power_w = self.idle_power_w
        self._temperature_c = gpu.thermal.ambient_c + gpu.idle_w * gpu.thermal.celsius_per_w
        self._leakage = 1.0
        self._heat_energy_j = 0.0
        self._heat_time_s = 0.0
        self._window = (clock.now_s, 0.0)
        self._shown_power_w = self.idle_power_w
        self._busy = False
        self._leak()
        uuid = f"SIM-{gpu.name}-{ordinal}-{digest.hex()[:8]}"
        self._info = DeviceInfo(
            uuid=uuid,
            name=f"simulated {gpu.product}",
            kind="simulated",
            method=Method.SIMULATED,
            source=Source.TWIN,
            scope=Scope.GPU,
            capabilities=ALL_CAPABILITIES,
            limits=PowerLimits(gpu.limit_min_w, gpu.limit_max_w, gpu.limit_default_w),
            clocks_mhz=gpu.clocks_mhz,
            counter_resolution_j=gpu.sensor.counter_resolution_j,
            gain_error_percent=0.0,
            notes=(f"simulated from profile {gpu.name} (fitted on: {gpu.fitted_on})",),
        )

    @property
    def info(self) -> DeviceInfo:
        return self._info

    @property
    def time_s(self) -> float:
        """Up to when energy has been accounted."""
        return self._time_s

    @property
    def next_change_s(self) -> float:
        """When a commanded clock takes hold; infinity when none is due."""
        return self._due_s

    def clock_mhz(self) -> float:
        """The SM clock of a step that starts now: lock, then the power cap's ceiling."""
        if self._time_s >= self._due_s:
            self._lock_mhz, self._due_s = self._due_mhz, math.inf
        top = self._lock_mhz if self._lock_mhz is not None else self.twin.gpu.clock_max_mhz
        self._clock_mhz = min(float(top), self._ceiling_mhz)
        return self._clock_mhz

    def rest(self, until_s: float) -> float:
        """Idle to `until_s`; returns the joules of all GPUs."""
        seconds = until_s - self._time_s
        if seconds <= 0.0:
            return 0.0
        self._busy = False
        self._ceiling_mhz = float(self.twin.gpu.clock_max_mhz)
        joules = self._account(seconds, self.idle_power_w, None)
        self.clock_mhz()
        return joules

    def step(self, seconds: float, power_w: float, clock_mhz: float) -> float:
        """Account a step that the twin says draws `power_w` a GPU at its reference temperature; returns joules."""
        self._busy = True
        idle = self.idle_power_w
        return self._account(seconds, idle + (power_w - idle) * self._leakage, clock_mhz)

    def decode_run(self, prepared: PreparedDecode, kv_tokens: int, max_steps: int, until_s: float) -> DecodeRun:
        """Up to `max_steps` decode steps of the same sequences: the first unconditionally, each later one only while
        it starts before `until_s`. Running one by one and running many at once give bit-equal figures."""
        run = DecodeRun()
        ends, durations = run.ends_s, run.durations_s
        sequences, idle, count = prepared.sequences, self.idle_power_w, self.count
        for number in range(max_steps):
            clock = self.clock_mhz() if self._due_s < math.inf else self._clock_mhz
            seconds, power = prepared.predict(kv_tokens, clock)
            idle_j = idle * seconds * count
            drawn = self._account(seconds, idle + (power - idle) * self._leakage, clock)
            share = (drawn - idle_j) / prepared.weight(kv_tokens)
            run.idle_j += idle_j
            run.unit_j += share
            run.moment_j += share * number
            ends.append(self._time_s)
            durations.append(seconds)
            kv_tokens += sequences
            if self._time_s >= until_s:
                break
        self._busy = True
        return run

    def _account(self, seconds: float, power_w: float, clock_mhz: float | None) -> float:
        self._time_s += seconds
        joules = power_w * seconds * self.count
        self.energy_j += joules
        if clock_mhz is not None:
            self.cycles += clock_mhz * seconds
            key = round(clock_mhz)
            at_clock = self.time_at_clock_s
            at_clock[key] = at_clock.get(key, 0.0) + seconds
        self._cap(power_w, seconds)
        self._heat_energy_j += power_w * seconds
        self._heat_time_s += seconds
        if self._heat_time_s >= HEAT_EVERY_S:
            self._leak()
        return joules

    def _leak(self) -> None:
        """Warm up by the mean power since the last time; leakage follows the temperature."""
        thermal, seconds = self.twin.gpu.thermal, self._heat_time_s
        if seconds > 0.0:
            settled = thermal.ambient_c + thermal.celsius_per_w * self._heat_energy_j / seconds
            self._temperature_c += (settled - self._temperature_c) * -math.expm1(-seconds / thermal.time_constant_s)
            self._heat_energy_j = self._heat_time_s = 0.0
        self._leakage = 1.0 + thermal.leakage_per_c * (self._temperature_c - thermal.reference_c)

    def _cap(self, power_w: float, seconds: float) -> None:
        """The firmware's loop: blind for `cap_blind_s`, then pulls the clock ceiling until power fits the limit."""
        gpu = self.twin.gpu
        act = gpu.actuation
        self._slow_power_w += (power_w - self._slow_power_w) * -math.expm1(-seconds / act.cap_blind_s)
        target = self._limit_w * gpu.cap_margin
        slow = self._slow_power_w
        if slow <= target and self._ceiling_mhz >= gpu.clock_max_mhz:
            return
        error = (target - slow) / max(target, slow)
        factor = 1.0 + max(-0.5, min(0.5, error * seconds / act.cap_time_constant_s))
        self._ceiling_mhz = min(max(self._ceiling_mhz * factor, gpu.clock_min_mhz), gpu.clock_max_mhz)
        self.clock_mhz()

    def update_sensor(self) -> float:
        """Show the mean power since the last update; returns it, W of one GPU."""
        since_s, energy_j = self._window
        if self._time_s > since_s:
            self._shown_power_w = (self.energy_j - energy_j) / (self._time_s - since_s) / self.count
            self._window = (self._time_s, self.energy_j)
        return self._shown_power_w

    def read(self) -> Reading:
        gpu = self.twin.gpu
        busy_clock = self.clock_mhz()
        return Reading(
            time_s=self._time_s,
            power_w=self._shown_power_w,
            power_average_w=self._shown_power_w,
            energy_j=self.energy_j / self.count,
            sm_clock_mhz=busy_clock if self._busy else float(gpu.idle_clock_mhz),
            memory_clock_mhz=float(gpu.memory_clock_mhz),
            temperature_c=self._temperature_c,
            utilisation=1.0 if self._busy else 0.0,
            memory_total_bytes=gpu.memory_bytes,
            power_limit_w=self._limit_w,
            enforced_limit_w=self._limit_w,
            clock_reasons=frozenset({ClockReason.POWER_CAP} if self._ceiling_mhz < busy_clock else ()),
            foreign_processes=0,
        )

    def sample(self) -> Reading:
        return self.read()

    def set_power_limit(self, watts: float) -> float | None:
        limits = self._info.limits
        assert limits is not None
        if limits.clamp(watts) != watts:
            raise ValueError(f"power limit {watts:g} W is outside {limits.min_w:g} to {limits.max_w:g} W")
        self._limit_w = watts
        return watts

    def lock_clocks(self, min_mhz: int, max_mhz: int) -> float | None:
        if max_mhz not in self._info.clocks_mhz:
            raise ValueError(f"clock {max_mhz} MHz is not on the device's list of supported clocks")
        self._command(max_mhz)
        return float(max_mhz)

    def reset_clocks(self) -> None:
        self._command(None)

    def close(self) -> None:
        return None

    def _command(self, clock_mhz: int | None) -> None:
        """A new clock takes hold after a drawn latency, at the next step that starts then or later."""
        actuation = self.twin.gpu.actuation
        sigma = math.log(actuation.latency_p99_s / actuation.latency_p50_s) / 2.326
        latency = self._random.lognormvariate(math.log(actuation.latency_p50_s), sigma)
        if self._time_s >= self._due_s:
            self._lock_mhz = self._due_mhz
        self._due_s, self._due_mhz = max(self.clock.now_s, self._time_s) + latency, clock_mhz
        self.clock_changes += 1
