"""Row power under control: telemetry in, thresholds learnt, POLCA's decision out."""

from __future__ import annotations

from power.governors import CarbonFollow, GridSignal, RowBudget, RowDecision, RowMemory, RowObservation, RowState
from power.governors.rise import RiseEstimator


class RowControl:
    """The budget of a set of GPUs. `t2=None` learns the upper threshold from the worst rise measured; `carbon`
    shrinks the budget on a dirty grid."""

    def __init__(
        self,
        budget_w: float,
        policy: RowBudget,
        *,
        t2: float | None = None,
        carbon: CarbonFollow | None = None,
        min_history_s: float = 3600.0,
    ) -> None:
        if budget_w <= 0:
            raise ValueError(f"row budget must be positive, got {budget_w:g} W")
        if t2 is not None and not policy.t1 < t2 < 1:
            raise ValueError(f"t2 must lie between t1={policy.t1:g} and 1, got {t2:g}")
        self.budget_w = budget_w
        self.policy = policy
        self.estimator = RiseEstimator(budget_w, policy.reaction_s, min_history_s=min_history_s)
        self._t2 = t2
        self._carbon = carbon
        self._memory = RowMemory()
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
            self.estimator.observe(time_s, power_w)
        budget = self._carbon.budget_w(self.budget_w, grid) if self._carbon is not None else self.budget_w
        before = self._memory.state
        decision = self.policy.decide(RowObservation(time_s, power_w, budget, self.t2, self._memory))
        self._memory = decision.memory
        self.brakes += decision.state is RowState.BRAKE and before is not RowState.BRAKE
        return decision
