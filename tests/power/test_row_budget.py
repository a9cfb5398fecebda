"""POLCA's thresholds on a set of GPUs: escalation, hysteresis, brake, and T2 from our own telemetry."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from power.governors.rise import CONSERVATIVE_T2, RiseEstimator
from power.governors.row_budget import (
    BASE_FRACTION,
    BRAKE_FRACTION,
    HIGH_FRACTION,
    LOW_FRACTION,
    Pool,
    RowBudget,
    RowMemory,
    RowObservation,
    RowState,
)

BUDGET_W = 10_000.0
ROW = RowBudget(reaction_s=1.0, relax_dwell_s=5.0)


def drive(loads, step_s=0.5, t2=0.89):
    memory, found = RowMemory(), []
    for tick, load in enumerate(loads):
        power = None if load is None else load * BUDGET_W
        decision = ROW.decide(RowObservation(100.0 + tick * step_s, power, BUDGET_W, t2, memory))
        memory = decision.memory
        found.append(decision)
    return found


def states(loads, **options):
    return [decision.state for decision in drive(loads, **options)]


def test_low_priority_first_then_deeper_then_high_priority():
    found = drive([0.5, 0.82, 0.91, 0.91, 0.91, 0.91])
    assert [decision.state for decision in found] == [
        RowState.NORMAL,
        RowState.T1,
        RowState.T2_LOW,
        RowState.T2_LOW,
        RowState.T2_HIGH,
        RowState.T2_HIGH,
    ]
    assert (found[1].fraction(Pool.HIGH), found[1].fraction(Pool.LOW)) == (None, BASE_FRACTION)
    assert (found[2].fraction(Pool.HIGH), found[2].fraction(Pool.LOW)) == (None, LOW_FRACTION)
    assert (found[4].fraction(Pool.HIGH), found[4].fraction(Pool.LOW)) == (HIGH_FRACTION, LOW_FRACTION)
    assert not found[2].admit_low_priority


def test_the_brake_acts_at_once_on_everything():
    found = drive([0.5, 1.01])
    assert found[1].state is RowState.BRAKE
    assert found[1].fraction(Pool.HIGH) == BRAKE_FRACTION


def test_uncapping_waits_for_hysteresis_and_dwell():
    assert states([0.82, 0.79, 0.76, 0.751] + [0.751] * 20)[-1] is RowState.T1
    relaxed = states([0.82] + [0.74] * 20)
    assert relaxed[5] is RowState.T1
    assert relaxed[-1] is RowState.NORMAL


def test_lost_telemetry_keeps_low_priority_capped():
    assert states([0.5, None, None])[-1] is RowState.T1
    assert states([0.91, 0.91, 0.91, 0.91, None])[-1] is RowState.T2_HIGH


@settings(max_examples=200, deadline=None)
@given(st.lists(st.none() | st.floats(0.0, 1.2), min_size=1, max_size=60), st.floats(0.82, 0.98))
def test_uncap_only_below_threshold_minus_hysteresis(loads, t2):
    memory = RowMemory()
    for tick, load in enumerate(loads):
        now = tick * 0.7
        before = memory
        decision = ROW.decide(RowObservation(now, None if load is None else load * BUDGET_W, BUDGET_W, t2, memory))
        memory = decision.memory
        if memory.state < before.state:
            assert load is not None
            assert load < ROW.threshold(before.state, t2) - ROW.hysteresis
            assert now - before.since_s >= ROW.relax_dwell_s
            assert memory.state == before.state - 1
        if load is not None and load >= 1.0:
            assert memory.state is RowState.BRAKE


def test_t2_comes_from_the_worst_rise_within_one_delay():
    estimator = RiseEstimator(BUDGET_W, delay_s=2.0, min_history_s=60.0)
    assert estimator.t2(0.8) == CONSERVATIVE_T2
    for second in range(120):
        estimator.observe(float(second), 5000.0 + 100.0 * math.sin(second))
    quiet = estimator.t2(0.8)
    assert quiet > 0.95
    estimator.observe(120.0, 5000.0)
    estimator.observe(121.0, 6200.0)
    assert estimator.worst_rise == pytest.approx(0.12, abs=0.012)
    assert estimator.t2(0.8) < 0.88
    slow_rise = RiseEstimator(BUDGET_W, delay_s=2.0, min_history_s=60.0)
    for second in range(120):
        slow_rise.observe(float(second), 3000.0 + 20.0 * second)
    assert slow_rise.worst_rise == pytest.approx(0.004)


def test_a_bad_day_is_forgotten_after_the_window():
    estimator = RiseEstimator(BUDGET_W, delay_s=1.0, days=3, min_history_s=60.0)
    estimator.observe(0.0, 1000.0)
    estimator.observe(0.5, 4000.0)
    for day in range(1, 5):
        estimator.observe(day * 86_400.0, 1000.0)
    assert estimator.worst_rise == 0.0
