"""`RunResult`: one schema for a live replay and a simulation, a superset of the keys of `vllm bench serve`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
import numpy as np

from traces.metrics import (
    DEFAULT_PERCENTILES,
    FORMULAS,
    METRICS,
    SLO_NAMES,
    busiest_second,
    good_requests,
    latencies_s,
    samples,
    statistics_ms,
)
from traces.record import Outcome, RequestRecord
from traces.record_table import Column, RecordTable

SCHEMA = "gridserve-run/1"
ENERGY_METHODS = ("measured", "estimated", "simulated")

# guidellm's suggested limits by use (its documentation), taken per request: TTFT and mean time per output token.
SLO_PRESETS: Mapping[str, Mapping[str, float]] = {
    "chat": {"ttft": 200.0, "tpot": 50.0},
    "rag": {"ttft": 300.0, "tpot": 100.0},
    "code": {"ttft": 500.0, "tpot": 150.0},
    "content": {"ttft": 600.0, "tpot": 200.0},
}


class DeviceEnergy(msgspec.Struct, frozen=True):
    """Energy of the devices over exactly the measured window, from a counter or the twin; None where not known.

    `method`: measured / estimated / simulated, `source` what it came from. Joules include idling; `idle_j` is the part
    that no request caused, `unattributed_j` what is left between the counter and the sum of requests.
    """

    method: str
    source: str
    energy_j: float
    idle_j: float | None = None
    unattributed_j: float | None = None
    average_power_w: float | None = None
    p50_power_w: float | None = None
    p99_power_w: float | None = None
    peak_power_w: float | None = None
    mean_clock_mhz: float | None = None
    clock_changes: int | None = None
    time_at_clock_s: Mapping[str, float] = msgspec.field(default_factory=dict)
    mean_intensity_g_per_kwh: float | None = None
    intensity_source: str | None = None
    co2e_g: float | None = None

    def __post_init__(self) -> None:
        if self.method not in ENERGY_METHODS:
            raise ValueError(f"energy method must be one of {', '.join(ENERGY_METHODS)}, got {self.method!r}")


class RunInfo(msgspec.Struct, frozen=True):
    """How a run was made. `output_lengths`: forced to the recorded ones, or natural (the server decides).

    `kind` replay is measured by a client; kind simulation is wholly simulated. `policy` and `seed` name one row of a
    comparison. `counts`: rows dropped or clipped on the way in, by reason.
    """

    kind: Literal["replay", "simulation"]
    date: str
    backend: str
    model_id: str
    trace: str
    trace_obtained: str
    output_lengths: Literal["recorded", "natural", "shaped"]
    prompts: str
    endpoint: str | None = None
    steps: tuple[str, ...] = ()
    policy: str | None = None
    gpu: str | None = None
    seed: int | None = None
    measure_from_s: float = 0.0
    counts: Mapping[str, int] = msgspec.field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunResult:
    """A run: how it was made, its requests in order of schedule, and energy where known.

    `duration_s`: from the run's zero to the end of the last request (or to the abort). `slo_ms`: limits for goodput.
    """

    info: RunInfo
    duration_s: float
    records: Sequence[RequestRecord]
    aborted: bool = False
    device: DeviceEnergy | None = None
    slo_ms: Mapping[str, float] = field(default_factory=dict)
    percentiles: Sequence[float] = DEFAULT_PERCENTILES

    def __post_init__(self) -> None:
        if not self.duration_s > 0:
            raise ValueError(f"the duration of a run must be above 0 s, got {self.duration_s}")
        if not 0.0 <= self.info.measure_from_s < self.duration_s:
            raise ValueError(
                f"the warm-up of {self.info.measure_from_s:g} s must end before the run does ({self.duration_s:g} s)"
            )
        if unknown := sorted(set(self.slo_ms) - set(SLO_NAMES)):
            raise ValueError(f"unknown SLO {', '.join(unknown)}; known: {', '.join(SLO_NAMES)} (in ms)")

    @property
    def measured(self) -> RecordTable:
        """Requests scheduled after the warm-up."""
        table, start_s = RecordTable.of(self.records), self.info.measure_from_s
        return table.where(table.column("scheduled_s") >= start_s) if start_s else table

    def summary(self) -> dict[str, Any]:
        """All figures under vllm's keys and ours; a figure that is not known is None and named in `missing`."""
        records = self.measured
        window_s = self.duration_s - self.info.measure_from_s
        outcomes = {outcome: int(records.of_outcome(outcome).sum()) for outcome in Outcome}
        completed = records.where(records.of_outcome(Outcome.COMPLETED))
        input_tokens = _count(completed.column("input_tokens"))
        output_tokens = _count(completed.column("output_tokens"))
        offered_s = max(records.column("scheduled_s").tolist(), default=0.0) - self.info.measure_from_s
        good = good_requests(records, self.slo_ms) if self.slo_ms else None
        sent = int((~np.isnan(records.column("sent_s"))).sum())
        busiest = busiest_second(records)
        cached = _sum_known(completed.column("cached_tokens"))
        figures: dict[str, Any] = {
            "schema": SCHEMA,
            "kind": self.info.kind,
            "date": self.info.date,
            "backend": self.info.backend,
            "model_id": self.info.model_id,
            "num_prompts": len(records),
            "request_rate": len(records) / offered_s if offered_s > 0 else None,
            "burstiness": None,
            "duration": window_s,
            "completed": outcomes[Outcome.COMPLETED],
            "failed": outcomes[Outcome.FAILED],
            "aborted_requests": outcomes[Outcome.ABORTED],
            "dropped_requests": outcomes[Outcome.DROPPED],
            "aborted": self.aborted,
            "total_input_tokens": input_tokens,
            "total_output_tokens": output_tokens,
            "request_throughput": len(completed) / window_s,
            "request_goodput": None if good is None else good / window_s,
            "slo_attainment": None if good is None or not sent else good / sent,
            "slo_ms": dict(self.slo_ms),
            "output_throughput": output_tokens / window_s,
            "total_token_throughput": (input_tokens + output_tokens) / window_s,
            "max_output_tokens_per_s": busiest[0] if busiest else None,
            "max_concurrent_requests": busiest[1] if busiest else None,
            "recorded_output_tokens": _count(completed.column("recorded_output_tokens")),
            "requested_input_tokens": _count(completed.column("requested_input_tokens")),
            "requested_output_tokens": _count(completed.column("requested_output_tokens")),
            "prompt_token_mismatches": _mismatches(completed, "input_tokens"),
            "output_token_mismatches": _mismatches(completed, "output_tokens"),
            "cached_input_tokens": None if cached is None else int(cached),
        }
        measured = samples(records)
        for metric in METRICS:
            figures |= statistics_ms(metric.key, measured[metric.key], self.percentiles)
        figures |= self._energy_figures(completed, output_tokens)
        figures["formulas"] = dict(FORMULAS)
        figures["missing"] = self._missing(figures)
        return figures

    def _energy_figures(self, completed: RecordTable, output_tokens: int) -> dict[str, Any]:
        """Energy per request from the requests' own joules, and over the window from the device."""
        requests_j = _sum_known(completed.column("energy_j"))
        device = self.device
        total_j = device.energy_j if device else None
        levels = [level for level in completed.texts_of("directive") if level is not None]
        return {
            "attributed_energy_j": requests_j,
            "attributed_energy_methods": sorted(way for way in completed.texts_of("energy_method") if way is not None),
            "attributed_j_per_request": _ratio(requests_j, len(completed)),
            "attributed_co2e_g": _sum_known(completed.column("co2e_g")),
            "directives": {level: int(completed.of_text("directive", (level,)).sum()) for level in levels},
            "energy_j": total_j,
            "energy_method": device.method if device else None,
            "energy_source": device.source if device else None,
            "energy_wh": None if total_j is None else total_j / 3600.0,
            "energy_j_per_request": _ratio(total_j, len(completed)),
            "energy_j_per_output_token": _ratio(total_j, output_tokens),
            "energy_delay_product_js": _energy_delay_product(total_j, completed),
            "device": msgspec.to_builtins(device) if device else None,
        }

    def _missing(self, figures: Mapping[str, Any]) -> dict[str, str]:
        """Why figures are None, by key."""
        reasons = {"burstiness": "arrivals follow a trace, not one gamma process"}
        if not self.slo_ms:
            reasons |= dict.fromkeys(("request_goodput", "slo_attainment"), "no SLO was given")
        energy = "the server reported no energy with its answers"
        reasons |= dict.fromkeys(("attributed_energy_j", "attributed_j_per_request", "attributed_co2e_g"), energy)
        reasons["cached_input_tokens"] = "the server reported no cached tokens"
        for key in figures:
            if key.startswith("energy_") or key == "device":
                reasons[key] = "no device was read over the window of the run"
        fallback = "no completed request has this figure"
        return {key: reasons.get(key, fallback) for key, value in figures.items() if value is None}


def _count(values: Column) -> int:
    """Sum of the known ones."""
    return int(np.nansum(values))


def _mismatches(completed: RecordTable, name: str) -> int:
    """Rows whose count is not the requested one, or not known."""
    return int((completed.column(name) != completed.column(f"requested_{name}")).sum())


def _sum_known(values: Column) -> float | None:
    """Sum if every value is known: a sum over some of the requests would look like all of them."""
    return None if not len(values) or np.isnan(values).any() else float(sum(values.tolist()))


def _energy_delay_product(total_j: float | None, completed: RecordTable) -> float | None:
    """Joules of a request times its mean end-to-end latency."""
    known = latencies_s(completed)["e2el"]
    latencies: list[float] = known[~np.isnan(known)].tolist()
    if total_j is None or not latencies:
        return None
    return total_j / len(completed) * (sum(latencies) / len(latencies))


def _ratio(total: float | None, count: int) -> float | None:
    return None if total is None or count == 0 else total / count
