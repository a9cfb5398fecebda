"""The quick attribution gives what the plain one does, step by step and request by request."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from power.attribution import Attributor
from power.books import EnergySample, Meter
from power.idle import IdleBaseline
from power.quantities import Method, Scope, Source
from power.work import WorkModel, WorkShare
from tests.power.plain_attribution import PlainAttributor, plain_weights

METER = Meter(Method.MEASURED, Source.NVML_COUNTER, Scope.GPU, 5.0)
MODEL = WorkModel(token_cost=1.0, pair_cost=0.001, kv_cost=0.01, weights_cost=50.0)
NAMES = [f"r{number}" for number in range(6)]
SHARE = st.tuples(st.sampled_from([0, 0, 1, 40]), st.sampled_from([0, 1, 1, 3]), st.integers(0, 4000))
SHARES = st.lists(SHARE, max_size=6)


def close(one, other, scale):
    return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-9 * max(1.0, scale))


def same_books(quick, plain):
    scale = plain.books.counter_j
    for name in ("counter_j", "prefill_j", "decode_j", "request_idle_j", "idle_j", "unattributed_j", "estimated_j"):
        assert close(getattr(quick.books, name), getattr(plain.books, name), scale), name
    assert close(quick.books.closure_error_j, 0.0, 1e3 * max(1.0, scale))


def same_energy(quick, plain, scale):
    assert (quick is None) == (plain is None)
    if quick is None:
        return
    for name in ("prefill_j", "decode_j", "joules"):
        assert close(getattr(quick, name), getattr(plain, name), scale), (quick.request_id, name)
    for name in ("request_id", "method", "duration_s", "uncertainty_percent", "settled", "warnings"):
        assert getattr(quick, name) == getattr(plain, name), name


class Pair:
    """Both attributors with the same history."""

    def __init__(self, idle_w, model_scale):
        self.quick = Attributor(METER, MODEL, IdleBaseline(configured_w=idle_w), model_scale=model_scale)
        self.plain = PlainAttributor(METER, MODEL, IdleBaseline(configured_w=idle_w), model_scale=model_scale)
        self.handed_out_j = 0.0

    def do(self, name, *arguments):
        getattr(self.quick, name)(*arguments)
        getattr(self.plain, name)(*arguments)
        quick, plain = self.quick.settled(), self.plain.settled()
        assert [one.request_id for one in quick] == [one.request_id for one in plain]
        for one, other in zip(quick, plain, strict=True):
            same_energy(one, other, self.plain.books.counter_j)
        self.handed_out_j += sum(one.joules for one in quick)
        same_books(self.quick, self.plain)

    def look(self, request_id, now_s):
        scale = self.plain.books.counter_j + 1e3
        same_energy(self.quick.request_energy(request_id, now_s), self.plain.request_energy(request_id, now_s), scale)


@given(SHARES)
def test_weights_in_columns_are_the_weights_one_by_one(shares):
    work = [WorkShare(f"r{index}", *share) for index, share in enumerate(shares)]
    columns, plain = MODEL.weigh(work), plain_weights(MODEL, work)
    assert close(columns.total, sum(prefill + decode for _, prefill, decode in plain), columns.total)
    for index, (_, prefill, decode) in enumerate(plain):
        assert close(columns.prefill[index] if columns.prefill is not None else 0.0, prefill, columns.total)
        assert close(columns.decode[index] * columns.factor + columns.fixed, decode, columns.total)
    for found, wanted in zip(MODEL.weights(work), plain, strict=True):
        assert found == pytest.approx(wanted)


EVENT = st.tuples(
    st.sampled_from(["steps", "steps", "mixed", "sample", "sample", "retire", "admit", "look", "pause", "reset"]),
    st.integers(0, 12),
    st.floats(0.001, 0.2),
    st.floats(0.0, 700.0),
    SHARES,
)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(EVENT, min_size=5, max_size=40),
    st.sampled_from([None, 0.0, 72.0, 400.0]),
    st.sampled_from([None, 1.0]),
)
def test_the_quick_attribution_is_the_plain_one(events, idle_w, model_scale):
    pair = Pair(idle_w, model_scale)
    contexts = {name: 100 * index for index, name in enumerate(NAMES)}
    now = counter = 0.0
    pair.do("on_sample", EnergySample(now, counter, 100.0))
    for action, number, seconds, watts, shares in events:
        start = now
        if action == "steps":
            running = NAMES[: 1 + number % 6]
            for _ in range(number):
                for name in running:
                    contexts[name] += 1
                now += seconds / 10
                counter += watts * seconds / 10
                work = [WorkShare(name, 0, 1, contexts[name]) for name in running]
                pair.do("on_step", now - seconds / 10, now, work)
        elif action == "mixed":
            now += seconds
            counter += watts * seconds
            pair.do("on_step", start, now, [WorkShare(f"r{number + i}", *share) for i, share in enumerate(shares)])
        elif action == "sample":
            now += seconds
            counter += watts * seconds
            pair.do("on_sample", EnergySample(now, counter, watts))
        elif action == "retire":
            pair.do("retire", f"r{number}", now)
        elif action == "admit":
            pair.do("admit", f"r{number}", now)
        elif action == "look":
            pair.look(f"r{number % 6}", now + seconds)
        elif action == "pause":
            now += 3 * seconds
            counter += 3 * watts * seconds
        else:
            counter = 0.0
    for number in range(20):
        pair.do("retire", f"r{number}", now)
    pair.do("on_sample", EnergySample(now + 0.1, counter + 1.0, 100.0))
    assert pair.quick.resident_requests == 0
    books = pair.quick.books
    assert close(pair.handed_out_j, books.requests_j, 1e3 * max(1.0, books.counter_j))


def test_a_run_of_steps_is_kept_as_one_column():
    """Each request reads one more cached token with every step; a jump in one context begins a new column."""
    pair = Pair(50.0, 1.0)
    pair.do("on_sample", EnergySample(0.0, 0.0, 400.0))
    contexts, columns = [10, 700, 3000], []
    for step in range(12):
        contexts = [context + 1 for context in contexts] if step != 7 else [11, 900, 3000]
        work = [WorkShare(name, 0, 1, context) for name, context in zip(NAMES, contexts, strict=False)]
        pair.do("on_step", step / 100, (step + 1) / 100, work)
        columns.append(pair.quick._steps[-1].weights.decode)
    assert len({id(column) for column in columns}) == 2
    assert [id(column) == id(columns[0]) for column in columns] == [True] * 7 + [False] * 5
    pair.do("on_sample", EnergySample(0.12, 48.0, 400.0))
    assert pair.plain.books.decode_j == pytest.approx(48.0 - 6.0)


def test_a_request_that_has_left_and_comes_again_has_a_new_account():
    pair = Pair(0.0, 1.0)
    pair.do("on_sample", EnergySample(0.0, 0.0, 100.0))
    work = [WorkShare("a", 0, 1, 10), WorkShare("b", 0, 1, 10)]
    pair.do("on_step", 0.0, 1.0, work)
    pair.do("on_sample", EnergySample(1.0, 100.0, 100.0))
    pair.do("retire", "a", 1.0)
    pair.do("on_step", 1.0, 2.0, work)
    pair.do("on_sample", EnergySample(2.0, 200.0, 100.0))
    pair.look("a", 2.0)
    assert pair.quick.request_energy("a", 2.0).decode_j == pytest.approx(50.0)
