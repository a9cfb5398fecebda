"""Carbon budgets of tenants: grams in a rolling window, a soft limit that makes answers briefer, a hard one that ends.

Grams of unknown intensity cannot be charged; they are counted apart so that a budget is not silently generous.
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass
from datetime import datetime, timedelta


class BudgetState(enum.StrEnum):
    WITHIN = "within"
    SOFT = "soft"
    HARD = "hard"


class OnHard(enum.StrEnum):
    """What happens beyond the hard limit. REFUSE: 429 until grams leave the window; BRIEFEST: the briefest level
    allowed, whatever its quality."""

    REFUSE = "refuse"
    BRIEFEST = "briefest"


@dataclass(frozen=True, slots=True)
class TenantBudget:
    """`soft_g` and `hard_g` grams a window; None: no such limit. Beyond the soft limit classes keep `soft_share` of
    L0's quality instead of the policy's."""

    hard_g: float | None = None
    soft_g: float | None = None
    window: timedelta = timedelta(days=1)
    soft_share: float = 0.85
    on_hard: OnHard = OnHard.REFUSE

    def __post_init__(self) -> None:
        limits = [limit for limit in (self.soft_g, self.hard_g) if limit is not None]
        if not limits or min(limits) < 0.0:
            raise ValueError("a tenant's carbon budget needs a soft or a hard limit of at least 0 g")
        if self.soft_g is not None and self.hard_g is not None and self.soft_g > self.hard_g:
            raise ValueError(f"the soft limit {self.soft_g:g} g is above the hard limit {self.hard_g:g} g")
        if not 0.0 <= self.soft_share <= 1.0 or self.window <= timedelta(0):
            raise ValueError("soft_share must be between 0 and 1 and the window longer than nothing")


@dataclass(frozen=True, slots=True)
class Verdict:
    """`retry_after_s`: with REFUSE, when enough grams will have left the window for the hard limit to lift."""

    state: BudgetState
    spent_g: float
    retry_after_s: float | None = None


class TenantAccount:
    """Grams a tenant spent, in steps of a sixtieth of the window (so memory is bounded)."""

    STEPS = 60

    def __init__(self, budget: TenantBudget) -> None:
        self.budget = budget
        self.uncharged_requests = 0
        self._step = budget.window / self.STEPS
        self._spent: deque[tuple[datetime, float]] = deque()

    def charge(self, grams: float | None, now: datetime) -> None:
        """Book a request's total; None (unknown) is counted, not guessed."""
        if grams is None:
            self.uncharged_requests += 1
            return
        self._forget(now)
        if self._spent and now - self._spent[-1][0] < self._step:
            began, spent = self._spent[-1]
            self._spent[-1] = (began, spent + grams)
        else:
            self._spent.append((now, grams))

    def verdict(self, now: datetime) -> Verdict:
        self._forget(now)
        spent = sum(grams for _, grams in self._spent)
        budget = self.budget
        if budget.hard_g is not None and spent >= budget.hard_g:
            return Verdict(BudgetState.HARD, spent, self._lifted_after(spent - budget.hard_g, now))
        if budget.soft_g is not None and spent >= budget.soft_g:
            return Verdict(BudgetState.SOFT, spent)
        return Verdict(BudgetState.WITHIN, spent)

    def _forget(self, now: datetime) -> None:
        while self._spent and now - self._spent[0][0] >= self.budget.window + self._step:
            self._spent.popleft()

    def _lifted_after(self, excess: float, now: datetime) -> float:
        left = 0.0
        for began, grams in self._spent:
            left += grams
            if left > excess:
                return max(1.0, (began + self.budget.window + self._step - now).total_seconds())
        return (self.budget.window + self._step).total_seconds()
