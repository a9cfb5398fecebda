"""The engine's events as the governors see them."""

import pytest

from power.engine_view import EngineTracker
from power.governors import Phase
from power.work import WorkShare


def test_nothing_is_known_before_the_first_request():
    assert EngineTracker().view(1.0) is None


def test_backlog_rates_and_latencies():
    tracker = EngineTracker()
    tracker.admit("a", 100, 0.0)
    tracker.admit("b", 300, 0.5)
    view = tracker.view(1.0)
    assert (view.waiting_tokens, view.oldest_wait_s, view.running) == (400, 1.0, 0)
    assert view.prompt_tokens_per_s == pytest.approx(400.0)
    assert view.output_tokens_per_s is None
    tracker.on_step(1.0, 1.1, [WorkShare("a", 100, 0, 100), WorkShare("b", 150, 0, 150)])
    assert tracker.view(1.1).waiting_tokens == 150
    assert tracker.view(1.1).phase is Phase.PREFILL
    tracker.on_step(1.1, 1.2, [WorkShare("a", 0, 1, 101), WorkShare("b", 150, 0, 300)])
    view = tracker.view(1.2)
    assert (view.phase, view.running, view.kv_tokens) == (Phase.MIXED, 1, 101)
    assert view.waiting_tokens == 0
    assert view.step_s == pytest.approx(0.1)
    assert view.ttft_p99_s is None, "too few to speak of a percentile"


def test_time_per_output_token_and_answer_length():
    tracker = EngineTracker()
    for number in range(25):
        name = f"r{number}"
        tracker.admit(name, 10, float(number))
        tracker.on_step(number + 0.0, number + 0.1, [WorkShare(name, 10, 0, 10)])
        for token in range(4):
            start = number + 0.1 + 0.05 * token
            tracker.on_step(start, start + 0.05, [WorkShare(name, 0, 1, 11 + token)])
        tracker.finish(name, number + 0.3)
    view = tracker.view(25.0)
    assert view.tpot_p99_s == pytest.approx(0.05)
    assert view.ttft_p99_s == pytest.approx(0.1)
    assert view.output_tokens_per_s == pytest.approx(5.0)
    assert view.phase is Phase.IDLE
    assert view.running == 0


def test_a_prefix_hit_counts_as_computed():
    tracker = EngineTracker()
    tracker.admit("a", 100, 0.0)
    tracker.on_step(0.0, 0.1, [WorkShare("a", 20, 0, 100)])
    assert tracker.view(0.1).waiting_tokens == 0
