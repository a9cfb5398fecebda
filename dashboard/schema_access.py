"""Tenants, keys and who is asking.

The fields of the admin API this dashboard reads; others are ignored. Units stand in names, null is unknown."""

from __future__ import annotations

from msgspec import Struct


class TenantUsage(Struct, frozen=True):
    tenant: str
    day_unix_s: float
    requests: int
    energy_j: float
    grams: float
    requests_without_energy: int
    requests_without_grams: int
    carbon_budget_g_per_day: float | None
    energy_budget_j_per_day: float | None
    soft_share: float | None
    on_exceed: str | None
    state: str | None
    retry_after_s: float | None


class BudgetList(Struct, frozen=True):
    tenants: list[TenantUsage]


class KeyInfo(Struct, frozen=True):
    key_id: str
    name: str
    kind: str
    scopes: list[str]
    created_unix_s: float | None
    expires_unix_s: float | None
    last_used_unix_s: float | None
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    joules_per_minute: float | None = None


class KeyList(Struct, frozen=True):
    keys: list[KeyInfo]


class NewKey(Struct, frozen=True):
    key: KeyInfo
    secret: str


class WhoAmI(Struct, frozen=True):
    name: str
    role: str
