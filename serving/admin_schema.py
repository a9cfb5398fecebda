"""Bodies of the admin API: one definition serves the server, the OpenAPI document and clients that check against it.

Units stand in names: `_unix_s` seconds since 1970 (UTC), `_s _j _w _mhz _g _g_per_kwh`. Unknown is null, never 0.
`method` of a figure: measured, estimated or simulated. Errors are problem details (RFC 9457), see `Problem`.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct, field

Role = Literal["viewer", "operator", "admin"]
PolicyMode = Literal["observe", "shadow", "enforce"]
HoldModeText = Literal["defaults", "freeze", "pin"]


class Problem(Struct, omit_defaults=True):
    """`application/problem+json`. `problems`: what is wrong with a policy, one entry a place. `current_revision`: with
    409, the revision now in force."""

    title: str
    status: int
    detail: str
    type: str = "about:blank"
    problems: list[PolicyProblem] | None = None
    current_revision: str | None = None


# State


class DeviceState(Struct):
    """A power device now. `fresh` False: the last reading is too old and the fields are null; `error` says why."""

    uuid: str
    name: str
    method: str
    source: str
    scope: str
    fresh: bool
    error: str | None
    power_w: float | None
    energy_j: float | None
    sm_clock_mhz: float | None
    memory_clock_mhz: float | None
    temperature_c: float | None
    utilisation: float | None
    power_limit_w: float | None
    default_limit_w: float | None
    max_limit_w: float | None
    clocks_min_mhz: int | None
    clocks_max_mhz: int | None
    clock_reasons: list[str] | None
    asked_clock_mhz: int | None
    asked_limit_w: float | None
    capabilities: list[str]
    governor_reason: str
    notes: list[str]


class EnergyTotals(Struct):
    """Joules since the server started; everything the counter moved is in exactly one of the five parts."""

    counter_j: float
    prefill_j: float
    decode_j: float
    request_idle_j: float
    idle_j: float
    unattributed_j: float
    estimated_j: float
    method: str


class PowerState(Struct):
    """`mode`: what the controller does now. `idle_w`: of all devices together. `step_tokens`: the limit on a step's
    tokens that the prefill throttle asks for; null for none."""

    mode: PolicyMode
    governor: str
    leased: bool
    admit_low_priority: bool
    step_tokens: int | None
    idle_w: float | None
    idle_source: str | None
    devices: list[DeviceState]
    totals: EnergyTotals
    actuations: dict[str, int]
    controller_stalls: int
    lost_samples: int
    notes: list[str]


class EngineState(Struct):
    """`token_budget`: most tokens of a step as things are; null until the engine has told."""

    ready: bool
    reason: str | None
    model: str
    device: str
    weight_format: str
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    token_budget: int | None
    running: int | None
    waiting: int | None
    kv_blocks_used: int | None
    kv_blocks_total: int | None
    preemptions: int | None
    sequences_in_flight: int


class LatencyState(Struct):
    """Of requests finished in the last `window_s`; percentiles are null without any."""

    window_s: float
    requests: int
    ttft_p50_s: float | None
    ttft_p95_s: float | None
    ttft_p99_s: float | None
    tpot_p50_s: float | None
    tpot_p99_s: float | None
    slo_ttft_s: float | None
    slo_tpot_s: float | None
    output_tokens_per_s: float | None
    joules_per_token: float | None
    grams_per_1k_tokens: float | None


class ActivePolicySummary(Struct):
    """`mode` may be less than the policy asks for; then `held_back` says why."""

    name: str
    revision: str
    mode: PolicyMode
    asked_mode: PolicyMode
    held_back: str | None
    activated_unix_s: float
    actor: str
    alarm: str | None


class Hold(Struct):
    """`released_unix_s` null: in force until `expires_unix_s`, or until released where that is null."""

    hold_id: str | None
    mode: HoldModeText
    clock_mhz: int | None
    reason: str
    placed_unix_s: float | None
    placed_by: str | None
    expires_unix_s: float | None
    released_unix_s: float | None = None
    released_by: str | None = None


class Intensity(Struct):
    """`tier`: live, stale, zone_mean or unknown; `age_s`: since the value's interval ended."""

    zone: str
    g_per_kwh: float | None
    tier: str
    kind: str | None
    source: str | None
    basis: str | None
    boundary: str | None
    mix: str | None
    start_unix_s: float | None
    end_unix_s: float | None
    age_s: float | None
    reason: str | None
    pue: float


class LedgerState(Struct):
    """`alarm`: null when all is well."""

    location: str
    queued_rows: int
    written_rows: int
    refused_rows: int
    rejected_rows: int
    queued_samples: int
    written_samples: int
    dropped_samples: int
    last_commit_s: float | None
    alarm: str | None


class Alarm(Struct):
    """`since_unix_s`: when it was first seen. `source`: power, policy, ledger, carbon, engine or jobs."""

    source: str
    text: str
    since_unix_s: float


class State(Struct):
    """Everything a status page needs, cheap enough for once a second."""

    version: str
    now_unix_s: float
    started_unix_s: float
    engine: EngineState
    latency: LatencyState
    power: PowerState | None
    intensity: Intensity | None
    policy: ActivePolicySummary | None
    hold: Hold | None
    ledger: LedgerState | None
    alarms: list[Alarm]
    simulated: bool
    """Whether any figure of power comes from a simulated device."""


# Series


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


# Requests and audit


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


# Policy


class PolicyProblem(Struct):
    """`line`, `column` count from 1; `path`: the setting, dotted. `severity`: error or warning."""

    line: int
    column: int
    path: str
    message: str
    severity: str


class EffectiveSettings(Struct):
    """What the policy asks for now; `rules`: for each setting a rule decided, its name."""

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


class PolicyState(Struct):
    """The policy in force. `file_in_force` False: the file is refused and the last good policy stays; see `alarm`.
    `override`: what was changed of the file at start (`gridserve up` replays a bundled intensity)."""

    revision: str
    name: str
    mode: PolicyMode
    asked_mode: PolicyMode
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


class PolicyRevision(Struct, omit_defaults=True):
    """`text` only when one revision is asked for."""

    revision: str
    body_revision: str
    mode: str
    activated_unix_s: float
    actor: str
    reason: str
    text: str | None = None


class PolicyRevisions(Struct):
    """Activations, newest first."""

    revisions: list[PolicyRevision]


class PolicyText(Struct, forbid_unknown_fields=True):
    text: str


class PolicyValidation(Struct):
    """`revision`: the one the text would get; null when it is refused."""

    ok: bool
    revision: str | None
    problems: list[PolicyProblem]


class PolicyDiffBody(Struct, forbid_unknown_fields=True):
    """The policy in force against `text`, or against an earlier `revision`."""

    text: str | None = None
    revision: str | None = None


class PolicyChange(Struct):
    """`old`, `new`: JSON values; "(absent)" for a setting only one policy has."""

    path: str
    old: Any
    new: Any


class PolicyDiff(Struct):
    from_revision: str
    to_revision: str
    changes: list[PolicyChange]


class PolicyEdit(Struct, forbid_unknown_fields=True):
    """`expected_revision`: the one the edit was made on; another in force answers 409."""

    text: str
    expected_revision: str
    reason: str


class PolicyRollback(Struct, forbid_unknown_fields=True):
    revision: str
    expected_revision: str
    reason: str


class Reason(Struct, forbid_unknown_fields=True):
    reason: str


class PolicyReload(Struct):
    ok: bool
    changed: bool
    revision: str
    error: str | None


# What-if


class WhatIfBody(Struct, forbid_unknown_fields=True):
    """Run the recorded requests of the last `window_s` through the simulator under `text` and under the policy in
    force. `gpu`: a power profile, by default the one that serves."""

    text: str
    window_s: float = 3600.0
    gpu: str | None = None


class WhatIfOutcome(Struct):
    """Simulated, always."""

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


class WhatIfAnswer(Struct):
    method: str
    window_s: float
    in_force: WhatIfOutcome
    proposed: WhatIfOutcome
    notes: list[str]


# Holds


class HoldBody(Struct, forbid_unknown_fields=True):
    """`duration_s` is needed but for `defaults`; `clock_mhz` for `pin`."""

    mode: HoldModeText
    reason: str
    duration_s: float | None = None
    clock_mhz: int | None = None


class ActuationResult(Struct):
    device: str
    action: str
    outcome: str
    reason: str
    asked: float | None
    read_back: float | None
    latency_s: float


class HoldAnswer(Struct):
    """`hold` is null after a release."""

    hold: Hold | None
    actuations: list[ActuationResult]


class HoldList(Struct):
    """`active` is what the actuator says; `recorded` what the ledger holds as not released."""

    active: Hold | None
    recorded: list[Hold]


# Carbon


class FeedHealthState(Struct):
    name: str
    last_success_unix_s: float | None
    last_error: str | None
    failures: int
    not_before_unix_s: float | None


class FeedList(Struct):
    zone: str
    feeds: list[FeedHealthState]


class ForecastPoint(Struct):
    """`low_g_per_kwh`, `high_g_per_kwh`: p10 and p90 where the maker gives a band."""

    start_unix_s: float
    end_unix_s: float
    g_per_kwh: float
    low_g_per_kwh: float | None
    high_g_per_kwh: float | None


class ForecastState(Struct):
    """`relative_error`: mean absolute error over the mean on weeks the model had not seen, for our own model."""

    source: str
    made_unix_s: float
    relative_error: float | None
    points: list[ForecastPoint]


class ClassMix(Struct):
    """The mix of one prompt class (`code`) or of a band of it (`code/0`). `quality`: expected, relative to L0's."""

    key: str
    probabilities: dict[str, float]
    saving: float
    quality: float | None
    note: str | None
    cost_method: str | None
    weight: float | None


class PlannedHourState(Struct):
    """What the plan expects of the present hour or one to come: `saving` as a share of L0's grams, at the forecast
    `g_per_kwh`."""

    start_unix_s: float
    g_per_kwh: float
    saving: float


class PlanState(Struct):
    """`saving`: expected share of L0's grams; `static_saving`: of a fixed mix with the same quality. `ahead`: now
    and the coming hours, as far as the forecast goes; empty while nothing is known that could be saved."""

    strategy: str
    made_unix_s: float
    g_per_kwh: float | None
    tier: str
    saving: float | None
    static_saving: float | None
    mixes: list[ClassMix]
    notes: list[str]
    ahead: list[PlannedHourState]


class LevelState(Struct):
    """The text of a directive is the operator's and is not shown to viewers of requests."""

    level_id: str
    text: str | None
    max_tokens: int | None


class QualityEntry(Struct):
    """Quality of a level relative to L0's, with its 90 % interval; `duels`: judged prompts behind it."""

    key: str
    level_id: str
    duels: float
    relative_quality: float | None
    low: float | None
    high: float | None


class EvaluatorRunState(Struct):
    """A finished run of the evaluator, with what it cost itself: answers it had made (`joules`, `grams`) and its judge
    (`judge_*`; `judge_cost` in the currency of the policy's prices). Joules and grams are null where not all are known.
    """

    started_unix_s: float
    finished_unix_s: float
    reason: str
    judge: str
    judged: int
    verdicts: dict[str, str]
    ended_by: str
    generations: int
    joules: float | None
    grams: float | None
    judge_calls: int
    judge_joules: float | None
    judge_grams: float | None
    judge_cost: float
    failures: int
    inconsistent: int
    unreadable: int
    spared: int
    error: str | None = None


class EvaluatorState(Struct):
    """`prompts`: kept for judging, by class. `waiting_for`: why a run that is due does not begin. `runs`: newest
    first."""

    due: bool
    reason: str
    judged_unix_s: float | None
    quality: list[QualityEntry]
    running: bool
    waiting_for: str | None
    prompts: dict[str, int]
    runs: list[EvaluatorRunState]


class CarbonState(Struct):
    """`enforce` False: directives are decided and reported, not given."""

    enforce: bool
    intensity: Intensity
    levels: list[LevelState]
    forecast: ForecastState | None
    plan: PlanState | None
    history: list[ForecastPoint]
    """The last 24 hours as far as a feed tells them."""


# Budgets


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


# Keys and access


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


# Jobs


class JobState(Struct):
    """`last_success_unix_s` null: never yet."""

    name: str
    every_s: float
    timeout_s: float
    next_run_unix_s: float | None
    last_success_unix_s: float | None
    last_error: str | None
    runs: int
    failures: int


class JobList(Struct):
    jobs: list[JobState]
