"""What was recorded: requests and the audit trail.

The fields of the admin API this dashboard reads; others are ignored. Units stand in names, null is unknown."""

from __future__ import annotations

from typing import Any

from msgspec import Struct


class RequestRecord(Struct, frozen=True):
    request_id: str
    arrived_unix_s: float
    finished_unix_s: float | None
    tenant: str | None
    model: str
    endpoint: str | None
    task_class: str | None
    directive: str | None
    directive_reason: str | None
    policy_revision: str | None
    policy_mode: str | None
    priority: int | None
    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int | None
    choices: int | None
    queue_s: float | None
    ttft_s: float | None
    tpot_s: float | None
    e2e_s: float | None
    energy_j: float | None
    prefill_j: float | None
    decode_j: float | None
    idle_j: float | None
    energy_method: str | None
    energy_source: str | None
    energy_uncertainty_percent: float | None
    operational_g: float | None
    embodied_g: float | None
    intensity_g_per_kwh: float | None
    intensity_source: str | None
    intensity_kind: str | None
    intensity_tier: str | None
    zone: str | None
    finish_reason: str | None
    status: int | None


class RequestPage(Struct, frozen=True):
    requests: list[RequestRecord]
    next_cursor: str | None


class AuditRow(Struct, frozen=True):
    seq: int
    at_unix_s: float
    kind: str
    actor: str
    policy_revision: str | None
    policy_mode: str | None
    rule: str | None
    device: str | None
    asked: Any
    read_back: Any
    result: str | None
    latency_s: float | None
    inputs: Any
    slo_violated: bool | None
    reason: str | None
    hash: str


class AuditPage(Struct, frozen=True):
    rows: list[AuditRow]
    next_before_seq: int | None


class AuditVerification(Struct, frozen=True):
    ok: bool
    rows: int
    head_seq: int
    head_hash: str
    broken_seq: int | None
    problem: str | None
