"""A GPU in virtual time at the pace of the engine's steps: power, energy, heat, power cap and clock locks.

The physics are `power.twin`'s and the rules `power.board`'s. That board integrates in pieces of at most 10 ms for a
live sensor; this one takes each engine step as one piece, which makes a simulated hour cost a second. A test holds the
two together. The arithmetic is compiled (`decode_arithmetic`). All figures are *simulated*.
"""

from __future__ import annotations

import hashlib
import math
import random

import numpy as np
from msgspec import Struct

from power.device import ClockReason, DeviceInfo, PowerLimits, Reading
from power.quantities import Method, Scope, Source
from power.simulated import ALL_CAPABILITIES
from power.twin import Twin
from traces.decode_arithmetic import (
    AMBIENT_C,
    BOARD_NUMBERS,
    CAP_BLIND_S,
    CAP_MARGIN,
    CAP_TIME_S,
    CEILING_MHZ,
    CELSIUS_PER_W,
    CLOCK_MHZ,
    COUNT,
    CYCLES,
    DUE_MHZ,
    DUE_S,
    ENERGY_J,
    HEAT_TIME_S,
    LEAKAGE_PER_C,
    LIMIT_W,
    LOCK_MHZ,
    LOWEST_MHZ,
    REFERENCE_C,
    SLOW_POWER_W,
    STATE_NUMBERS,
    TEMPERATURE_C,
    TIME_S,
    account,
    clock_now,
    leak,
    run_decodes,
    step,
)
from traces.step_log import LONGEST_RUN, StepLog
from traces.twin_arithmetic import Numbers, twin_numbers
from traces.virtual_clock import VirtualClock


class DecodeRun(Struct, frozen=True, gc=False):
    """What a run of decode steps did. `dynamic_j`: joules above idle. `unit_j`: the same over the weight of all
    requests, summed over steps; `moment_j`: that times the step's number from 0, for weights that grow with it."""

    steps: int
    idle_j: float
    dynamic_j: float
    unit_j: float
    moment_j: float


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
        self.numbers = twin_numbers(twin)
        self.idle_power_w = twin.idle_power_w(active=True)
        self.clock_changes = 0
        digest = hashlib.sha256(f"{gpu.name}/{ordinal}/{seed}".encode()).digest()
        self._random = random.Random(int.from_bytes(digest[:8], "big"))
        self._top_mhz = float(gpu.clock_max_mhz)
        self._board = _board_numbers(twin)
        self._at_clock = np.zeros(gpu.clock_max_mhz + 1)
        state = self._state = np.zeros(STATE_NUMBERS)
        state[TIME_S] = clock.now_s
        state[SLOW_POWER_W] = self.idle_power_w
        state[CEILING_MHZ] = state[CLOCK_MHZ] = state[LOCK_MHZ] = state[DUE_MHZ] = self._top_mhz
        state[DUE_S] = math.inf
        state[TEMPERATURE_C] = gpu.thermal.ambient_c + gpu.idle_w * gpu.thermal.celsius_per_w
        state[LIMIT_W] = gpu.limit_default_w
        leak(state, self._board)
        self._window = (clock.now_s, 0.0)
        self._shown_power_w = self.idle_power_w
        self._busy = False
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
        return self._state.item(TIME_S)

    @property
    def energy_j(self) -> float:
        """Of all GPUs since the start."""
        return self._state.item(ENERGY_J)

    @property
    def cycles(self) -> float:
        """Clock times time in steps, MHz s."""
        return self._state.item(CYCLES)

    @property
    def time_at_clock_s(self) -> dict[int, float]:
        """Seconds in steps, by clock in whole MHz."""
        return {int(clock): float(self._at_clock[clock]) for clock in np.flatnonzero(self._at_clock)}

    def clock_mhz(self) -> float:
        """The SM clock of a step that starts now: lock, then the power cap's ceiling."""
        return clock_now(self._state)

    def rest(self, until_s: float) -> float:
        """Idle to `until_s`; returns the joules of all GPUs."""
        state = self._state
        seconds = until_s - state.item(TIME_S)
        if seconds <= 0.0:
            return 0.0
        self._busy = False
        state[CEILING_MHZ] = self._top_mhz
        joules = account(state, self.numbers, self._board, self._at_clock, seconds, self.idle_power_w, 0.0)
        clock_now(state)
        return joules

    def step(self, seconds: float, power_w: float, clock_mhz: float) -> float:
        """Account a step that the twin says draws `power_w` a GPU at its reference temperature; returns joules."""
        self._busy = True
        return step(self._state, self.numbers, self._board, self._at_clock, seconds, power_w, clock_mhz)

    def decode_run(self, decode: Numbers, kv_tokens: int, max_steps: int, until_s: float, log: StepLog) -> DecodeRun:
        """Up to `max_steps` (and `LONGEST_RUN`) decode steps of the same sequences: the first unconditionally, each
        later one only while it starts before `until_s`. One by one and many at once give bit-equal figures. Steps are
        written to `log`, which is told of them by its owner."""
        self._busy = True
        steps = min(max_steps, LONGEST_RUN)
        log.make_room(steps)
        return DecodeRun(
            *run_decodes(
                self._state,
                self.numbers,
                self._board,
                self._at_clock,
                decode,
                log.rows,
                log.place,
                float(kv_tokens),
                steps,
                until_s,
            )
        )

    def update_sensor(self) -> float:
        """Show the mean power since the last update; returns it, W of one GPU."""
        since_s, energy_j = self._window
        now_s, now_j = self.time_s, self.energy_j
        if now_s > since_s:
            self._shown_power_w = (now_j - energy_j) / (now_s - since_s) / self.count
            self._window = (now_s, now_j)
        return self._shown_power_w

    def read(self) -> Reading:
        gpu, state = self.twin.gpu, self._state
        busy_clock = self.clock_mhz()
        return Reading(
            time_s=state.item(TIME_S),
            power_w=self._shown_power_w,
            power_average_w=self._shown_power_w,
            energy_j=state.item(ENERGY_J) / self.count,
            sm_clock_mhz=busy_clock if self._busy else float(gpu.idle_clock_mhz),
            memory_clock_mhz=float(gpu.memory_clock_mhz),
            temperature_c=state.item(TEMPERATURE_C),
            utilisation=1.0 if self._busy else 0.0,
            memory_total_bytes=gpu.memory_bytes,
            power_limit_w=state.item(LIMIT_W),
            enforced_limit_w=state.item(LIMIT_W),
            clock_reasons=_CAPPED if state.item(CEILING_MHZ) < busy_clock else _UNCAPPED,
            foreign_processes=0,
        )

    def sample(self) -> Reading:
        state = self._state
        return Reading(state.item(TIME_S), self._shown_power_w, energy_j=state.item(ENERGY_J) / self.count)

    def set_power_limit(self, watts: float) -> float | None:
        limits = self._info.limits
        assert limits is not None
        if limits.clamp(watts) != watts:
            raise ValueError(f"power limit {watts:g} W is outside {limits.min_w:g} to {limits.max_w:g} W")
        self._state[LIMIT_W] = watts
        return watts

    def lock_clocks(self, min_mhz: int, max_mhz: int) -> float | None:
        if max_mhz not in self._info.clocks_mhz:
            raise ValueError(f"clock {max_mhz} MHz is not on the device's list of supported clocks")
        self._command(float(max_mhz))
        return float(max_mhz)

    def reset_clocks(self) -> None:
        self._command(self._top_mhz)

    def close(self) -> None:
        return None

    def _command(self, clock_mhz: float) -> None:
        """A new clock takes hold after a drawn latency, at the next step that starts then or later."""
        actuation, state = self.twin.gpu.actuation, self._state
        sigma = math.log(actuation.latency_p99_s / actuation.latency_p50_s) / 2.326
        latency = self._random.lognormvariate(math.log(actuation.latency_p50_s), sigma)
        now_s = state.item(TIME_S)
        if now_s >= state.item(DUE_S):
            state[LOCK_MHZ] = state[DUE_MHZ]
        state[DUE_S], state[DUE_MHZ] = max(self.clock.now_s, now_s) + latency, clock_mhz
        self.clock_changes += 1


_CAPPED = frozenset({ClockReason.POWER_CAP})
_UNCAPPED: frozenset[ClockReason] = frozenset()


def _board_numbers(twin: Twin) -> Numbers:
    gpu = twin.gpu
    act, thermal = gpu.actuation, gpu.thermal
    found = np.empty(BOARD_NUMBERS)
    found[COUNT] = twin.tensor_parallel
    found[LOWEST_MHZ] = gpu.clock_min_mhz
    found[CAP_MARGIN] = gpu.cap_margin
    found[CAP_BLIND_S] = act.cap_blind_s
    found[CAP_TIME_S] = act.cap_time_constant_s
    found[AMBIENT_C] = thermal.ambient_c
    found[CELSIUS_PER_W] = thermal.celsius_per_w
    found[HEAT_TIME_S] = thermal.time_constant_s
    found[LEAKAGE_PER_C] = thermal.leakage_per_c
    found[REFERENCE_C] = thermal.reference_c
    return found
