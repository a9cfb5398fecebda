"""What each tenant used on this UTC day, and what its budget says of the next request.

Counted here as requests settle, and taken up from the ledger after a restart. A request whose joules or grams are
unknown is counted apart: a budget is never silently generous. The carbon plane keeps a rolling day of grams of its
own, by which answers grow briefer; both must let a request pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from serving.ledger.reader import Usage
from serving.ledger.rows import DAY_US
from serving.openai_responses import EnergyUsage
from serving.policy.directives_section import Tenant
from serving.request_log import Finished

WITHIN, SOFT, HARD = "within", "soft", "hard"
MAX_TENANTS = 10_000


@dataclass(slots=True)
class DayUse:
    requests: int = 0
    joules: float = 0.0
    grams: float = 0.0
    without_joules: int = 0
    without_grams: int = 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """`share`: of the budget nearest to its end; `what`: carbon or energy. `reopens_s`: seconds to the next UTC day."""

    state: str
    what: str
    share: float
    reopens_s: float


class BudgetBook:
    """Use from the event loop. `tenant_of`: what the policy in force says of a tenant; None: nothing."""

    def __init__(
        self, tenant_of: Callable[[str], Tenant | None], now_us: Callable[[], int] = lambda: time.time_ns() // 1000
    ) -> None:
        self._tenant_of = tenant_of
        self._now_us = now_us
        self._day_us = self._today()
        self._used: dict[str, DayUse] = {}

    @property
    def day_us(self) -> int:
        return self._day_us

    def _today(self) -> int:
        return self._now_us() // DAY_US * DAY_US

    def roll(self) -> None:
        """Begin a new day when one has begun."""
        if self._today() != self._day_us:
            self._day_us = self._today()
            self._used.clear()

    def take_up(self, usages: list[Usage]) -> None:
        """What an earlier process counted today."""
        for usage in usages:
            if usage.day_us == self._day_us:
                self._used[usage.tenant] = DayUse(
                    usage.requests,
                    usage.joules,
                    usage.grams,
                    usage.requests_without_joules,
                    usage.requests_without_grams,
                )

    def settled(self, finished: Finished, usage: EnergyUsage | None) -> None:
        if finished.tenant is None:
            return
        self.roll()
        if finished.tenant not in self._used and len(self._used) >= MAX_TENANTS:
            return
        used = self._used.setdefault(finished.tenant, DayUse())
        used.requests += 1
        joules = usage.energy_joules if usage is not None else None
        grams = usage.operational_grams if usage is not None else None
        if joules is None:
            used.without_joules += 1
        else:
            used.joules += joules
        if usage is None or grams is None:
            used.without_grams += 1
        else:
            used.grams += grams + (usage.embodied_grams or 0.0)

    def used(self, tenant: str) -> DayUse:
        self.roll()
        return self._used.get(tenant, DayUse())

    @property
    def tenants(self) -> list[str]:
        self.roll()
        return sorted(self._used)

    def verdict(self, tenant: str) -> Verdict | None:
        """None for a tenant without a budget."""
        limits = self._tenant_of(tenant)
        if limits is None:
            return None
        used = self.used(tenant)
        shares = []
        if limits.carbon_budget_g_per_day is not None:
            shares.append((used.grams / limits.carbon_budget_g_per_day, "carbon"))
        if limits.energy_budget_j_per_day is not None:
            shares.append((used.joules / limits.energy_budget_j_per_day, "energy"))
        if not shares:
            return None
        share, what = max(shares)
        state = HARD if share >= 1.0 else SOFT if share >= limits.soft_share else WITHIN
        return Verdict(state, what, share, (self._day_us + DAY_US - self._now_us()) / 1e6)
