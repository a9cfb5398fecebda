"""The control loop: observe, decide, act, read back, write down. Its own thread; it never holds up serving.

Modes: `observe` reads only; `shadow` decides and records what it would do; `enforce` does it, under a lease. When
the loop stops beating, for whatever reason, the actuator's lease ends and the devices are as they were found.
"""

from __future__ import annotations

import enum
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from power.actuator import LeaseError
from power.audit import AuditRecord, inputs_of
from power.client import ActuatorPort, ActuatorUnavailableError
from power.device import DeviceInfo
from power.governors import (
    DRIVER_DEFAULT,
    Decision,
    EngineView,
    Governor,
    GridSignal,
    Memory,
    Observation,
    Pool,
    RowState,
    Setpoint,
    Slo,
)
from power.governors.stability import snap_down
from power.messages import Actuation, HoldMode
from power.periodic import Periodic
from power.quantities import Clock
from power.row import RowControl
from power.telemetry import Telemetry
from power.throttle import EngineThrottle

PERIOD_S = 0.2
RETRY_S = 1.0
WATCHDOG_S = 3.0


class Mode(enum.StrEnum):
    OBSERVE = "observe"
    SHADOW = "shadow"
    ENFORCE = "enforce"


@dataclass(slots=True)
class GpuControl:
    """One device under the controller: its governor, pool, and what was last asked of it."""

    info: DeviceInfo
    governor: Governor
    pool: Pool = Pool.HIGH
    asked: Setpoint = DRIVER_DEFAULT
    since_s: float = float("-inf")
    memory: Memory = field(default_factory=Memory)
    reason: str = ""
    retry_s: float = float("-inf")
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Inputs:
    """Where the controller gets what it does not measure itself; each may answer `None`."""

    engine: Callable[[float], EngineView | None]
    slo: Callable[[], Slo | None]
    grid: Callable[[], GridSignal | None] = lambda: None


class Controller:
    """`tick` once by hand (virtual time) or `start` the thread. `on_audit` gets every record."""

    def __init__(
        self,
        gpus: Sequence[GpuControl],
        telemetry: Telemetry,
        inputs: Inputs,
        actuator: ActuatorPort | None,
        *,
        mode: Mode = Mode.OBSERVE,
        row: RowControl | None = None,
        throttle: EngineThrottle | None = None,
        clock: Clock = time.monotonic,
        period_s: float = PERIOD_S,
        policy_revision: str = "",
        on_audit: Callable[[AuditRecord], None] | None = None,
        on_alarm: Callable[[str], None] | None = None,
    ) -> None:
        if mode is Mode.ENFORCE and actuator is None:
            raise ValueError("enforce needs an actuator: start powerd, or use observe or shadow")
        self.gpus = tuple(gpus)
        self.mode = mode
        self.policy_revision = policy_revision
        self.row = row
        self.throttle = throttle or EngineThrottle()
        self.records: deque[AuditRecord] = deque(maxlen=1000)
        self.outcomes: Counter[str] = Counter()
        self.alarms: deque[str] = deque(maxlen=50)
        self.stalls = 0
        self.leased = False
        self.admit_low_priority = True
        self._telemetry = telemetry
        self._inputs = inputs
        self._actuator = actuator
        self._clock = clock
        self._on_audit = on_audit
        self._on_alarm = on_alarm
        self._next_acquire_s = float("-inf")
        self._next_reconcile_s = float("-inf")
        self._lock = threading.Lock()
        self.loop = Periodic("power-controller", period_s, self.tick, self.alarm)
        self._watchdog = Periodic("power-watchdog", 1.0, self._watch, self.alarm)
        self._stalled = False
        self._held = False

    def start(self) -> None:
        self.loop.start()
        self._watchdog.start()

    def stop(self) -> None:
        """End the loop and the lease; devices and the engine's budget are restored."""
        self.loop.stop()
        self._watchdog.stop()
        with self._lock:
            self.throttle.forget()
            self._drop_lease()

    def set_mode(self, mode: Mode) -> None:
        """Change between observe, shadow and enforce at run time; leaving enforce restores the devices."""
        if mode is Mode.ENFORCE and self._actuator is None:
            raise ValueError("enforce needs an actuator: start powerd, or use observe or shadow")
        with self._lock:
            if self.mode is Mode.ENFORCE and mode is not Mode.ENFORCE:
                self._drop_lease()
            self.throttle.forget()
            self.mode = mode
            self._forget()

    def set_governor(self, governor: Governor, policy_revision: str, uuid: str | None = None) -> None:
        """Swap the governor of one device or of all; what is asked stays until the new one decides."""
        with self._lock:
            for gpu in self.gpus:
                if uuid in (None, gpu.info.uuid):
                    gpu.governor, gpu.memory = governor, Memory()
            self.policy_revision = policy_revision

    def set_pools(self, low_priority: Collection[str]) -> None:
        """The UUIDs of the row's low-priority devices; those of other servers in the row mean nothing here."""
        with self._lock:
            for gpu in self.gpus:
                gpu.pool = Pool.LOW if gpu.info.uuid in low_priority else Pool.HIGH

    def tick(self) -> None:
        """One turn of the loop."""
        with self._lock:
            now = self._clock()
            if self.mode is Mode.OBSERVE:
                return
            if self.mode is Mode.ENFORCE:
                self._keep_lease(now)
            ceilings = self._row_ceilings(now)
            engine, slo, grid = self._inputs.engine(now), self._inputs.slo(), self._inputs.grid()
            for gpu in self.gpus:
                observation = self._observe(gpu, now, engine, slo, grid, ceilings.get(gpu.info.uuid))
                decision = self._decide(gpu, observation)
                gpu.memory, gpu.reason = decision.memory, decision.reason
                self.admit_low_priority &= decision.setpoint.admit_low_priority
                if decision.setpoint != gpu.asked and now >= gpu.retry_s:
                    self._act(gpu, observation, decision, now)
            self._hold_back(now, engine, slo, grid)

    def observation(self, uuid: str) -> Observation:
        """What the governor of a device would see now."""
        with self._lock:
            now = self._clock()
            gpu = next(gpu for gpu in self.gpus if gpu.info.uuid == uuid)
            return self._observe(gpu, now, self._inputs.engine(now), self._inputs.slo(), self._inputs.grid(), None)

    def alarm(self, text: str) -> None:
        self.alarms.append(text)
        if self._on_alarm is not None:
            self._on_alarm(text)

    def _observe(
        self,
        gpu: GpuControl,
        now: float,
        engine: EngineView | None,
        slo: Slo | None,
        grid: GridSignal | None,
        ceiling_mhz: int | None,
    ) -> Observation:
        return Observation(
            time_s=now,
            clocks_mhz=gpu.info.clocks_mhz,
            limits=gpu.info.limits,
            current=gpu.asked,
            since_s=gpu.since_s,
            reading=self._telemetry.latest(gpu.info.uuid),
            engine=engine,
            slo=slo,
            grid=grid,
            clock_ceiling_mhz=ceiling_mhz,
            memory=gpu.memory,
        )

    def _decide(self, gpu: GpuControl, observation: Observation) -> Decision:
        if observation.reading is None:
            kept = Setpoint(None, gpu.asked.power_limit_w)
            return Decision(kept, "telemetry lost: clocks released, cap kept", gpu.memory)
        try:
            return gpu.governor.decide(observation)
        except (ValueError, ArithmeticError, LookupError) as error:
            text = f"governor {gpu.governor.name} failed: {error}"
            if not self.alarms or self.alarms[-1] != text:
                self.alarm(text)
            kept = Setpoint(None, gpu.asked.power_limit_w)
            return Decision(kept, f"driver default: governor failed ({error})", Memory())

    def _act(self, gpu: GpuControl, observation: Observation, decision: Decision, now: float) -> None:
        wanted = decision.setpoint
        if self.mode is Mode.SHADOW or self._actuator is None:
            self._record(gpu, observation, decision.reason, "setpoint", wanted.sm_clock_mhz, None, "shadow", 0.0)
            gpu.asked, gpu.since_s = wanted, now
            return
        if not self.leased:
            return
        actuations = self._apply(gpu, wanted)
        refused = [actuation for actuation in actuations if not actuation.outcome.took_effect]
        if not refused or refused[0].reason != gpu.refused:
            for actuation in actuations:
                reason = f"{decision.reason}; {actuation.reason}" if actuation.reason else decision.reason
                action, outcome = actuation.action, actuation.outcome.value
                asked, read_back, latency_s = actuation.asked, actuation.read_back, actuation.latency_s
                self._record(gpu, observation, reason, action, asked, read_back, outcome, latency_s)
        if refused or not self.leased:
            gpu.retry_s = now + RETRY_S
            gpu.refused = refused[0].reason if refused else ""
            return
        gpu.refused = ""
        if wanted.sm_clock_mhz != gpu.asked.sm_clock_mhz:
            gpu.since_s = now
        gpu.asked = wanted

    def _hold_back(self, now: float, engine: EngineView | None, slo: Slo | None, grid: GridSignal | None) -> None:
        """Fewer prompt tokens a step where the clocks, as they now are, were not enough."""
        throttle, enforced = self.throttle, self.mode is Mode.ENFORCE
        if throttle.policy is None and throttle.step_tokens is None:
            return
        braking = self.row is not None and self.row.state is RowState.BRAKE
        observations = [self._observe(gpu, now, engine, slo, grid, None) for gpu in self.gpus]
        suspended = "an operator holds the driver's defaults" if self._held else None
        change = throttle.decide(now, observations, engine, braking=braking, suspended=suspended)
        if enforced:
            throttle.enforce(now)
        if change is not None:
            gpu, outcome = self.gpus[change.pressed], "applied" if enforced else "shadow"
            seen = observations[change.pressed]
            self._record(gpu, seen, change.reason, "step_tokens", change.tokens, None, outcome, 0.0, "prefill_throttle")

    def _apply(self, gpu: GpuControl, wanted: Setpoint) -> list[Actuation]:
        """Limit first when it tightens; clocks as a range from the lowest, so that the board may still idle low."""
        port, uuid, done = self._actuator, gpu.info.uuid, list[Actuation]()
        assert port is not None
        try:
            if wanted.power_limit_w != gpu.asked.power_limit_w:
                limit = wanted.power_limit_w
                done.append(port.reset_power_limit(uuid) if limit is None else port.set_power_limit(uuid, limit))
            if wanted.sm_clock_mhz != gpu.asked.sm_clock_mhz:
                clock = wanted.sm_clock_mhz
                lowest = gpu.info.clocks_mhz[0] if gpu.info.clocks_mhz else 0
                done.append(port.reset_clocks(uuid) if clock is None else port.lock_clocks(uuid, lowest, clock))
        except (LeaseError, ActuatorUnavailableError, ValueError) as error:
            self.alarm(f"actuator: {error}")
            self._lose_lease()
        return done

    def _record(
        self,
        gpu: GpuControl,
        observation: Observation,
        reason: str,
        action: str,
        asked: float | None,
        read_back: float | None,
        outcome: str,
        latency_s: float,
        governor: str | None = None,
    ) -> None:
        record = AuditRecord(
            time_s=observation.time_s,
            unix_s=time.time(),
            uuid=gpu.info.uuid,
            governor=governor or gpu.governor.name,
            mode=self.mode.value,
            action=action,
            asked=asked,
            read_back=read_back,
            outcome=outcome,
            latency_s=latency_s,
            reason=reason,
            policy_revision=self.policy_revision,
            inputs=inputs_of(observation),
        )
        self.records.append(record)
        self.outcomes[outcome] += 1
        if self._on_audit is not None:
            self._on_audit(record)

    def _row_ceilings(self, now: float) -> dict[str, int]:
        """Clock ceilings from the row budget, for each device."""
        self.admit_low_priority = True
        if self.row is None:
            return {}
        readings = [self._telemetry.latest(gpu.info.uuid) for gpu in self.gpus]
        watts = [reading.power_w if reading is not None else None for reading in readings]
        known = [value for value in watts if value is not None]
        decision = self.row.decide(now, sum(known) if len(known) == len(watts) else None, self._inputs.grid())
        self.admit_low_priority = decision.admit_low_priority
        ceilings = {}
        for gpu in self.gpus:
            fraction = decision.fraction(gpu.pool)
            if fraction is not None and gpu.info.clocks_mhz:
                ceilings[gpu.info.uuid] = snap_down(gpu.info.clocks_mhz, fraction * gpu.info.clocks_mhz[-1])
        return ceilings

    def _keep_lease(self, now: float) -> None:
        port = self._actuator
        assert port is not None
        try:
            if self.leased:
                port.heartbeat()
                if now >= self._next_reconcile_s:
                    self._next_reconcile_s = now + RETRY_S
                    self._reconcile(port)
            elif now >= self._next_acquire_s:
                self._next_acquire_s = now + RETRY_S
                port.acquire()
                self.leased = True
                self._forget()
        except (LeaseError, ActuatorUnavailableError, ValueError) as error:
            if self.leased or not self.alarms or self.alarms[-1] != f"actuator: {error}":
                self.alarm(f"actuator: {error}")
            self._lose_lease()

    def _reconcile(self, port: ActuatorPort) -> None:
        """Holds and contests change devices behind the controller's back: believe the actuator."""
        status = port.status()
        self._held = status.hold is not None and status.hold.mode is HoldMode.DEFAULTS
        known = {device.uuid: device for device in status.devices}
        for gpu in self.gpus:
            device = known.get(gpu.info.uuid)
            if device is None:
                continue
            clock = device.locked_mhz[1] if device.locked_mhz is not None else None
            gpu.asked = replace(gpu.asked, sm_clock_mhz=clock, power_limit_w=device.limit_w)

    def _lose_lease(self) -> None:
        self.leased = False
        self._forget()

    def _drop_lease(self) -> None:
        if self.leased and self._actuator is not None:
            try:
                self._actuator.release()
            except (LeaseError, ActuatorUnavailableError, ValueError) as error:
                self.alarm(f"actuator: {error}")
        self._lose_lease()

    def _forget(self) -> None:
        """The devices are at the driver's default again."""
        for gpu in self.gpus:
            gpu.asked, gpu.since_s, gpu.retry_s, gpu.refused = DRIVER_DEFAULT, float("-inf"), float("-inf"), ""

    def _watch(self) -> None:
        """Count and tell a stalled loop; its missing heartbeats restore the devices."""
        running = self.loop.running_for_s
        stalled = running is not None and running > WATCHDOG_S
        if stalled and not self._stalled:
            self.stalls += 1
            self.alarm(f"controller has been busy for {running:.1f} s; its lease will end if this goes on")
        self._stalled = stalled
