"""What the service is doing now: `GET /api/v1/state`, series, jobs and feeds.

The fields of the admin API this dashboard reads; others are ignored. Units stand in names, null is unknown."""

from __future__ import annotations

from msgspec import Struct


class DeviceState(Struct, frozen=True):
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


class EnergyTotals(Struct, frozen=True):
    counter_j: float
    prefill_j: float
    decode_j: float
    request_idle_j: float
    idle_j: float
    unattributed_j: float
    estimated_j: float
    method: str


class PowerState(Struct, frozen=True):
    mode: str
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


class EngineState(Struct, frozen=True):
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


class LatencyState(Struct, frozen=True):
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


class ActivePolicySummary(Struct, frozen=True):
    name: str
    revision: str
    mode: str
    asked_mode: str
    held_back: str | None
    activated_unix_s: float
    actor: str
    alarm: str | None


class Hold(Struct, frozen=True):
    hold_id: str | None
    mode: str
    clock_mhz: int | None
    reason: str
    placed_unix_s: float | None
    placed_by: str | None
    expires_unix_s: float | None
    released_unix_s: float | None = None
    released_by: str | None = None


class Intensity(Struct, frozen=True):
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


class LedgerState(Struct, frozen=True):
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


class Alarm(Struct, frozen=True):
    source: str
    text: str
    since_unix_s: float


class State(Struct, frozen=True):
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


class SeriesInfo(Struct, frozen=True):
    name: str
    unit: str
    is_counter: bool
    help: str


class SeriesList(Struct, frozen=True):
    live_window_s: float
    live_step_s: float
    series: list[SeriesInfo]


class SeriesData(Struct, frozen=True):
    name: str
    unit: str
    source: str
    start_unix_s: list[float]
    mean: list[float | None]
    low: list[float | None] | None
    high: list[float | None] | None


class SeriesAnswer(Struct, frozen=True):
    since_unix_s: float
    until_unix_s: float
    step_s: float
    series: list[SeriesData]


class FeedHealthState(Struct, frozen=True):
    name: str
    last_success_unix_s: float | None
    last_error: str | None
    failures: int
    not_before_unix_s: float | None


class FeedList(Struct, frozen=True):
    zone: str
    feeds: list[FeedHealthState]


class JobState(Struct, frozen=True):
    name: str
    every_s: float
    timeout_s: float
    next_run_unix_s: float | None
    last_success_unix_s: float | None
    last_error: str | None
    runs: int
    failures: int


class JobList(Struct, frozen=True):
    jobs: list[JobState]
