"""The row of a simulation: one meter for every policy, and caps that reach the pool they are meant for."""

import pytest

from power.governors import RowState
from traces.simulate import simulate
from traces.simulate_control import SharedRow
from traces.simulate_policy import RowSettings, SimulationPolicy
from traces.simulate_settings import SimulationSettings
from traces.synthesis import synthesize
from traces.synthesis_spec import spec_from


def watched(watts, **options):
    """A row that saw this power, a value for each second."""
    row = SharedRow(RowSettings(budget_w=1000.0, **options))
    energy_j = 0.0
    for second, power_w in enumerate(watts, 1):
        energy_j += power_w
        row.watch(float(second), energy_j, None)
    return row


SPIKE = [700.0] * 9 + [1100.0] + [700.0] * 6
OVERLOAD = [700.0] * 8 + [1100.0] * 4 + [700.0] * 6


@pytest.mark.parametrize("telemetry_s", [1.0, 2.0, 4.0])
def test_peak_and_overload_are_the_meters_whatever_the_policy_reads(telemetry_s):
    spike = watched(SPIKE, telemetry_s=telemetry_s).figures()
    assert (spike["row_peak_share"], spike["row_over_budget_s"]) == (pytest.approx(0.9), 0.0)
    overload = watched(OVERLOAD, telemetry_s=telemetry_s).figures()
    assert (overload["row_peak_share"], overload["row_over_budget_s"]) == (pytest.approx(1.1), 4.0)


def test_one_quick_reading_over_the_budget_is_no_brake():
    assert watched(SPIKE, telemetry_s=1.0).figures()["row_brakes"] == 0
    assert watched(OVERLOAD, telemetry_s=1.0).figures()["row_brakes"] == 1


def test_a_row_that_fills_up_at_the_start_teaches_nothing():
    filling = [100.0 * second for second in range(8)] + [710.0, 700.0] * 20
    learnt = watched(filling, telemetry_s=1.0, min_history_s=10.0).figures()["row_worst_rise"]
    assert learnt > 0.09
    settled = watched(filling, telemetry_s=1.0, min_history_s=10.0, start_s=12.0).figures()["row_worst_rise"]
    assert settled < 0.011


def test_a_decision_comes_into_force_after_its_delay():
    row = watched([700.0] * 4 + [960.0] * 4, telemetry_s=1.0, t2=0.9, control_delay_s=3.0)
    assert row.state >= RowState.T2_LOW
    assert row.decide(5.0, None, None).state is RowState.NORMAL
    assert row.decide(11.0, None, None).state >= RowState.T2_LOW


SPEC = {
    "name": "two classes",
    "seed": 3,
    "duration_s": 60,
    "rate_rps": 24.0,
    "classes": [
        {"task": task, "share": 0.5, "input_tokens": 1500, "output_tokens": 150} for task in ("urgent", "patient")
    ],
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Four servers with 93 % of the power they would draw: not capped, and capped in proportion."""
    settings = SimulationSettings(servers=4, low_priority_servers=2, low_tasks=("patient",), sample_s=2.0)
    workload = synthesize(spec_from(SPEC, tmp_path_factory.mktemp("spec")))

    def run(row):
        return simulate(workload, SimulationPolicy("row", row=row), settings, seed=1).figures

    free = run(RowSettings(budget_w=1e6, capping=False))
    budget_w = 0.93 * free["row_peak_share"] * 1e6
    held = RowSettings(budget_w=budget_w, rule="proportional", t2=0.88, relax_dwell_s=3.0, telemetry_s=0.4)
    return free, run(held), budget_w


def test_proportional_capping_keeps_the_budget_at_low_prioritys_cost(rows):
    free, held, budget_w = rows
    assert free["row_peak_share"] * 1e6 > budget_w
    assert held["row_state_s"]["T2_LOW"] > 10.0
    assert (held["row_brakes"], held["row_over_budget_s"]) == (0, 0.0)
    assert held["row_peak_share"] < 1.0
    low, high = ((held[f"{pool}_p50_e2el_ms"] / free[f"{pool}_p50_e2el_ms"] - 1.0) for pool in ("low", "high"))
    assert low > 0.02
    assert abs(high) < 0.005
