"""Budgets, keys, and who asks."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct, field

Role = Literal["viewer", "operator", "admin"]


class TenantUsage(Struct):
    """Of the UTC day so far (`energy_j`, `grams`, `requests`) and of the rolling window for budgets. `state`: within,
    soft or hard; null without a budget."""

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


class BudgetList(Struct):
    tenants: list[TenantUsage]


class KeyInfo(Struct):
    """A key without its secret. `kind`: inference or admin. Limits null: none."""

    key_id: str
    name: str
    kind: Literal["inference", "admin"]
    scopes: list[str]
    created_unix_s: float | None
    expires_unix_s: float | None
    last_used_unix_s: float | None
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    joules_per_minute: float | None = None


class KeyList(Struct):
    keys: list[KeyInfo]


class KeyBody(Struct, forbid_unknown_fields=True):
    """A key for `name` (the tenant). Scopes: inference, metrics:read, control:read (viewer), control:write (operator),
    admin."""

    name: str
    reason: str
    scopes: list[str] = field(default_factory=lambda: ["inference"])
    expires_in_s: float | None = None
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    joules_per_minute: float | None = None


class NewKey(Struct):
    """`secret` is shown this once."""

    key: KeyInfo
    secret: str


class WhoAmI(Struct):
    name: str
    role: Role
