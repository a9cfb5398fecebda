"""The gate in front of the engine: rate limits, used-up budgets, and who waits for a better moment."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable

from serving.openai_errors import ApiError, BadRequestError
from serving.openai_requests import GenerationBody
from serving.openai_responses import EnergyUsage
from serving.policy.directives_section import Tenant
from serving.request_log import Finished
from serving.service import Caller
from serving.tenants_budgets import HARD, BudgetBook
from serving.tenants_keys import KeyRing
from serving.tenants_limits import RateLimits, Rates

LOW_PRIORITY = 1
"""From this priority on a request is of low priority (vLLM: higher numbers are served later)."""
LOOK_S = 0.1
MAX_WAIT_S = 600.0
MAX_WAITING = 256
MAX_DEFER_S = 7 * 86_400.0


class TenantGate:
    """`may_run`: whether low-priority work may run now. `better_moment(until_unix_s)`: whether a deferrable request
    should run now rather than later. `enforced`: whether the policy may act."""

    def __init__(
        self,
        budgets: BudgetBook,
        tenant_of: Callable[[str], Tenant | None],
        keys: KeyRing | None,
        *,
        enforced: Callable[[], bool],
        may_run: Callable[[], bool],
        better_moment: Callable[[float], bool],
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._budgets = budgets
        self._tenant_of = tenant_of
        self._keys = keys
        self._enforced = enforced
        self._may_run = may_run
        self._better_moment = better_moment
        self._clock = clock
        self._wall = wall
        self._limits = RateLimits(self._rates_of, clock)
        self.waiting = 0
        self.refused = {"rate": 0, "budget": 0, "waiting": 0}

    async def enter(self, body: GenerationBody, caller: Caller) -> None:
        """Return when the request may run. Raises `ApiError` 429 with when to come again, 400 for a bad deadline."""
        tenant = caller.key_name
        until = deadline_of(body, self._wall())
        tenant_rules = self._tenant_of(tenant) if tenant is not None else None
        if tenant is not None:
            self._check_rate(tenant)
        self._check_budget(tenant, tenant_rules)
        low = (body.priority or 0) >= LOW_PRIORITY or (tenant_rules is not None and tenant_rules.low_priority)
        if until is not None:
            await self._wait(lambda: self._better_moment(until) or self._wall() >= until, until - self._wall())
        elif low:
            await self._wait(self._may_run, MAX_WAIT_S)

    def settled(self, finished: Finished, usage: EnergyUsage | None) -> None:
        """Charge a request's tokens and joules to its tenant's rates."""
        if finished.tenant is not None:
            joules = usage.energy_joules if usage is not None else None
            self._limits.charge(finished.tenant, finished.prompt_tokens + finished.completion_tokens, joules)

    def _rates_of(self, tenant: str) -> Rates:
        """The tightest limit of each kind over the tenant's keys."""
        entries = self._keys.limits(tenant) if self._keys is not None else []
        return Rates(
            min((one.requests_per_minute for one in entries if one.requests_per_minute is not None), default=None),
            min((one.tokens_per_minute for one in entries if one.tokens_per_minute is not None), default=None),
            min((one.joules_per_minute for one in entries if one.joules_per_minute is not None), default=None),
        )

    def _check_rate(self, tenant: str) -> None:
        refusal = self._limits.enter(tenant)
        if refusal is None:
            return
        self.refused["rate"] += 1
        text = f"{tenant!r} may use {refusal.per_minute:g} {refusal.what} a minute"
        raise _too_many(text, "rate_limit_exceeded", refusal.wait_s)

    def _check_budget(self, tenant: str | None, rules: Tenant | None) -> None:
        """Raises `ApiError` 429 where the policy refuses what goes beyond a budget."""
        verdict = self._budgets.verdict(tenant) if tenant is not None else None
        if verdict is None or rules is None or verdict.state != HARD or not self._enforced():
            return
        if rules.on_exceed == "refuse":
            self.refused["budget"] += 1
            text = f"the {verdict.what} budget of {tenant!r} is used up for this day (UTC)"
            raise _too_many(text, f"{verdict.what}_budget_exceeded", verdict.reopens_s)

    async def _wait(self, ready: Callable[[], bool], at_most_s: float) -> None:
        if ready():
            return
        if self.waiting >= MAX_WAITING:
            self.refused["waiting"] += 1
            raise _too_many("too many requests wait for a better moment", "over_capacity", 30.0)
        until_s = self._clock() + at_most_s
        self.waiting += 1
        try:
            while not ready() and self._clock() < until_s:
                await asyncio.sleep(LOOK_S)
        finally:
            self.waiting -= 1


def deadline_of(body: GenerationBody, now_unix_s: float) -> float | None:
    """`deferrable_until` of a body, seconds since 1970. Raises `BadRequestError` for what cannot be honoured."""
    given = (body.model_extra or {}).get("deferrable_until")
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(given):
        raise BadRequestError("deferrable_until is a moment in seconds since 1970 (UTC)", "deferrable_until")
    if given > now_unix_s + MAX_DEFER_S:
        raise BadRequestError("deferrable_until lies more than 7 days ahead", "deferrable_until")
    return float(given)


def _too_many(text: str, code: str, wait_s: float) -> ApiError:
    seconds = max(1, math.ceil(wait_s))
    return ApiError(429, f"{text}; try again in {seconds} s", code=code, headers={"Retry-After": str(seconds)})
