"""Row power under control: telemetry in, thresholds learnt, the decision of the row's rule out."""

from __future__ import annotations

from collections import deque

from power.governors import (
    CarbonFollow,
    GridSignal,
    RowBudget,
    RowDecision,
    RowMemory,
    RowObservation,
    RowState,
    RowTrim,
)
from power.governors.rise import RiseEstimator

METER_S = 2.0
"""How often POLCA's row manager reads the row's power; breakers and feeders bear an overload for longer."""


class RowMeter:
    """The mean of the power samples of the last `window_s`; with 0 the last sample alone."""

    def __init__(self, window_s: float) -> None:
        if window_s < 0:
            raise ValueError(f"the row's meter needs a window of at least 0 s, got {window_s:g}")
        self.window_s = window_s
        self._samples: deque[tuple[float, float]] = deque()

    def observe(self, time_s: float, power_w: float) -> float:
        """The metered power now, W; times must not decrease."""
        samples = self._samples
        samples.append((time_s, power_w))
        while len(samples) > 1 and samples[0][0] <= time_s - self.window_s + 1e-9:
            samples.popleft()
        return sum(watts for _, watts in samples) / len(samples)


class RowControl:
    """The budget of a set of GPUs. `t2=None` learns the upper threshold from the worst rise measured; `carbon`
    shrinks the budget on a dirty grid. `meter_s`: power is judged by its mean over this time, so that prefills that
    coincide for a fraction of a second are no overload."""

    def __init__(
        self,
        budget_w: float,
        policy: RowBudget | RowTrim,
        *,
        t2: float | None = None,
        carbon: CarbonFollow | None = None,
        min_history_s: float = 3600.0,
        meter_s: float = METER_S,
    ) -> None:
        if budget_w <= 0:
            raise ValueError(f"row budget must be positive, got {budget_w:g} W")
        if t2 is not None and not policy.t1 < t2 < 1:
            raise ValueError(f"t2 must lie between t1={policy.t1:g} and 1, got {t2:g}")
        self.budget_w = budget_w
        self.policy = policy
        self.estimator = RiseEstimator(budget_w, policy.reaction_s, min_history_s=min_history_s)
        self._meter = RowMeter(meter_s)
        self._t2 = t2
        self._carbon = carbon
        self._memory = RowMemory()
        self._in_force: tuple[float, float] = (1.0, 1.0)
        self.brakes = 0

    @property
    def state(self) -> RowState:
        return self._memory.state

    @property
    def t2(self) -> float:
        """The upper threshold in force, as a share of the budget."""
        return self._t2 if self._t2 is not None else self.estimator.t2(self.policy.t1)

    def decide(self, time_s: float, power_w: float | None, grid: GridSignal | None) -> RowDecision:
        if power_w is not None:
            power_w = self._meter.observe(time_s, power_w)
            self.estimator.observe(time_s, power_w)
        budget = self._carbon.budget_w(self.budget_w, grid) if self._carbon is not None else self.budget_w
        before = self._memory.state
        decision = self.policy.decide(RowObservation(time_s, power_w, budget, self.t2, self._memory))
        self._memory = decision.memory
        self.brakes += decision.state is RowState.BRAKE and before is not RowState.BRAKE
        self._note_release(time_s, decision)
        return decision

    def _note_release(self, time_s: float, decision: RowDecision) -> None:
        """Tell the estimator when a ceiling rises: what the row then draws more is not the traffic's doing."""
        high, low = (
            1.0 if fraction is None else fraction for fraction in (decision.high_fraction, decision.low_fraction)
        )
        if high > self._in_force[0] or low > self._in_force[1]:
            self.estimator.released(time_s, self._meter.window_s)
        self._in_force = (high, low)
