"""A GPU board with a memory: the twin in time, with clock control, power capping, heat and an imperfect sensor.

Nothing here knows wall time: `advance` integrates up to the moment it is told. The same board stands behind
`SimulatedDevice` and behind the fake NVML library.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections import deque

import msgspec

from power.device import ClockReason
from power.profile import GpuProfile
from power.twin import Demand, Twin

MAX_SUBSTEP_S = 0.01
LONG_IDLE_S = 3.0


class BoardState(msgspec.Struct):
    """Everything a board remembers; plain numbers, so that it can be written to a file."""

    time_s: float
    limit_w: float
    clock_mhz: float
    ceiling_mhz: float
    temperature_c: float
    lock_min_mhz: int | None = None
    lock_max_mhz: int | None = None
    clock_change_due_s: float | None = None
    energy_j: float = 0.0
    power_w: float = 0.0
    slow_power_w: float = 0.0
    busy: float = 0.0
    context_live: bool = False
    capped: bool = False
    hot: bool = False
    next_update_s: float = 0.0
    window_energy_j: float = 0.0
    shown_power_w: float = 0.0
    shown_average_w: float = 0.0
    shown_energy_j: float = 0.0
    history: list[float] = []


class Board:
    """One GPU in simulated time. `exact_sensor` removes the sensor's gain error, not its sampling."""

    def __init__(
        self,
        twin: Twin,
        uuid: str,
        *,
        start_s: float = 0.0,
        exact_sensor: bool = False,
        context_live: bool = True,
        state: BoardState | None = None,
    ) -> None:
        gpu = twin.gpu
        self.twin = twin
        self.uuid = uuid
        digest = hashlib.sha256(uuid.encode()).digest()
        unit = int.from_bytes(digest[:8], "big") / 2**64
        gain = 0.0 if exact_sensor else (2 * unit - 1) * gpu.sensor.gain_error_percent / 100
        self.gain = 1.0 + gain
        self._random = random.Random(int.from_bytes(digest[8:16], "big"))
        self.state = state or BoardState(
            time_s=start_s,
            limit_w=gpu.limit_default_w,
            clock_mhz=float(gpu.idle_clock_mhz),
            ceiling_mhz=float(gpu.clock_max_mhz),
            temperature_c=gpu.thermal.ambient_c + gpu.idle_w * gpu.thermal.celsius_per_w,
            context_live=context_live,
            next_update_s=start_s + gpu.sensor.update_s,
        )
        if state is None:
            self.state.power_w = self.state.slow_power_w = twin.idle_power_w(active=context_live)
            self.state.shown_power_w = self.state.shown_average_w = self.state.power_w * self.gain
        self._history = deque(self.state.history, maxlen=max(1, round(gpu.sensor.average_s / gpu.sensor.update_s)) + 1)

    @property
    def gpu(self) -> GpuProfile:
        return self.twin.gpu

    def advance(self, until_s: float, load: Demand | None = None) -> None:
        """Integrate to `until_s` under one load (`None`: idle). Moments already past are ignored."""
        state, sensor = self.state, self.gpu.sensor
        if load is None and until_s - state.time_s > LONG_IDLE_S:
            self._rest(until_s)
            return
        while state.time_s < until_s:
            window_opens = state.next_update_s - sensor.window_s
            event = window_opens if state.time_s < window_opens else state.next_update_s
            end = min(until_s, event, state.time_s + MAX_SUBSTEP_S)
            due = state.clock_change_due_s
            if due is not None and state.time_s < due:
                end = min(end, due)
            self._substep(end - state.time_s, load)
            state.time_s = end
            if end == window_opens:
                state.window_energy_j = state.energy_j
            elif end == state.next_update_s:
                self._update_sensor()

    def set_limit(self, watts: float) -> None:
        self.state.limit_w = watts

    def set_lock(self, low_mhz: int | None, high_mhz: int | None, latency_s: float | None = None) -> float:
        """Lock or (with `None`) unlock the SM clock; takes effect after a drawn latency, which is returned."""
        drawn = self.draw_latency_s() if latency_s is None else latency_s
        self.state.lock_min_mhz, self.state.lock_max_mhz = low_mhz, high_mhz
        self.state.clock_change_due_s = self.state.time_s + drawn
        return drawn

    def draw_latency_s(self) -> float:
        actuation = self.gpu.actuation
        sigma = math.log(actuation.latency_p99_s / actuation.latency_p50_s) / 2.326
        return self._random.lognormvariate(math.log(actuation.latency_p50_s), sigma)

    def clock_reasons(self) -> frozenset[ClockReason]:
        state, reasons = self.state, set()
        if state.busy == 0.0:
            reasons.add(ClockReason.IDLE)
        if state.capped:
            reasons.add(ClockReason.POWER_CAP)
        if state.hot:
            reasons.add(ClockReason.THERMAL)
        return frozenset(reasons)

    def snapshot(self) -> BoardState:
        self.state.history = list(self._history)
        return self.state

    def target_clock(self, *, busy: bool) -> float:
        """Where locks and load alone would put the clock; the cap's ceiling comes on top."""
        state, gpu = self.state, self.gpu
        high = float(state.lock_max_mhz if state.lock_max_mhz is not None else gpu.clock_max_mhz)
        low = float(state.lock_min_mhz if state.lock_min_mhz is not None else gpu.idle_clock_mhz)
        return high if busy else min(low, high)

    def _substep(self, seconds: float, load: Demand | None) -> None:
        if seconds <= 0.0:
            return
        state, gpu = self.state, self.gpu
        due = state.clock_change_due_s
        if due is None or state.time_s >= due:
            state.clock_change_due_s = None
            target = self.target_clock(busy=load is not None)
            state.clock_mhz = min(target, state.ceiling_mhz) if load is not None else target
        elif load is not None and state.busy == 0.0 and state.clock_mhz < gpu.clock_min_mhz:
            state.clock_mhz = float(gpu.clock_min_mhz)
        if load is None:
            power, state.busy = self.twin.idle_power_w(active=state.context_live), 0.0
        else:
            step = self.twin.predict_demand(load, state.clock_mhz / gpu.clock_max_mhz)
            idle = self.twin.idle_power_w(active=True)
            leakage = 1.0 + gpu.thermal.leakage_per_c * (state.temperature_c - gpu.thermal.reference_c)
            power, state.busy, state.context_live = idle + (step.power_w - idle) * leakage, step.busy, True
        state.power_w = power
        state.energy_j += power * seconds
        self._heat(power, seconds)
        self._cap(power, seconds)

    def _heat(self, power: float, seconds: float) -> None:
        thermal, state = self.gpu.thermal, self.state
        settled = thermal.ambient_c + thermal.celsius_per_w * power
        state.temperature_c += (settled - state.temperature_c) * -math.expm1(-seconds / thermal.time_constant_s)
        state.hot = state.temperature_c >= thermal.slowdown_c

    def _cap(self, power: float, seconds: float) -> None:
        """The firmware's loop: blind for `cap_blind_s`, then pulls the clock ceiling until power fits the limit."""
        state, gpu = self.state, self.gpu
        act = gpu.actuation
        state.slow_power_w += (power - state.slow_power_w) * -math.expm1(-seconds / act.cap_blind_s)
        target = state.limit_w * gpu.cap_margin
        error = (target - state.slow_power_w) / max(target, state.slow_power_w)
        if state.hot:
            error = min(error, -0.05)
        factor = 1.0 + max(-0.5, min(0.5, error * seconds / act.cap_time_constant_s))
        state.ceiling_mhz = min(max(state.ceiling_mhz * factor, gpu.clock_min_mhz), gpu.clock_max_mhz)
        state.capped = state.ceiling_mhz < self.target_clock(busy=True) and power > 0.9 * target

    def _update_sensor(self) -> None:
        state, sensor = self.state, self.gpu.sensor
        state.shown_power_w = (state.energy_j - state.window_energy_j) / sensor.window_s * self.gain
        self._history.append(state.energy_j)
        span = (len(self._history) - 1) * sensor.update_s
        if span > 0:
            state.shown_average_w = (self._history[-1] - self._history[0]) / span * self.gain
        shown = math.floor(state.energy_j * self.gain / sensor.counter_resolution_j) * sensor.counter_resolution_j
        state.shown_energy_j = max(state.shown_energy_j, shown)
        state.next_update_s += sensor.update_s

    def _rest(self, until_s: float) -> None:
        """A long idle stretch in one go; the last part is left to `advance` so that the sensor ends up right."""
        state, update = self.state, self.gpu.sensor.update_s
        updates = int((until_s - 2 * self.gpu.sensor.average_s - state.next_update_s) / update)
        if updates > 0:
            edge = state.next_update_s + updates * update
            power = self.twin.idle_power_w(active=state.context_live)
            seconds = edge - state.time_s
            state.energy_j += power * seconds
            self._heat(power, seconds)
            state.power_w = state.slow_power_w = power
            state.busy, state.capped, state.time_s = 0.0, False, edge
            state.ceiling_mhz = float(self.gpu.clock_max_mhz)
            state.next_update_s = edge + update
            self._history.clear()
        while state.time_s < until_s:
            self.advance(min(until_s, state.time_s + 1.0), None)
