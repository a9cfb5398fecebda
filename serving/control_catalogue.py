"""Names, units and labels of every series about power, carbon, policy, tenants, ledger and jobs.

Counters of joules and grams are the truth; a gauge of watts is a convenience. Base units but for g/kWh, which is what
grids are spoken of in, and for the names of DCGM's exporter, whose units are its own.
"""

from __future__ import annotations

from serving.metric_catalogue import MetricSpec

_GPU = ("gpu", "uuid")
GPU_ENERGY = MetricSpec("gridserve_gpu_energy_joules_total", "counter", "The device's own energy counter.", _GPU)
GPU_POWER = MetricSpec("gridserve_gpu_power_watts", "gauge", "Power of a device.", _GPU)
GPU_LIMIT = MetricSpec("gridserve_gpu_power_limit_watts", "gauge", "Power limit in force.", _GPU)
GPU_CLOCK = MetricSpec("gridserve_gpu_sm_clock_hertz", "gauge", "SM clock.", _GPU)
GPU_ASKED_CLOCK = MetricSpec(
    "gridserve_gpu_clock_locked_hertz", "gauge", "SM clock the policy asks for; absent at the driver's default.", _GPU
)
GPU_TEMPERATURE = MetricSpec("gridserve_gpu_temperature_celsius", "gauge", "Temperature of a device.", _GPU)
ENERGY = MetricSpec(
    "gridserve_energy_joules_total",
    "counter",
    "Joules by phase; all phases together are what the counter moved. method: measured, estimated or simulated.",
    ("model_name", "phase", "method"),
)
ENERGY_COUNTER = MetricSpec("gridserve_energy_counter_joules_total", "counter", "Joules the counter moved.")
ENERGY_ESTIMATED = MetricSpec(
    "gridserve_energy_estimated_joules_total", "counter", "Joules bridged by estimates where the counter had gaps."
)
CLOSURE_ERROR = MetricSpec(
    "gridserve_energy_closure_error_joules", "gauge", "Counter minus all phases: rounding, or the books are wrong."
)
COUNTER_RESETS = MetricSpec("gridserve_energy_counter_resets_total", "counter", "Times the energy counter restarted.")
ENERGY_GAPS = MetricSpec("gridserve_energy_gaps_total", "counter", "Gaps in the energy samples.")
FOREIGN_SAMPLES = MetricSpec(
    "gridserve_energy_foreign_samples_total", "counter", "Samples while other processes used a device."
)
POWER_SAMPLES = MetricSpec("gridserve_power_samples_total", "counter", "Samples of all devices.")
POWER_LOST = MetricSpec("gridserve_power_lost_samples_total", "counter", "Samples that a device did not give.")
STALLS = MetricSpec("gridserve_power_controller_stalls_total", "counter", "Times the control loop stalled.")
LEASED = MetricSpec("gridserve_power_leased", "gauge", "1 while the controller holds the actuator's lease.")
ACTUATIONS = MetricSpec("gridserve_power_actuations_total", "counter", "Actions on devices by outcome.", ("outcome",))
CONTROLLER_MODE = MetricSpec("gridserve_controller_mode", "gauge", "1 for what the power controller does.", ("mode",))
HOLD_ACTIVE = MetricSpec("gridserve_controller_hold_active", "gauge", "1 while an operator's hold is in force.")
REQUEST_ENERGY = MetricSpec(
    "gridserve_charged_energy_joules_total",
    "counter",
    "Joules charged to finished requests. Tenants beyond a hundred are (others).",
    ("model_name", "phase", "directive", "tenant"),
)
REQUEST_JOULES = MetricSpec("gridserve_request_energy_joules", "histogram", "Joules of a finished request.")
UNKNOWN_ENERGY = MetricSpec(
    "gridserve_requests_without_energy_total", "counter", "Finished requests whose joules are unknown."
)
CARBON = MetricSpec(
    "gridserve_carbon_emissions_grams_total",
    "counter",
    "Grams of CO2e charged to finished requests, embodied included where it is known.",
    ("zone", "model_name", "directive", "tenant"),
)
DIRECTIVES = MetricSpec(
    "gridserve_directive_requests_total", "counter", "Requests by the directive given and why.", ("directive", "reason")
)
INTENSITY = MetricSpec(
    "gridserve_grid_carbon_intensity_grams_per_kwh",
    "gauge",
    "Carbon intensity in use. kind: average or marginal; tier: live, stale or zone_mean.",
    ("zone", "source", "kind", "tier"),
)
SIGNAL_TIME = MetricSpec(
    "gridserve_carbon_signal_end_timestamp_seconds", "gauge", "End of the interval of the intensity in use.", ("zone",)
)
FORECAST_TIME = MetricSpec(
    "gridserve_carbon_forecast_timestamp_seconds", "gauge", "When the forecast in use was made.", ("zone",)
)
FEED_FAILURES = MetricSpec("gridserve_carbon_feed_failures", "gauge", "Failures of a source in a row.", ("feed",))
POLICY_INFO = MetricSpec("gridserve_policy_info", "gauge", "1 for the policy in force.", ("revision", "name"))
POLICY_MODE = MetricSpec("gridserve_policy_mode", "gauge", "1 for what the policy may do now.", ("mode",))
RELOAD_OK = MetricSpec("gridserve_policy_last_reload_successful", "gauge", "0 while the policy file is refused.")
RELOAD_TIME = MetricSpec(
    "gridserve_policy_last_reload_success_timestamp_seconds", "gauge", "When the policy was last read and found good."
)
BUDGET_USED = MetricSpec(
    "gridserve_budget_used_ratio", "gauge", "Used share of a tenant's budget of the day.", ("tenant", "budget")
)
GATE_WAITING = MetricSpec("gridserve_requests_held_back", "gauge", "Requests that wait for a better moment.")
GATE_REFUSED = MetricSpec(
    "gridserve_tenant_refusals_total", "counter", "Requests refused by rate, budget or a full waiting room.", ("why",)
)
ALARMS = MetricSpec("gridserve_alarms", "gauge", "Alarms an operator is shown.")
LEDGER_QUEUED = MetricSpec("gridserve_ledger_queued_rows", "gauge", "Rows that wait to be written.")
LEDGER_WRITTEN = MetricSpec("gridserve_ledger_written_rows_total", "counter", "Rows written.")
LEDGER_REFUSED = MetricSpec("gridserve_ledger_lost_rows_total", "counter", "Rows that were not taken.")
LEDGER_DROPPED = MetricSpec("gridserve_telemetry_dropped_samples_total", "counter", "Telemetry that was dropped.")
LEDGER_OK = MetricSpec("gridserve_ledger_ok", "gauge", "0 while the ledger or its telemetry is in trouble.")
JOB_SUCCESS = MetricSpec(
    "gridserve_job_last_success_timestamp_seconds", "gauge", "When a background job last succeeded.", ("job",)
)
JOB_FAILURES = MetricSpec("gridserve_job_failures_total", "counter", "Failed runs of a background job.", ("job",))
TRACES_EXPORTED = MetricSpec("gridserve_trace_spans_exported_total", "counter", "Spans a collector has taken.")
TRACES_LOST = MetricSpec(
    "gridserve_trace_spans_lost_total", "counter", "Spans that a collector did not take, or the queue.", ("why",)
)

DCGM_LABELS = ("gpu", "UUID", "modelName", "Hostname")
DCGM_POWER = MetricSpec("DCGM_FI_DEV_POWER_USAGE", "gauge", "Power draw in W.", DCGM_LABELS)
DCGM_ENERGY = MetricSpec(
    "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "counter", "Energy since the counter began, in mJ.", DCGM_LABELS
)

CONTROL = tuple(value for value in list(globals().values()) if isinstance(value, MetricSpec))
