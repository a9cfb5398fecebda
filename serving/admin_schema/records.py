"""What is on record: series, requests, audit."""

from __future__ import annotations

from typing import Any

from msgspec import Struct


class SeriesInfo(Struct):
    name: str
    unit: str
    is_counter: bool
    help: str


class SeriesList(Struct):
    """`live_window_s`: up to this far back points come from memory at `live_step_s`; further back from the ledger."""

    live_window_s: float
    live_step_s: float
    series: list[SeriesInfo]


class SeriesData(Struct):
    """Parallel arrays, at most 2000 points; a gap is null. `low`, `high`: within each point's bucket, null lists for
    points that are single samples. `source`: memory or ledger."""

    name: str
    unit: str
    source: str
    start_unix_s: list[float]
    mean: list[float | None]
    low: list[float | None] | None
    high: list[float | None] | None


class SeriesAnswer(Struct):
    since_unix_s: float
    until_unix_s: float
    step_s: float
    series: list[SeriesData]


class RequestRecord(Struct):
    """One finished request. Texts are there only for tenants that agreed. `energy_method` null: joules unknown.
    `queue_s`: from its arrival until the engine began with it, part of `ttft_s`."""

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


class RequestPage(Struct):
    """Newest first. `next_cursor`: pass it as `cursor` for the page after; null on the last."""

    requests: list[RequestRecord]
    next_cursor: str | None


class AuditRow(Struct):
    """`kind`: decision, actuation, restore, hold, release, policy, access, alarm or evaluation. `asked`, `read_back`,
    `inputs` are JSON values."""

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


class AuditPage(Struct):
    """Newest first. `next_before_seq`: pass it as `before_seq` for the page after; null on the last."""

    rows: list[AuditRow]
    next_before_seq: int | None


class AuditVerification(Struct):
    """`ok` False: `broken_seq` is the first row that does not follow, `problem` says how."""

    ok: bool
    rows: int
    head_seq: int
    head_hash: str
    broken_seq: int | None
    problem: str | None
