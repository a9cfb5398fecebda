"""`SimulatedDevice`: a power device on the twin. The running engine's phase mix drives its power."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from pathlib import Path

from power.board import Board
from power.device import Capability, DeviceInfo, PowerLimits, Reading
from power.quantities import Clock, Method, Scope, Source
from power.registers import Registers, RegisterValues
from power.twin import StepWork, Twin

ALL_CAPABILITIES = frozenset({Capability.READ, Capability.CAP, Capability.CLOCKS})
MAX_LAG_S = 30.0


class SimulatedDevice:
    """A GPU that does not exist, fed with the work of an engine that does.

    Call `on_step` after each engine step: the time it spans draws the power the twin predicts for that mix of
    work at the clock in force; time no step spans is idle. Steps are reported when they are over, so between
    `expect_work` and `quiet` the board's own time stands at the end of the last reported step: a reading's
    `time_s` may lag by a step (at most 30 s), and no step is mistaken for idleness.
    `stretch_factor` tells how much longer the engine must make its steps so that a lower clock can be felt.
    Thread-safe. Works on any monotonic clock, real or virtual. `registers`: folder in which the clock lock and the
    power limit are kept, shared with other processes that simulate the same board (see `power.registers`).
    """

    def __init__(
        self,
        twin: Twin,
        *,
        ordinal: int = 0,
        clock: Clock = time.monotonic,
        exact_sensor: bool = False,
        sleep: Callable[[float], None] | None = None,
        registers: Path | None = None,
    ) -> None:
        gpu = twin.gpu
        digest = hashlib.sha256(f"{gpu.name}/{ordinal}".encode()).hexdigest()
        uuid = f"SIM-{gpu.name}-{ordinal}-{digest[:8]}"
        self.twin = twin
        self.board = Board(twin, uuid, start_s=clock(), exact_sensor=exact_sensor)
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._expecting = False
        self._registers = Registers(registers, uuid) if registers is not None else None
        self._take_registers()
        notes = (f"simulated from profile {gpu.name} (fitted on: {gpu.fitted_on})",)
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
            gain_error_percent=0.0 if exact_sensor else gpu.sensor.gain_error_percent,
            notes=notes + ((gpu.provisional,) if gpu.provisional else ()),
        )

    @property
    def info(self) -> DeviceInfo:
        return self._info

    def expect_work(self, time_s: float) -> None:
        """The engine has work from `time_s` on: wait for its reports rather than take the time for idle."""
        with self._lock:
            if not self._expecting:
                self.board.advance(time_s, None)
                self._expecting = True

    def on_step(self, work: StepWork, started_s: float, ended_s: float) -> None:
        """Account one step of the engine, `started_s` to `ended_s` on the device's clock."""
        demand = None if work.empty else self.twin.demand(work)
        with self._lock:
            self.board.advance(started_s, None)
            self.board.advance(ended_s, demand)

    def quiet(self, time_s: float) -> None:
        """Nothing is running from `time_s` on."""
        with self._lock:
            self._expecting = False
            self.board.advance(time_s, None)

    def stretch_factor(self, work: StepWork) -> float:
        """How many times longer a step with this work takes at the present clock than at the top clock, at least 1."""
        with self._lock:
            self._take_registers()
            busy_clock = min(self.board.target_clock(busy=True), self.board.state.ceiling_mhz)
        return max(1.0, self.twin.stretch(work, busy_clock))

    def read(self) -> Reading:
        with self._lock:
            now = self._advance()
            state = self.board.state
            return Reading(
                time_s=now,
                power_w=state.shown_power_w,
                power_average_w=state.shown_average_w,
                energy_j=state.shown_energy_j,
                sm_clock_mhz=state.clock_mhz,
                memory_clock_mhz=float(self.twin.gpu.memory_clock_mhz),
                temperature_c=state.temperature_c,
                utilisation=state.busy,
                memory_total_bytes=self.twin.gpu.memory_bytes,
                power_limit_w=state.limit_w,
                enforced_limit_w=state.limit_w,
                clock_reasons=self.board.clock_reasons(),
                foreign_processes=0,
            )

    def sample(self) -> Reading:
        with self._lock:
            now = self._advance()
            state = self.board.state
            return Reading(time_s=now, power_w=state.shown_power_w, energy_j=state.shown_energy_j)

    def set_power_limit(self, watts: float) -> float | None:
        limits = self._info.limits
        assert limits is not None
        if limits.clamp(watts) != watts:
            raise ValueError(f"power limit {watts:g} W is outside {limits.min_w:g} to {limits.max_w:g} W")
        with self._lock:
            self._advance()
            self.board.set_limit(watts)
            self._put_registers()
            latency = self.board.draw_latency_s()
        self._wait(latency)
        return watts

    def lock_clocks(self, min_mhz: int, max_mhz: int) -> float | None:
        if min_mhz > max_mhz or {min_mhz, max_mhz} - set(self._info.clocks_mhz):
            raise ValueError(f"clock range {min_mhz} to {max_mhz} MHz is not on the device's list of supported clocks")
        with self._lock:
            self._advance()
            latency = self.board.set_lock(min_mhz, max_mhz)
            self._put_registers()
        self._wait(latency)
        return float(max_mhz) if self._sleep is None else self.read().sm_clock_mhz

    def reset_clocks(self) -> None:
        with self._lock:
            self._advance()
            latency = self.board.set_lock(None, None)
            self._put_registers()
        self._wait(latency)

    def close(self) -> None:
        return None

    def _advance(self) -> float:
        """Bring the board up to now, or as far as is known; returns its time."""
        now = self._clock()
        if not self._expecting or now - self.board.state.time_s > MAX_LAG_S:
            self.board.advance(now, None)
        self._take_registers()
        return self.board.state.time_s

    def _take_registers(self) -> None:
        """What another process set meanwhile."""
        values = self._registers.changed() if self._registers is not None else None
        if values is None:
            return
        state = self.board.state
        if (values.lock_min_mhz, values.lock_max_mhz) != (state.lock_min_mhz, state.lock_max_mhz):
            self.board.set_lock(values.lock_min_mhz, values.lock_max_mhz)
        limit_w = values.limit_w if values.limit_w is not None else self.twin.gpu.limit_default_w
        if limit_w != state.limit_w:
            self.board.set_limit(limit_w)

    def _put_registers(self) -> None:
        if self._registers is None:
            return
        state = self.board.state
        limit_w = state.limit_w if state.limit_w != self.twin.gpu.limit_default_w else None
        self._registers.write(RegisterValues(state.lock_min_mhz, state.lock_max_mhz, limit_w))

    def _wait(self, seconds: float) -> None:
        if self._sleep is not None:
            self._sleep(seconds)


def simulated_twin(profile: str, model: str, *, engine: str = "vllm-0.11", tensor_parallel: int = 1) -> Twin:
    """The twin for a profile name (`h100-sxm`) or file and a model shape's name."""
    from power.model_shape import model_shape
    from power.profile import load_engine, load_profile

    return Twin(load_profile(profile), load_engine(engine), model_shape(model), tensor_parallel)
