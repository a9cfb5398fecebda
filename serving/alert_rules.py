"""Alert rules for Prometheus over the catalogue's series. `serving.catalogue_render` writes the file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class AlertRule:
    """`expr` is true while the alert holds; `action`: what the operator does."""

    name: str
    expr: str
    hold: str
    severity: Literal["warning", "critical"]
    summary: str
    action: str


RULES = (
    AlertRule(
        "GridserveEngineDown",
        "gridserve_engine_ready == 0",
        "1m",
        "critical",
        "The engine takes no requests.",
        "See GET /ready on the admin API for the reason and the log for the cause.",
    ),
    AlertRule(
        "GridserveDown",
        'up{job="gridserve"} == 0',
        "1m",
        "critical",
        "The server does not answer scrapes.",
        "Restart it; powerd has restored the clocks when its lease ended.",
    ),
    AlertRule(
        "GridserveControllerStalled",
        "increase(gridserve_power_controller_stalls_total[10m]) > 0",
        "0m",
        "critical",
        "The power control loop stalled; its lease ends if this goes on.",
        "Look for a slow driver call or a blocked grid feed in the log.",
    ),
    AlertRule(
        "GridserveActuationFailing",
        'increase(gridserve_power_actuations_total{outcome=~"failed|refused|ignored"}[5m]) > 0',
        "5m",
        "warning",
        "Clocks or limits are asked for and not taken.",
        "Run `gridserve power status`: it says why and who else changes the device.",
    ),
    AlertRule(
        "GridserveDeviceContested",
        'increase(gridserve_power_actuations_total{outcome="contested"}[15m]) > 0',
        "0m",
        "warning",
        "Another tool changes the clocks that gridserve controls.",
        "Let one of them control the device.",
    ),
    AlertRule(
        "GridserveHoldTooLong",
        "gridserve_controller_hold_active == 1",
        "4h",
        "warning",
        "An operator's hold has been in force for four hours.",
        "Release it, or place it again with a reason and an expiry.",
    ),
    AlertRule(
        "GridserveTelemetryLost",
        "rate(gridserve_power_lost_samples_total[5m]) > 0.1 * rate(gridserve_power_samples_total[5m])",
        "5m",
        "warning",
        "More than a tenth of the power samples are lost; joules are estimated meanwhile.",
        "Check the driver: a board may have fallen off the bus.",
    ),
    AlertRule(
        "GridserveAttributionGap",
        'rate(gridserve_energy_joules_total{phase="unattributed"}[30m]) > ignoring(phase, model_name, method) '
        "group_left() (0.1 * rate(gridserve_energy_counter_joules_total[30m]))",
        "30m",
        "warning",
        "More than a tenth of the joules belong to no request and are not idle.",
        "Look for other processes on the GPU (gridserve_energy_foreign_samples_total).",
    ),
    AlertRule(
        "GridserveEnergyBooksWrong",
        "abs(gridserve_energy_closure_error_joules) > 1",
        "5m",
        "critical",
        "The phases do not add up to what the counter moved.",
        "Report it with the log; figures of joules are not to be trusted.",
    ),
    AlertRule(
        "GridserveCarbonSignalStale",
        "time() - gridserve_carbon_signal_end_timestamp_seconds > 3600",
        "10m",
        "warning",
        "The carbon intensity in use ended over an hour ago.",
        "See GET /api/v1/feeds for what each source said last.",
    ),
    AlertRule(
        "GridserveForecastMissing",
        "time() - gridserve_carbon_forecast_timestamp_seconds > 3 * 3600",
        "30m",
        "warning",
        "The intensity forecast is over three hours old.",
        "Plans fall back on the trailing window; see GET /api/v1/feeds.",
    ),
    AlertRule(
        "GridservePolicyReloadFailed",
        "gridserve_policy_last_reload_successful == 0",
        "10m",
        "warning",
        "The policy file is refused; the last good policy stays in force.",
        "Run `gridserve policy check FILE`.",
    ),
    AlertRule(
        "GridserveSloBurnFast",
        "histogram_quantile(0.99, sum by (le, model_name) "
        "(rate(gridserve_time_to_first_token_seconds_bucket[5m]))) > 2",
        "5m",
        "critical",
        "The 99th percentile of the time to first token is above 2 s.",
        "Place a hold at driver defaults, then look at queue and clocks.",
    ),
    AlertRule(
        "GridserveQueueGrowing",
        "deriv(gridserve_num_requests_waiting[10m]) > 0 and gridserve_num_requests_waiting > 20",
        "10m",
        "warning",
        "The queue grows.",
        "Add capacity, or lower limits of tenants.",
    ),
    AlertRule(
        "GridserveKvCacheNearFull",
        "gridserve_kv_cache_usage_ratio > 0.95",
        "5m",
        "warning",
        "Nearly all KV blocks are used; sequences will be preempted.",
        "Lower --max-num-seqs or give --kv-cache-memory more.",
    ),
    AlertRule(
        "GridservePowerAboveLimit",
        "gridserve_gpu_power_watts > 1.05 * gridserve_gpu_power_limit_watts",
        "1m",
        "warning",
        "A device draws more than its limit.",
        "Check whether the limit was taken: `gridserve power status`.",
    ),
    AlertRule(
        "GridserveEnergyCounterReset",
        "increase(gridserve_energy_counter_resets_total[1h]) > 0",
        "0m",
        "warning",
        "A device's energy counter restarted.",
        "Nothing is lost; a driver reload or a reset of the board is the usual cause.",
    ),
    AlertRule(
        "GridserveBudgetSoft",
        "gridserve_budget_used_ratio > 0.8 and gridserve_budget_used_ratio < 1",
        "0m",
        "warning",
        "A tenant has used over 80 % of its budget of the day.",
        "Tell the tenant, or raise the budget in the policy.",
    ),
    AlertRule(
        "GridserveBudgetHard",
        "gridserve_budget_used_ratio >= 1",
        "0m",
        "warning",
        "A tenant's budget of the day is used up.",
        "What happens now is `on_exceed` in the policy; it reopens at 00:00 UTC.",
    ),
    AlertRule(
        "GridserveLedgerTrouble",
        "gridserve_ledger_ok == 0",
        "5m",
        "critical",
        "The ledger or its telemetry cannot be written, or rows were lost.",
        "Free disk space; rows wait in memory as long as there is room.",
    ),
    AlertRule(
        "GridserveJobFailing",
        "increase(gridserve_job_failures_total[1h]) > 2",
        "0m",
        "warning",
        "A background job fails again and again.",
        "See GET /api/v1/jobs for its last error.",
    ),
)
