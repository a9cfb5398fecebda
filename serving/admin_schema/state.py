"""The state of the server: engine, latency, power, grid, policy, ledger, alarms."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

PolicyMode = Literal["observe", "shadow", "enforce"]
HoldModeText = Literal["defaults", "freeze", "pin"]


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
