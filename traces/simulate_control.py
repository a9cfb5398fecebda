"""The production control loop in virtual time: the real `Controller`, `Actuator` and `Telemetry`, ticked by hand."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from power.actuator import Actuator
from power.client import LocalActuator
from power.controller import Controller, GpuControl, Inputs, Mode
from power.governors import CarbonFollow, GridSignal, Pool, RowDecision, Slo
from power.governors.row_budget import RowObservation
from power.row import RowControl
from power.telemetry import Telemetry
from power.throttle import EngineThrottle
from traces.simulate_policy import RowSettings, SimulationPolicy
from traces.simulate_server import SimulatedServer
from traces.virtual_clock import VirtualClock

LEASE_S = 60.0
_TICK_ERROR_S = 1e-6
_NO_LOAD = RowObservation(0.0, 0.0, 1.0, 1.0)


class SharedRow(RowControl):
    """One row's decision, worked out once each turn from the power of all servers and taken by every controller.

    Decisions reach the controllers `control_delay_s` late. With `capping` off it only counts. Whatever the policy's own
    telemetry, peak and time over budget are those of a meter that reads the mean of every `meter_s`.
    """

    def __init__(self, settings: RowSettings, carbon: CarbonFollow | None = None) -> None:
        super().__init__(
            settings.budget_w,
            settings.rules,
            t2=settings.t2,
            carbon=carbon,
            min_history_s=settings.min_history_s,
            meter_s=settings.meter_s,
        )
        self.settings = settings
        self.over_budget_s = 0.0
        self.peak_share = 0.0
        self.state_s: dict[str, float] = {}
        self._pending: deque[tuple[float, RowDecision]] = deque()
        self._decided: RowDecision | None = None
        self._telemetry = (0.0, 0.0)
        self._judged = (0.0, 0.0)

    def watch(self, time_s: float, energy_j: float, grid: GridSignal | None) -> None:
        """The row's energy counter at a turn of the loop; telemetry and meter read it when their time has come."""
        since_s, before_j = self._judged
        if (seconds := time_s - since_s) >= self.settings.meter_s - _TICK_ERROR_S:
            self._judged = (time_s, energy_j)
            share = (energy_j - before_j) / seconds / self.budget_w
            self.peak_share = max(self.peak_share, share)
            if share >= 1.0:
                self.over_budget_s += seconds
        since_s, before_j = self._telemetry
        if (seconds := time_s - since_s) >= self.settings.telemetry_s - _TICK_ERROR_S:
            self._telemetry = (time_s, energy_j)
            self._look(time_s, (energy_j - before_j) / seconds, seconds, grid)

    def _look(self, time_s: float, power_w: float, seconds: float, grid: GridSignal | None) -> None:
        """A telemetry sample of the whole row."""
        if time_s < self.settings.start_s:
            self.estimator.released(time_s)
        decision = RowControl.decide(self, time_s, power_w, grid)
        self._pending.append((time_s + self.settings.control_delay_s, decision))
        name = decision.state.name
        self.state_s[name] = self.state_s.get(name, 0.0) + seconds

    def decide(self, time_s: float, power_w: float | None, grid: GridSignal | None) -> RowDecision:
        """The decision in force now; what one controller knows of power is not the row's."""
        while self._pending and self._pending[0][0] <= time_s:
            self._decided = self._pending.popleft()[1]
        if self._decided is None or not self.settings.capping:
            return self.policy.decide(_NO_LOAD)
        return self._decided

    def figures(self) -> dict[str, object]:
        return {
            "row_brakes": self.brakes,
            "row_peak_share": self.peak_share,
            "row_over_budget_s": self.over_budget_s,
            "row_t2": self.t2,
            "row_worst_rise": self.estimator.worst_rise,
            "row_state_s": dict(sorted(self.state_s.items())),
        }


class ServerControl:
    """The controller of one server, on the clock of the simulation."""

    def __init__(
        self,
        server: SimulatedServer,
        policy: SimulationPolicy,
        slo: Slo,
        clock: VirtualClock,
        *,
        pool: Pool = Pool.HIGH,
        row: RowControl | None = None,
        grid: Callable[[], GridSignal | None] = lambda: None,
    ) -> None:
        gpu = self._gpu = server.gpu
        self._actuator = Actuator([gpu], None, clock=clock)
        self._port = LocalActuator(self._actuator, holder="simulation", ttl_s=LEASE_S)
        self.telemetry = Telemetry([gpu], lambda sample, foreign: None, clock=clock)
        self.telemetry.tick()
        view, scheduler = server.view, server.scheduler
        self.controller = Controller(
            [GpuControl(gpu.info, policy.make_governor(gpu.twin), pool)],
            self.telemetry,
            Inputs(view.view, lambda: slo, grid),
            self._port,
            mode=Mode.ENFORCE,
            row=row,
            throttle=EngineThrottle(policy.make_throttle(), lambda tokens, _: scheduler.set_token_budget(tokens)),
            clock=clock,
            policy_revision=policy.name,
        )

    def tick(self) -> None:
        self._gpu.update_sensor()
        self.telemetry.tick()
        self.controller.tick()

    def keep_alive(self) -> None:
        """Beat the lease while nothing runs and nothing is decided."""
        if self.controller.leased:
            self._port.heartbeat()

    @property
    def admits_low_priority(self) -> bool:
        return self.controller.admit_low_priority

    def alarms(self) -> Sequence[str]:
        return tuple(self.controller.alarms)
