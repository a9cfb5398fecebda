"""The power plane at a moment, for status pages and metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from power.books import Books
from power.controller import Mode
from power.messages import Status


@dataclass(frozen=True, slots=True)
class PlaneStatus:
    """`step_tokens`: the limit on a step's tokens that the throttle asks for; `None` for the engine's own budget."""

    mode: Mode
    governor: str
    reasons: dict[str, str]
    asked_mhz: dict[str, int | None]
    asked_limit_w: dict[str, float | None]
    leased: bool
    admit_low_priority: bool
    step_tokens: int | None
    actuator: Status | None
    idle_w: float | None
    idle_source: str | None
    books: Books
    samples: int
    lost_samples: int
    slow_calls: int
    skipped_samples: int
    skipped_turns: int
    stalls: int
    alarms: tuple[str, ...]
    notes: tuple[str, ...]


def metrics_of(status: PlaneStatus, outcomes: Mapping[str, int]) -> dict[str, float]:
    """Counters and gauges under their Prometheus names, labels in braces."""
    books = status.books
    found: dict[str, float] = {
        'gridserve_energy_joules_total{phase="prefill"}': books.prefill_j,
        'gridserve_energy_joules_total{phase="decode"}': books.decode_j,
        'gridserve_energy_joules_total{phase="request_idle"}': books.request_idle_j,
        'gridserve_energy_joules_total{phase="idle"}': books.idle_j,
        'gridserve_energy_joules_total{phase="unattributed"}': books.unattributed_j,
        "gridserve_energy_counter_joules_total": books.counter_j,
        "gridserve_energy_estimated_joules_total": books.estimated_j,
        "gridserve_energy_closure_error_joules": books.closure_error_j,
        "gridserve_energy_counter_resets_total": books.counter_resets,
        "gridserve_energy_gaps_total": books.gaps,
        "gridserve_energy_stuck_total": books.stuck,
        "gridserve_energy_foreign_samples_total": books.foreign_samples,
        "gridserve_energy_dropped_steps_total": books.dropped_steps,
        "gridserve_power_samples_total": status.samples,
        "gridserve_power_lost_samples_total": status.lost_samples,
        "gridserve_power_slow_calls_total": status.slow_calls,
        "gridserve_power_controller_stalls_total": status.stalls,
    }
    for outcome, count in outcomes.items():
        found[f'gridserve_power_actuations_total{{outcome="{outcome}"}}'] = count
    return {name: float(value) for name, value in found.items()}
