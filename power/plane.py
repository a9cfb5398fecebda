"""`PowerPlane`: everything a server needs of this package, behind a few calls.

    plane = PowerPlane(devices, shape=shape, governor=..., mode=...)
    plane.start()
    plane.admit(request_id, prompt_tokens)        # arrival
    plane.on_step(record)                         # every engine step; returns seconds to wait on a simulated device
    plane.request_energy(request_id)              # any time
    plane.finish(request_id)                      # the figure for the answer; the settled one follows on_settled
    plane.stop()                                  # devices as they were found

Thread-safe. Nothing here waits for a device: readings come from the telemetry thread.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol, runtime_checkable

from power.actuator import Actuator
from power.attribution import Attributor
from power.audit import AuditRecord
from power.books import EnergySample, Meter, RequestEnergy
from power.client import ActuatorPort, LocalActuator
from power.controller import Controller, GpuControl, Inputs, Mode
from power.device import PowerDevice
from power.engine_view import EngineTracker
from power.governors import DefaultGovernor, EngineView, Governor, GridSignal, Observation, Pool, Slo
from power.idle import IdleBaseline
from power.messages import Actuation, HoldMode
from power.model_shape import ModelShape
from power.periodic import Periodic
from power.plane_status import PlaneStatus, metrics_of
from power.powerd import Peers, PowerDaemon
from power.profile import GpuProfile, load_profile, profile_names
from power.quantities import Clock, Method, root_sum_square, weakest
from power.row import RowControl
from power.simulated import SimulatedDevice
from power.telemetry import RATE_HZ, Telemetry
from power.throttle import EngineThrottle
from power.work import Share, WorkModel, step_work

KEEP_SETTLED = 10_000


class Step(Protocol):
    """One step of the engine, as its step records have it."""

    @property
    def started_s(self) -> float: ...
    @property
    def ended_s(self) -> float: ...
    @property
    def work(self) -> Sequence[Share]: ...


@runtime_checkable
class OwnsProcesses(Protocol):
    """A device that can tell our processes from others'."""

    def own(self, pids: frozenset[int]) -> None: ...


class PowerPlane:
    """Devices, telemetry, attribution and control of one engine. `devices` work on each step together (tensor
    parallel); their energy is added.

    `actuator`: a `PowerdClient`, or `None`: simulated devices then get an actuator in this process, real ones are
    only observed. `pace`: the engine runs at its own speed and is to be slowed as the simulated clock says; `False`
    when the steps' times already come from the twin. `idle_w`: the operator's idle power of all devices together.
    `throttle`: what may lower the engine's token budget.
    `socket_path`: where the actuator in this process listens, so that `gridserve power` reaches it as it reaches
    `powerd`. `on_settled` is called with the final figure of each request, from the telemetry or the engine's thread.
    """

    def __init__(
        self,
        devices: Sequence[PowerDevice],
        *,
        shape: ModelShape,
        governor: Governor | None = None,
        mode: Mode = Mode.OBSERVE,
        actuator: ActuatorPort | None = None,
        slo: Slo | None = None,
        grid: Callable[[], GridSignal | None] = lambda: None,
        pool: Pool = Pool.HIGH,
        row: RowControl | None = None,
        throttle: EngineThrottle | None = None,
        idle_w: float | None = None,
        pace: bool = True,
        clock: Clock = time.monotonic,
        rate_hz: float = RATE_HZ,
        max_running: int = 256,
        max_step_tokens: int = 2048,
        policy_revision: str = "",
        socket_path: Path | None = None,
        on_settled: Callable[[RequestEnergy], None] | None = None,
        on_audit: Callable[[AuditRecord], None] | None = None,
        on_alarm: Callable[[str], None] | None = None,
    ) -> None:
        if not devices:
            raise ValueError("the power plane needs at least one device")
        self.devices = tuple(devices)
        self.slo = slo
        self._clock = clock
        self._pace = pace
        self._lock = threading.Lock()
        self._on_settled = on_settled
        self._tracker = EngineTracker(max_running=max_running, max_step_tokens=max_step_tokens)
        self._simulated = [device for device in devices if isinstance(device, SimulatedDevice)]
        profile, self._notes = _profile_of(devices)
        fallback = _fallback_idle_w(self._simulated)
        self._attributor = Attributor(
            meter_of(devices),
            WorkModel.of(profile, shape),
            IdleBaseline(configured_w=idle_w, fallback_w=fallback),
            model_scale=None if self._notes else 1.0,
        )
        self._settled: OrderedDict[str, RequestEnergy] = OrderedDict()
        self.telemetry = Telemetry(devices, self._on_sample, rate_hz=rate_hz, clock=clock, on_alarm=self._alarm)
        self._local: Actuator | None = None
        self._ticker: Periodic | None = None
        self._daemon: PowerDaemon | None = None
        self._daemon_thread: threading.Thread | None = None
        if actuator is None and len(self._simulated) == len(self.devices):
            self._local = Actuator(devices, None, clock=clock, on_alarm=on_alarm)
            name = governor.name if governor is not None else "default"
            actuator = LocalActuator(self._local, holder=f"governor {name} {policy_revision}".strip())
            if socket_path is not None:
                peers = Peers(frozenset(), frozenset())
                self._daemon = PowerDaemon(self._local, socket_path, peers=peers)
            else:
                self._ticker = Periodic("power-actuator", 0.25, self._local.tick)
        self._port = actuator
        gpus = [GpuControl(device.info, governor or DefaultGovernor(), pool) for device in devices]
        self.controller = Controller(
            gpus,
            self.telemetry,
            Inputs(self._engine_view, lambda: self.slo, grid),
            actuator,
            mode=mode,
            row=row,
            throttle=throttle,
            clock=clock,
            policy_revision=policy_revision,
            on_audit=on_audit,
            on_alarm=on_alarm,
        )

    def start(self) -> None:
        """Begin to sample and, unless only observing, to control."""
        self.telemetry.tick()
        self.telemetry.start()
        if self._ticker is not None:
            self._ticker.start()
        if self._daemon is not None:
            self._daemon_thread = threading.Thread(target=self._daemon.serve, name="power-daemon", daemon=True)
            self._daemon_thread.start()
        self.controller.start()

    def stop(self) -> None:
        """Stop the threads and leave the devices as they were found."""
        self.controller.stop()
        if self._ticker is not None:
            self._ticker.stop()
        if self._daemon is not None and self._daemon_thread is not None:
            self._daemon.stop()
            self._daemon_thread.join(5.0)
        if self._local is not None:
            self._local.close()
        self.telemetry.stop()
        for device in self.devices:
            device.close()

    def admit(self, request_id: str, prompt_tokens: int, time_s: float | None = None) -> None:
        """A request has arrived. From now on it shares the idle power."""
        now = self._clock() if time_s is None else time_s
        with self._lock:
            self._tracker.admit(request_id, prompt_tokens, now)
            self._attributor.admit(request_id, now)
            for device in self._simulated:
                device.expect_work(now)

    def on_step(self, step: Step) -> float:
        """Account a step. Returns how many seconds longer it would have taken at the clock in force: 0.0 on real
        devices, to be waited by the engine on simulated ones."""
        work, started, ended = step.work, step.started_s, step.ended_s
        delay = 0.0
        if self._simulated:
            demand = step_work(work)
            if self._pace:
                factor = max(device.stretch_factor(demand) for device in self._simulated)
                delay = (factor - 1.0) * (ended - started)
                ended += delay
            for device in self._simulated:
                device.on_step(demand, started, ended)
        with self._lock:
            self._attributor.on_step(started, ended, work)
            self._tracker.on_step(started, ended, work)
            settled = self._take_settled()
        self._tell(settled)
        return delay

    @property
    def idle_power_w(self) -> float | None:
        """Idle power of all devices together as attribution has it; None while unknown."""
        with self._lock:
            return self._attributor.idle.power_w

    def stretch_factor(self, step: Step) -> float:
        """How many times as long such a step takes at the clock in force; 1.0 on real devices."""
        demand = step_work(step.work)
        return max((device.stretch_factor(demand) for device in self._simulated), default=1.0)

    def own(self, pids: frozenset[int]) -> None:
        """The engine's processes: what they draw is ours, any other compute process on the board is foreign."""
        for device in self.devices:
            if isinstance(device, OwnsProcesses):
                device.own(pids)

    def set_engine_size(self, max_running: int, max_step_tokens: int) -> None:
        """What the engine has room for, once it has started and knows."""
        with self._lock:
            self._tracker.max_running, self._tracker.max_step_tokens = max_running, max_step_tokens

    def set_queue(self, waiting: int) -> None:
        """How many requests the scheduler has not started yet."""
        with self._lock:
            self._tracker.set_queue(waiting)

    def request_energy(self, request_id: str) -> RequestEnergy | None:
        """The figure so far; `None` for an unknown request. The settled figure once there is one."""
        with self._lock:
            settled = self._settled.get(request_id)
            return settled or self._attributor.request_energy(request_id, self._clock())

    def finish(self, request_id: str, time_s: float | None = None) -> RequestEnergy | None:
        """The request has left. Returns at once: the last tenths of a second are estimated from their work until the
        counter covers them, and `settled` says which it is. The settled figure goes to `on_settled`."""
        now = self._clock() if time_s is None else time_s
        with self._lock:
            preview = self._attributor.request_energy(request_id, now)
            self._attributor.retire(request_id, now)
            self._tracker.finish(request_id, now)
            if self._attributor.resident_requests == 0:
                for device in self._simulated:
                    device.quiet(now)
            settled = self._take_settled()
            result = self._settled.get(request_id, preview)
        self._tell(settled)
        return result

    def observation(self) -> Observation:
        """What the governor of the first device would see now."""
        return self.controller.observation(self.devices[0].info.uuid)

    def hold(
        self, mode: HoldMode, seconds: float | None, pin_mhz: int | None = None, reason: str = ""
    ) -> Sequence[Actuation]:
        """Operator's hold on the in-process actuator; with `powerd`, talk to it (`gridserve power hold`)."""
        if self._local is None:
            raise ValueError("this plane's actuator is powerd; use `gridserve power hold`")
        return self._local.hold(mode, seconds, pin_mhz, reason)

    def panic(self, reason: str = "panic") -> Sequence[Actuation]:
        """Driver defaults everywhere, until `release_hold`."""
        return self.hold(HoldMode.DEFAULTS, None, reason=reason)

    def release_hold(self) -> None:
        if self._local is None:
            raise ValueError("this plane's actuator is powerd; use `gridserve power release`")
        self._local.release_hold()

    def status(self) -> PlaneStatus:
        controller, telemetry = self.controller, self.telemetry
        with self._lock:
            books = replace(self._attributor.books)
            idle_w, idle_source = self._attributor.idle.power_w, self._attributor.idle.source
        return PlaneStatus(
            mode=controller.mode,
            governor=controller.gpus[0].governor.name,
            reasons={gpu.info.uuid: gpu.reason for gpu in controller.gpus},
            asked_mhz={gpu.info.uuid: gpu.asked.sm_clock_mhz for gpu in controller.gpus},
            asked_limit_w={gpu.info.uuid: gpu.asked.power_limit_w for gpu in controller.gpus},
            leased=controller.leased,
            admit_low_priority=controller.admit_low_priority,
            step_tokens=controller.throttle.step_tokens,
            actuator=self._local.status() if self._local is not None else None,
            idle_w=idle_w,
            idle_source=idle_source,
            books=books,
            samples=telemetry.samples,
            lost_samples=telemetry.lost_samples,
            slow_calls=telemetry.slow_calls,
            skipped_samples=telemetry.loop.skipped,
            skipped_turns=controller.loop.skipped,
            stalls=controller.stalls,
            alarms=tuple(controller.alarms),
            notes=self._notes + tuple(note for device in self.devices for note in device.info.notes),
        )

    def metrics(self) -> dict[str, float]:
        """Counters and gauges under their Prometheus names, labels in braces."""
        return metrics_of(self.status(), self.controller.outcomes)

    def _engine_view(self, now_s: float) -> EngineView | None:
        with self._lock:
            return self._tracker.view(now_s)

    def _on_sample(self, sample: EnergySample, foreign: bool) -> None:
        with self._lock:
            self._attributor.on_sample(sample, foreign=foreign)
            settled = self._take_settled()
        self._tell(settled)

    def _take_settled(self) -> list[RequestEnergy]:
        settled = self._attributor.settled()
        for result in settled:
            self._settled[result.request_id] = result
        while len(self._settled) > KEEP_SETTLED:
            self._settled.popitem(last=False)
        return settled

    def _tell(self, settled: list[RequestEnergy]) -> None:
        if self._on_settled is not None:
            for result in settled:
                self._on_settled(result)

    def _alarm(self, text: str) -> None:
        self.controller.alarm(text)


def meter_of(devices: Sequence[PowerDevice]) -> Meter:
    """The sensor of a sum of devices: weakest method, gain errors of equal devices assumed to point one way."""
    infos = [device.info for device in devices]
    sources = {info.source for info in infos}
    if len(sources) > 1:
        raise ValueError(f"devices of one engine must share an energy source, got {', '.join(sorted(sources))}")
    gains = [info.gain_error_percent for info in infos]
    gain = None if None in gains else max(root_sum_square([value]) or 0.0 for value in gains)
    method = weakest(info.method for info in infos) or Method.ESTIMATED
    return Meter(method, infos[0].source, infos[0].scope, gain)


def _profile_of(devices: Sequence[PowerDevice]) -> tuple[GpuProfile, tuple[str, ...]]:
    """The profile that weighs FLOPs against bytes: the twin's own, that of the same product, or the H100's."""
    first = devices[0]
    if isinstance(first, SimulatedDevice):
        return first.twin.gpu, ()
    for name in profile_names():
        profile = load_profile(name)
        if profile.product == first.info.name:
            return profile, ()
    profile = load_profile("h100-sxm")
    return profile, (f"no profile for {first.info.name}: work is weighed as on {profile.product}",)


def _fallback_idle_w(simulated: Sequence[SimulatedDevice]) -> float | None:
    return sum(device.twin.idle_power_w(active=True) for device in simulated) if simulated else None
