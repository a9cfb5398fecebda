"""Joules of requests: conservation, the sharing rule, and what happens when the sensor misbehaves."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from power.attribution import Attributor
from power.books import EnergySample, Meter
from power.idle import IdleBaseline
from power.quantities import Method, Scope, Source
from power.work import WorkModel, WorkShare, step_work

METER = Meter(Method.MEASURED, Source.NVML_COUNTER, Scope.GPU, 5.0)
MODEL = WorkModel(token_cost=1.0, pair_cost=0.001, kv_cost=0.01, weights_cost=50.0)


def attributor(idle_w=100.0):
    return Attributor(METER, MODEL, IdleBaseline(configured_w=idle_w))


def decode(request_id, context=100):
    return WorkShare(request_id, 0, 1, context)


def prefill(request_id, tokens=100):
    return WorkShare(request_id, tokens, 0, tokens)


def results(books):
    return {result.request_id: result for result in books.settled()}


def test_one_request_gets_everything_but_the_idle_before_it():
    att = attributor(idle_w=100.0)
    att.on_sample(EnergySample(0.0, 0.0, 100.0))
    att.on_sample(EnergySample(1.0, 100.0, 100.0))
    att.on_step(1.0, 2.0, [prefill("a")])
    att.on_sample(EnergySample(2.0, 500.0, 400.0))
    att.retire("a", 2.0)
    (result,) = att.settled()
    assert result.prefill_j == pytest.approx(300.0)
    assert result.idle_j == pytest.approx(100.0)
    assert result.decode_j == 0.0
    assert result.settled
    assert result.method == Method.MEASURED
    assert att.books.idle_j == pytest.approx(100.0)
    assert att.books.unattributed_j == pytest.approx(0.0)


def test_the_spread_follows_the_power_samples():
    att = attributor(idle_w=0.0)
    att.on_sample(EnergySample(0.0, 0.0, 0.0))
    att.on_step(0.0, 0.5, [prefill("a")])
    att.on_sample(EnergySample(0.5, 0.0, 300.0))
    att.on_step(0.5, 1.0, [prefill("b")])
    att.on_sample(EnergySample(1.0, 200.0, 100.0))
    att.retire("a", 1.0)
    att.retire("b", 1.0)
    found = results(att)
    assert found["a"].joules == pytest.approx(150.0)
    assert found["b"].joules == pytest.approx(50.0)


def test_weights_are_shared_equally_and_the_cache_by_what_is_read():
    att = attributor(idle_w=0.0)
    att.on_sample(EnergySample(0.0, 0.0, 100.0))
    att.on_step(0.0, 1.0, [decode("short", 0), decode("long", 1000)])
    att.on_sample(EnergySample(1.0, 100.0, 100.0))
    att.retire("short", 1.0)
    att.retire("long", 1.0)
    found = results(att)
    short, long = 1 + 25.0, 1 + 25.0 + 1000 * 0.011
    assert found["short"].decode_j == pytest.approx(100 * short / (short + long))
    assert found["long"].decode_j == pytest.approx(100 * long / (short + long))


def test_within_one_sample_a_heavy_step_gets_more_than_its_time():
    att = Attributor(METER, MODEL, IdleBaseline(configured_w=0.0), model_scale=1.0)
    att.on_sample(EnergySample(0.0, 0.0, 100.0))
    att.on_step(0.0, 0.5, [WorkShare("heavy", 400, 0, 0)])
    att.on_step(0.5, 1.0, [WorkShare("light", 100, 0, 0)])
    att.on_sample(EnergySample(1.0, 100.0, 100.0))
    att.retire("heavy", 1.0)
    att.retire("light", 1.0)
    found = results(att)
    heavy = MODEL.weights([WorkShare("heavy", 400, 0, 0)])[0][1]
    light = MODEL.weights([WorkShare("light", 100, 0, 0)])[0][1]
    assert found["heavy"].joules == pytest.approx(100.0 * heavy / (heavy + light))
    assert found["heavy"].joules + found["light"].joules == pytest.approx(100.0)


def test_a_pause_keeps_its_part_of_the_sample():
    att = Attributor(METER, MODEL, IdleBaseline(configured_w=0.0), model_scale=1.0)
    att.on_sample(EnergySample(0.0, 0.0, 100.0))
    att.on_step(0.0, 0.25, [prefill("a")])
    att.on_step(0.75, 1.0, [prefill("b")])
    att.on_sample(EnergySample(1.0, 100.0, 100.0))
    att.retire("a", 1.0)
    att.retire("b", 1.0)
    found = results(att)
    assert found["a"].joules == pytest.approx(25.0)
    assert att.books.unattributed_j == pytest.approx(50.0)


def test_the_counter_is_taken_to_move_between_two_quick_looks():
    att = attributor(idle_w=0.0)
    att.on_sample(EnergySample(0.0, 0.0, 100.0))
    att.on_sample(EnergySample(0.04, 0.0, 100.0))
    att.on_sample(EnergySample(0.08, 8.0, 100.0))
    assert att.settled_until_s == pytest.approx(0.06)
    att.on_sample(EnergySample(0.5, 50.0, 100.0))
    assert att.settled_until_s == pytest.approx(0.5)


def test_idle_is_split_among_residents_at_each_moment():
    att = attributor(idle_w=100.0)
    att.on_sample(EnergySample(0.0, 0.0, 100.0))
    att.admit("early", 0.0)
    att.admit("late", 0.5)
    att.on_step(0.0, 1.0, [decode("early"), decode("late")])
    att.on_sample(EnergySample(1.0, 100.0, 100.0))
    att.retire("early", 1.0)
    att.retire("late", 1.0)
    found = results(att)
    assert found["early"].idle_j == pytest.approx(75.0)
    assert found["late"].idle_j == pytest.approx(25.0)


def test_power_outside_steps_is_unattributed():
    att = attributor(idle_w=100.0)
    att.on_sample(EnergySample(0.0, 0.0, 300.0))
    att.on_sample(EnergySample(1.0, 300.0, 300.0))
    assert att.books.unattributed_j == pytest.approx(200.0)
    assert att.books.idle_j == pytest.approx(100.0)
    assert att.books.closure_error_j == pytest.approx(0.0)


def test_idle_share_is_null_with_a_reason_when_idle_was_never_seen():
    att = Attributor(METER, MODEL, IdleBaseline())
    att.on_sample(EnergySample(0.0, 0.0, 300.0))
    att.on_step(0.0, 1.0, [decode("a")])
    att.on_sample(EnergySample(1.0, 300.0, 300.0))
    att.retire("a", 1.0)
    (result,) = att.settled()
    assert result.idle_j is None
    assert "not been seen idle" in result.idle_reason
    assert result.decode_j == pytest.approx(300.0)


def test_counter_reset_is_counted_and_bridged_by_the_power_integral():
    att = attributor(idle_w=0.0)
    att.on_sample(EnergySample(0.0, 5000.0, 200.0))
    att.on_step(0.0, 1.0, [decode("a")])
    att.on_sample(EnergySample(1.0, 10.0, 200.0))
    att.on_step(1.0, 2.0, [decode("a")])
    att.on_sample(EnergySample(2.0, 210.0, 200.0))
    att.retire("a", 2.0)
    (result,) = att.settled()
    assert att.books.counter_resets == 1
    assert result.joules == pytest.approx(400.0)
    assert result.method == Method.ESTIMATED
    assert att.books.closure_error_j == pytest.approx(0.0)


def test_stuck_counter_is_bridged_and_not_counted_twice():
    att = attributor(idle_w=0.0)
    att.on_sample(EnergySample(0.0, 0.0, 100.0))
    for second in range(1, 11):
        att.on_step(second - 1.0, second, [decode("a")])
        att.on_sample(EnergySample(second, 0.0, 100.0))
    assert att.books.stuck == 1
    att.on_step(10.0, 11.0, [decode("a")])
    att.on_sample(EnergySample(11.0, 1100.0, 100.0))
    att.retire("a", 11.0)
    assert att.books.counter_j == pytest.approx(1100.0)
    assert att.books.closure_error_j == pytest.approx(0.0, abs=1e-9)


def test_gap_and_foreign_processes_are_counted_and_told():
    att = attributor(idle_w=0.0)
    att.on_sample(EnergySample(0.0, 0.0, 100.0))
    att.on_step(0.0, 5.0, [decode("a")])
    att.on_sample(EnergySample(5.0, 500.0, 100.0), foreign=True)
    att.retire("a", 5.0)
    (result,) = att.settled()
    assert att.books.gaps == 1
    assert att.books.foreign_samples == 1
    assert result.uncertainty_percent is None
    assert len(result.warnings) == 2


def test_without_a_counter_power_is_integrated():
    meter = Meter(Method.ESTIMATED, Source.NVML_POWER, Scope.GPU, 5.0)
    att = Attributor(meter, MODEL, IdleBaseline(configured_w=0.0))
    att.on_sample(EnergySample(0.0, None, 100.0))
    att.on_step(0.0, 1.0, [decode("a")])
    att.on_sample(EnergySample(1.0, None, 250.0))
    att.retire("a", 1.0)
    (result,) = att.settled()
    assert result.joules == pytest.approx(250.0)
    assert result.method == Method.ESTIMATED


def test_a_request_can_be_read_before_the_counter_has_caught_up():
    att = attributor(idle_w=100.0)
    att.on_sample(EnergySample(0.0, 0.0, 100.0))
    att.on_step(0.0, 1.0, [decode("a"), decode("b")])
    att.on_sample(EnergySample(0.9, 270.0, 300.0))
    preview = att.request_energy("a", 1.0)
    assert not preview.settled
    assert preview.method == Method.ESTIMATED
    assert preview.joules == pytest.approx(150.0)
    assert att.books.decode_j == 0.0 or att.books.closure_error_j == pytest.approx(0.0)


def test_a_long_step_is_waited_for():
    att = attributor(idle_w=100.0)
    att.on_sample(EnergySample(0.0, 0.0, 100.0))
    att.admit("a", 0.0)
    for tenth in range(1, 21):
        att.on_sample(EnergySample(tenth / 10, 40.0 * tenth, 400.0))
    assert att.books.counter_j == 0.0
    att.on_step(0.0, 2.0, [prefill("a")])
    att.retire("a", 2.0)
    (result,) = att.settled()
    assert result.prefill_j == pytest.approx(600.0)
    assert att.books.unattributed_j == pytest.approx(0.0)


def test_a_silent_sensor_does_not_gather_steps_for_ever():
    att = attributor()
    att.on_sample(EnergySample(0.0, 0.0, 100.0))
    att.admit("early", 0.0)
    att.retire("early", 1.0)
    for step in range(500):
        att.on_step(float(step), step + 1.0, [decode("a")])
    assert att.books.dropped_steps > 300
    (result,) = att.settled()
    assert (result.request_id, result.settled) == ("early", False)
    assert result.warnings


def test_a_vanishing_power_learnt_first_does_not_blow_up_the_next_interval():
    att = attributor(idle_w=0.0)
    att.on_sample(EnergySample(0.0, 0.0, 100.0))
    att.on_step(0.0, 1.0, [decode("a")])
    att.on_sample(EnergySample(1.0, 1e-310, 100.0))
    att.on_step(1.0, 2.0, [decode("a")])
    att.on_sample(EnergySample(2.0, 100.0, 100.0))
    att.retire("a", 2.0)
    (result,) = att.settled()
    assert result.decode_j == pytest.approx(100.0)


PLAN = st.lists(
    st.tuples(
        st.sampled_from(["step", "step", "step", "sample", "sample", "retire", "admit", "pause", "reset", "blind"]),
        st.integers(0, 7),
        st.floats(0.001, 0.4),
        st.floats(0.0, 700.0),
    ),
    min_size=5,
    max_size=80,
)


@settings(max_examples=300, deadline=None)
@given(PLAN, st.sampled_from([None, 0.0, 72.0, 400.0]))
def test_everything_handed_out_is_what_the_counter_moved(plan, idle_w):
    att = Attributor(METER, MODEL, IdleBaseline(configured_w=idle_w))
    now, counter, power, handed_out = 0.0, 0.0, 100.0, 0.0
    att.on_sample(EnergySample(now, counter, power))
    for action, number, seconds, watts in plan:
        start = now
        if action == "step":
            now += seconds
            counter += watts * seconds
            work = [decode(f"r{index}", 10 * index) for index in range(number)] + [prefill(f"r{number}", 30)]
            att.on_step(start, now, work)
        elif action == "sample":
            now += seconds
            counter += watts * seconds
            power = watts
            att.on_sample(EnergySample(now, counter, power))
        elif action == "retire":
            att.retire(f"r{number}", now)
        elif action == "admit":
            att.admit(f"r{number}", now)
        elif action == "pause":
            now += 3 * seconds
            counter += watts * 3 * seconds
        elif action == "reset":
            counter = 0.0
        else:
            now += seconds
            att.on_sample(EnergySample(now, None, watts))
        handed_out += sum(result.joules for result in att.settled())
    for number in range(9):
        att.retire(f"r{number}", now)
    att.on_sample(EnergySample(now + 0.1, counter + 1.0, 100.0))
    handed_out += sum(result.joules for result in att.settled())
    books = att.books
    assert math.isclose(books.closure_error_j, 0.0, abs_tol=1e-6 * max(1.0, books.counter_j))
    assert math.isclose(handed_out, books.requests_j, abs_tol=1e-6 * max(1.0, books.counter_j))
    assert min(books.idle_j, books.request_idle_j, books.prefill_j, books.decode_j) >= 0.0
    assert books.unattributed_j >= -1e-9 * max(1.0, books.counter_j)


def test_closes_on_the_twin_and_each_request_is_near_the_truth(simulated, clock, twin):
    """Sixteen staggered requests on the simulated board, counter and 20 Hz samples as a server would see them."""
    att = Attributor(
        Meter(Method.SIMULATED, Source.TWIN, Scope.GPU, 0.0),
        WorkModel.of(twin.gpu, twin.shape),
        IdleBaseline(configured_w=twin.idle_power_w(active=True)),
    )
    first = simulated.sample()
    att.on_sample(EnergySample(first.time_s, first.energy_j, first.power_w))
    truth_before, next_sample = simulated.board.state.energy_j, clock() + 0.05
    finished = []
    contexts = {f"r{index}": 0 for index in range(16)}
    for step in range(400):
        work = []
        for index, request_id in enumerate(contexts):
            if 10 * index == step:
                work.append(WorkShare(request_id, 500, 0, 500))
                contexts[request_id] = 500
            elif 10 * index < step:
                work.append(WorkShare(request_id, 0, 1, contexts[request_id]))
                contexts[request_id] += 1
        demand = step_work(work)
        started = clock()
        clock.now_s += twin.predict(demand, simulated.board.state.clock_mhz).duration_s
        simulated.on_step(demand, started, clock())
        att.on_step(started, clock(), work)
        if clock() >= next_sample:
            reading = simulated.sample()
            att.on_sample(EnergySample(reading.time_s, reading.energy_j, reading.power_w))
            next_sample += 0.05
    simulated.quiet(clock())
    for request_id in contexts:
        att.retire(request_id, clock())
    for _ in range(6):
        clock.now_s += 0.05
        reading = simulated.sample()
        att.on_sample(EnergySample(reading.time_s, reading.energy_j, reading.power_w))
    finished = att.settled()
    moved = simulated.board.state.energy_j - truth_before
    books = att.books
    assert len(finished) == 16
    assert sum(result.joules for result in finished) == pytest.approx(books.requests_j)
    assert books.requests_j + books.idle_j + books.unattributed_j == pytest.approx(books.counter_j, rel=1e-12)
    assert books.counter_j == pytest.approx(moved, rel=0.005)
    assert books.unattributed_j < 0.02 * books.counter_j
    assert all(result.method == Method.SIMULATED for result in finished)
