"""What the simulator remembers of the recent past: the same as looking at everything again, in bounded memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from power.engine_view import RATE_WINDOW_S, STEP_WINDOW_S, percentile
from traces.recent_values import RecentValues
from traces.step_log import FIRST_CAPACITY, StepLog


@given(st.lists(st.tuples(st.floats(0.0, 3.0), st.integers(0, 5)), max_size=60), st.floats(0.1, 20.0))
def test_recent_values_are_those_of_the_window(moves, window_s):
    recent, seen, now = RecentValues(window_s), [], 0.0
    for gap, value in moves:
        now += gap
        recent.add(now, float(value))
        seen.append((now, float(value)))
        now += gap / 2
        recent.forget(now)
        values = [each for time_s, each in seen if time_s >= now - window_s]
        assert len(recent) == len(values)
        assert recent.total == sum(values)
        assert recent.percentile(0.99) == percentile(values, 0.99)


def test_the_step_log_sums_its_windows_and_does_not_grow():
    log, seen, now = StepLog(), [], 0.0
    for number in range(5 * FIRST_CAPACITY):
        seconds = 0.005 + 0.001 * (number % 7)
        now += seconds
        log.add(now, seconds, number % 3, number % 5)
        seen.append((now, seconds, number % 3, number % 5))
        if number % 11 == 0:
            log.draw_one_more()
            seen[-1] = (*seen[-1][:3], seen[-1][3] + 1)
        if number % 5000 == 0:
            recent = [each for each in seen if each[0] >= now - STEP_WINDOW_S]
            drawn = sum(each[3] for each in seen if each[0] >= now - RATE_WINDOW_S)
            step_s, tokens, found = log.recent(now)
            assert found == drawn
            assert step_s == pytest.approx(sum(each[1] for each in recent) / len(recent), rel=1e-12)
            assert tokens == sum(each[2] for each in recent) / len(recent)
    assert log.rows.shape[1] <= 4 * FIRST_CAPACITY
    assert log.recent(now + 100.0) == (None, 0.0, 0)
