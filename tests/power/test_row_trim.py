"""Proportional row capping: the low pool gives back the excess over T2, the high pool only when that is not enough."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from power.governors import RowTrim
from power.governors.row_budget import BASE_FRACTION, BRAKE_FRACTION, HIGH_FRACTION, RowMemory, RowObservation, RowState

BUDGET_W = 10_000.0
TRIM = RowTrim(
    reaction_s=1.0, relax_dwell_s=5.0, gain=2.0, release=1.0, band=0.02, floor=0.5, guard=0.5, high_share=0.0
)


def drive(loads, step_s=1.0, t2=0.90, rule=TRIM):
    memory, found = RowMemory(), []
    for tick, load in enumerate(loads):
        power_w = None if load is None else load * BUDGET_W
        decision = rule.decide(RowObservation(100.0 + tick * step_s, power_w, BUDGET_W, t2, memory))
        memory = decision.memory
        found.append(decision)
    return found


def test_nothing_is_capped_below_t2():
    decisions = drive([0.5, 0.82, 0.899])
    assert [(d.state, d.high_fraction, d.low_fraction) for d in decisions] == [(RowState.NORMAL, None, None)] * 3


def test_the_low_pool_gives_back_what_is_above_t2():
    first, second = drive([0.94, 0.91])
    assert (first.state, first.high_fraction) == (RowState.T2_LOW, None)
    assert first.low_fraction == pytest.approx(1.0 - 2.0 * 0.04)
    assert second.low_fraction == pytest.approx(1.0 - 2.0 * 0.04 - 2.0 * 0.01)


def test_close_to_the_budget_the_low_pool_dips_until_the_spike_is_over():
    rule = RowTrim(reaction_s=1.0, gain=1.0, floor=0.5, guard=0.5, high_share=0.0)
    decisions = drive([0.5, 0.96, 0.93, 0.93], rule=rule)
    assert [d.low_fraction for d in decisions] == [None, 0.5, pytest.approx(0.91), pytest.approx(0.88)]
    assert {d.high_fraction for d in decisions} == {None}


def test_the_high_pool_bears_its_share():
    rule = RowTrim(gain=2.0, high_share=0.1)
    (held,) = drive([0.94], rule=rule)
    assert (held.low_fraction, held.high_fraction) == (pytest.approx(0.92), pytest.approx(0.992))


def test_an_action_is_given_time_to_show_before_the_next():
    decisions = drive([0.93, 0.93, 0.93], step_s=0.4)
    assert decisions[1].low_fraction == decisions[0].low_fraction
    assert decisions[2].low_fraction == decisions[0].low_fraction


def test_the_high_pool_is_held_only_with_the_low_pool_at_its_floor():
    decisions = drive([0.99, 0.99, 0.99, 0.99, 0.99])
    held = [d.state for d in decisions].index(RowState.T2_HIGH)
    assert decisions[held - 1].low_fraction == 0.5
    assert decisions[held].high_fraction == HIGH_FRACTION
    assert decisions[-1].state is RowState.T2_HIGH


def test_what_is_free_below_the_band_is_given_back_step_by_step():
    decisions = drive([0.9499, *[0.89] * 6, *[0.83] * 30])
    capped = [1.0 if d.low_fraction is None else d.low_fraction for d in decisions]
    assert capped[:7] == [pytest.approx(0.9, abs=1e-3)] * 7
    raised = [after - before for before, after in itertools.pairwise(capped) if after > before]
    assert raised == [pytest.approx(0.05, abs=1e-3)] * 2
    assert decisions[-1].state is RowState.NORMAL


def test_the_brake_holds_everything_and_is_left_by_way_of_the_held_pools():
    decisions = drive([0.5, 1.0, 1.0, *[0.6] * 40])
    held, braked = decisions[1:3]
    assert (held.state, held.high_fraction, held.low_fraction) == (RowState.T2_HIGH, HIGH_FRACTION, 0.5)
    assert (braked.state, braked.high_fraction) == (RowState.BRAKE, BRAKE_FRACTION)
    assert not braked.admit_low_priority
    left = [d.state for d in decisions[2:]]
    assert left.index(RowState.T2_HIGH) < left.index(RowState.T2_LOW) < left.index(RowState.NORMAL)


def test_lost_telemetry_keeps_low_priority_capped():
    assert drive([0.5, None])[-1].low_fraction == BASE_FRACTION
    assert drive([0.94, None])[-1].low_fraction == pytest.approx(0.92)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.none() | st.floats(0.0, 1.2), min_size=1, max_size=60), st.floats(0.82, 0.98))
def test_ceilings_rise_only_below_t2_and_the_brake_is_never_missed(loads, t2):
    decisions = drive(loads, step_s=0.7, t2=t2)
    ceilings = [
        (d.high_fraction or 1.0, BRAKE_FRACTION if d.state is RowState.BRAKE else d.memory.low_fraction)
        for d in decisions
    ]
    for load, decision, before, after in zip(loads[1:], decisions[1:], ceilings, ceilings[1:]):
        braked = before == (BRAKE_FRACTION, BRAKE_FRACTION)
        if not braked and (after[0] > before[0] or after[1] > before[1]):
            assert load is not None
            assert load < t2
        if load is not None and load >= 1.0:
            assert decision.state >= RowState.T2_HIGH
        assert after[1] >= TRIM.floor or decision.state is RowState.BRAKE


@pytest.mark.parametrize("options", [{"t1": 1.0}, {"gain": 0.0}, {"floor": 0.1}, {"band": 0.9}, {"high_share": 2}])
def test_rules_that_cannot_be_are_refused(options):
    with pytest.raises(ValueError, match=r"needs"):
        RowTrim(**options)
