"""Tenants: what each used today, against its budget, and where the day would end at this rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dashboard.schema_access import TenantUsage
from dashboard.views.formats import UNKNOWN, count, duration, grams, joules, share

DAY_S = 86400.0
EARLY_S = 3600.0
"""Before so much of a day has passed, its rate says nothing about its end."""


def used_share(tenant: TenantUsage) -> float | None:
    """Of the budget nearest its limit; None without a budget."""
    pairs = ((tenant.grams, tenant.carbon_budget_g_per_day), (tenant.energy_j, tenant.energy_budget_j_per_day))
    shares = [used / budget for used, budget in pairs if budget]
    return max(shares) if shares else None


def projected_share(tenant: TenantUsage, now_unix_s: float) -> float | None:
    """Of the budget at the end of the UTC day, if it goes on as so far."""
    used = used_share(tenant)
    elapsed = now_unix_s - tenant.day_unix_s
    return None if used is None or elapsed < EARLY_S else used * DAY_S / min(elapsed, DAY_S)


def known(total: float, requests: int, without: int) -> float | None:
    """A sum over requests none of which is known is unknown, not zero."""
    return None if requests and without >= requests else total


def rows(tenants: Sequence[TenantUsage], now_unix_s: float) -> list[dict[str, Any]]:
    return [_row(tenant, now_unix_s) for tenant in tenants]


def _row(tenant: TenantUsage, now_unix_s: float) -> dict[str, Any]:
    return {
        "Tenant": tenant.tenant,
        "Requests": count(tenant.requests),
        "Energy": joules(known(tenant.energy_j, tenant.requests, tenant.requests_without_energy)),
        "CO2e": grams(known(tenant.grams, tenant.requests, tenant.requests_without_grams)),
        "Budget": budget(tenant),
        "Used": used_share(tenant),
        "At this rate by midnight": share(projected_share(tenant, now_unix_s)),
        "State": tenant.state or "no budget",
        "When exceeded": tenant.on_exceed or UNKNOWN,
        "Not counted": unknowns(tenant),
        "Retry after": UNKNOWN if tenant.retry_after_s is None else duration(tenant.retry_after_s),
    }


def budget(tenant: TenantUsage) -> str:
    parts = []
    if tenant.carbon_budget_g_per_day is not None:
        parts.append(f"{grams(tenant.carbon_budget_g_per_day)} a day")
    if tenant.energy_budget_j_per_day is not None:
        parts.append(f"{joules(tenant.energy_budget_j_per_day)} a day")
    return ", ".join(parts) or "none"


def unknowns(tenant: TenantUsage) -> str:
    """Requests whose joules or grams are unknown and so not in the sums."""
    parts = []
    if tenant.requests_without_energy:
        parts.append(f"{tenant.requests_without_energy} without joules")
    if tenant.requests_without_grams:
        parts.append(f"{tenant.requests_without_grams} without grams")
    return ", ".join(parts) or "all counted"
