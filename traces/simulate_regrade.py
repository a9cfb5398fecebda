"""One simulated run under the intensity of another zone: the same joules, other grams."""

from __future__ import annotations

import math
from dataclasses import replace

from msgspec import structs

from carbon.accounting import operational_grams
from traces.record_table import RecordTable
from traces.simulate import SimulationOutcome
from traces.simulate_grid import Grid
from traces.simulate_policy import SimulationPolicy
from traces.simulate_timeline import Timeline


def follows_grid(policy: SimulationPolicy) -> bool:
    """Whether the carbon intensity changes what a policy does, and not only what that costs."""
    planned = policy.directives is not None and policy.directives.kind != "static"
    return planned or policy.carbon_follow is not None


def under_grid(outcome: SimulationOutcome, grid: Grid, pue: float) -> SimulationOutcome:
    """As if the run had been simulated with `grid`: right only for a policy that does not follow the grid."""
    timeline = _timeline(outcome.timeline, grid)
    device = outcome.result.device
    assert device is not None
    device = structs.replace(
        device,
        mean_intensity_g_per_kwh=timeline.mean_g_per_kwh,
        intensity_source=grid.source,
        co2e_g=timeline.grams(pue),
    )
    records = _regraded(RecordTable.of(outcome.result.records), grid, pue)
    return replace(outcome, result=replace(outcome.result, records=records, device=device), timeline=timeline)


def _regraded(table: RecordTable, grid: Grid, pue: float) -> RecordTable:
    grams = table.column("co2e_g").copy()
    for place, (energy_j, last_s) in enumerate(zip(table.column("energy_j"), table.column("last_token_s"))):
        if not (math.isnan(energy_j) or math.isnan(last_s)):
            intensity = grid.g_per_kwh(float(last_s))
            grams[place] = math.nan if intensity is None else operational_grams(float(energy_j), pue, intensity)
    return table.with_column("co2e_g", grams)


def _timeline(timeline: Timeline, grid: Grid) -> Timeline:
    middles = timeline.column("end_s") - timeline.column("seconds") / 2
    found = [grid.g_per_kwh(float(middle)) for middle in middles]
    return timeline.with_column("g_per_kwh", [math.nan if value is None else value for value in found])
