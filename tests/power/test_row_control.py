"""The row's control: a meter that bears coinciding prefills, and a T2 learnt from the traffic's rises alone."""

import pytest

from power.governors import RowBudget, RowState, RowTrim
from power.governors.rise import RiseEstimator
from power.row import RowControl, RowMeter


def test_the_meter_is_the_mean_of_its_window():
    meter = RowMeter(2.0)
    assert [meter.observe(float(t), watts) for t, watts in enumerate([10.0, 20.0, 40.0, 40.0])] == [
        10.0,
        15.0,
        30.0,
        40.0,
    ]
    alone = RowMeter(0.0)
    assert [alone.observe(t * 0.1, watts) for t, watts in enumerate([10.0, 20.0])] == [10.0, 20.0]
    with pytest.raises(ValueError, match="at least 0 s"):
        RowMeter(-1.0)


def test_an_overload_shorter_than_the_meter_does_not_brake_and_a_longer_one_does():
    def row():
        control = RowControl(1000.0, RowBudget(), t2=0.95, meter_s=2.0)
        for tick in range(20):
            control.decide(tick * 0.2, 700.0, None)
        return control

    short = row()
    for tick in range(20, 25):
        short.decide(tick * 0.2, 1200.0, None)
    for tick in range(25, 40):
        short.decide(tick * 0.2, 700.0, None)
    assert short.brakes == 0
    long = row()
    for tick in range(20, 30):
        long.decide(tick * 0.2, 1200.0, None)
    assert (long.brakes, long.state) == (1, RowState.BRAKE)


def test_a_rise_after_a_release_is_not_the_traffics():
    estimator = RiseEstimator(1000.0, delay_s=2.0, min_history_s=1.0)
    for second in range(10):
        estimator.observe(float(second), 500.0)
    estimator.released(9.0, meter_s=2.0)
    for second, watts in ((10, 700.0), (11, 800.0), (12, 850.0), (13, 850.0), (14, 860.0)):
        estimator.observe(float(second), watts)
    assert estimator.worst_rise == pytest.approx(0.01)
    estimator.observe(15.0, 900.0)
    assert estimator.worst_rise == pytest.approx(0.05)


@pytest.mark.parametrize("rule", [RowBudget(reaction_s=2.0), RowTrim(reaction_s=2.0)])
def test_coming_back_from_a_brake_does_not_lower_t2(rule):
    """A braked row draws little; what it draws again afterwards says nothing of what traffic does."""
    row = RowControl(1000.0, rule, min_history_s=10.0)
    seconds = iter(range(10_000))

    def live(load, count, braked=0.4):
        """A row that draws less while it is braked."""
        for _ in range(count):
            row.decide(float(next(seconds)), 1000.0 * (braked if row.state is RowState.BRAKE else load), None)

    live(0.70, 30)
    before = row.t2
    live(1.05, 5)
    assert row.brakes == 1
    spiked = row.t2
    assert spiked < before
    live(0.70, 60)
    assert row.state is RowState.NORMAL
    assert row.t2 == spiked
