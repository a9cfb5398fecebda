"""Policies, what-if and holds.

The fields of the admin API this dashboard reads; others are ignored. Units stand in names, null is unknown."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from dashboard.schema_state import Hold


class PolicyProblem(Struct, frozen=True):
    line: int
    column: int
    path: str
    message: str
    severity: str


class EffectiveSettings(Struct, frozen=True):
    governor: str
    clock_min_mhz: int | None
    clock_max_mhz: int | None
    power_limit_w: float | None
    row_budget_w: float | None
    admit_low_priority: bool
    band: str
    directive: str
    quality_floor: float | None
    tolerance: float | None
    rules: dict[str, str]


class PolicyState(Struct, frozen=True):
    revision: str
    name: str
    mode: str
    asked_mode: str
    held_back: str | None
    text: str
    path: str
    managed: bool
    activated_unix_s: float
    actor: str
    warnings: list[PolicyProblem]
    file_in_force: bool
    alarm: str | None
    effective: EffectiveSettings
    override: str | None


class PolicyRevision(Struct, frozen=True):
    revision: str
    body_revision: str
    mode: str
    activated_unix_s: float
    actor: str
    reason: str
    text: str | None = None


class PolicyRevisions(Struct, frozen=True):
    revisions: list[PolicyRevision]


class PolicyValidation(Struct, frozen=True):
    ok: bool
    revision: str | None
    problems: list[PolicyProblem]


class PolicyChange(Struct, frozen=True):
    path: str
    old: Any
    new: Any


class PolicyDiff(Struct, frozen=True):
    from_revision: str
    to_revision: str
    changes: list[PolicyChange]


class WhatIfOutcome(Struct, frozen=True):
    revision: str
    requests: int
    energy_j: float | None
    grams: float | None
    mean_power_w: float | None
    ttft_p50_s: float | None
    ttft_p99_s: float | None
    tpot_p50_s: float | None
    tpot_p99_s: float | None
    actuations: int | None


class WhatIfAnswer(Struct, frozen=True):
    method: str
    window_s: float
    in_force: WhatIfOutcome
    proposed: WhatIfOutcome
    notes: list[str]


class ActuationResult(Struct, frozen=True):
    device: str
    action: str
    outcome: str
    reason: str
    asked: float | None
    read_back: float | None
    latency_s: float


class HoldAnswer(Struct, frozen=True):
    hold: Hold | None
    actuations: list[ActuationResult]


class HoldList(Struct, frozen=True):
    active: Hold | None
    recorded: list[Hold]
