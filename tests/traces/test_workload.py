"""Operations on workloads: what they keep, what they change, and that they can be read again."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from traces.reader import Origin
from traces.request import ShapedLength, TraceRequest
from traces.window import clip_to_window
from traces.workload import Workload


def workload(*arrivals: float, **fields: object) -> Workload:
    requests = [
        TraceRequest(arrival, 10 + index, 5, **fields)  # type: ignore[arg-type]
        for index, arrival in enumerate(arrivals)
    ]
    return Workload(requests, "hand-made")


def times(made: Workload) -> list[float]:
    return [request.arrival_s for request in made]


ARRIVALS = st.lists(st.floats(0, 1e5), min_size=1, max_size=60).map(sorted)


@given(ARRIVALS, st.integers(0, 5), st.floats(0.01, 1.0))
def test_thinning_keeps_a_subset_in_order_and_repeats_itself(arrivals: list[float], seed: int, keep: float) -> None:
    made = workload(*arrivals).thin(keep, seed)
    first, second = list(made), list(made)
    assert first == second
    left = iter(workload(*arrivals))
    assert all(any(request == other for other in left) for request in first)


def test_thinning_keeps_the_share() -> None:
    kept = sum(1 for _ in workload(*range(20_000)).thin(0.3, 7))
    assert kept == pytest.approx(6_000, rel=0.05)


def test_thinning_by_session_keeps_whole_sessions() -> None:
    requests = [TraceRequest(float(i), 5, 5, session_id=str(i % 50)) for i in range(1_000)]
    kept = {request.session_id for request in Workload(requests, "s").thin(0.4, 3, by="session")}
    counts = [request.session_id for request in Workload(requests, "s").thin(0.4, 3, by="session")]
    assert 10 <= len(kept) <= 30
    assert all(counts.count(session) == 20 for session in kept)


@given(ARRIVALS, st.floats(0.001, 1e4), st.integers(0, 3))
def test_jitter_keeps_order_and_stays_within_its_width(arrivals: list[float], width: float, seed: int) -> None:
    made = list(workload(*arrivals).jitter(width, seed))
    moved = [request.arrival_s for request in made]
    assert moved == sorted(moved)
    by_length = {request.input_tokens: request.arrival_s for request in made}
    assert len(by_length) == len(arrivals)
    for index, arrival in enumerate(arrivals):
        assert arrival <= by_length[10 + index] <= arrival + width


@given(ARRIVALS, st.floats(1.0, 4.0), st.floats(0.0, 100.0))
def test_amplifying_gives_between_floor_and_ceiling_copies_in_order(
    arrivals: list[float], factor: float, width: float
) -> None:
    made = list(workload(*arrivals, session_id="a").amplify(factor, 1, width))
    assert times(Workload(made, "m")) == sorted(times(Workload(made, "m")))
    assert int(factor) * len(arrivals) <= len(made) <= (int(factor) + 1) * len(arrivals)
    assert {request.session_id for request in made} <= {"a", "a+1", "a+2", "a+3", "a+4"}


def test_select_shift_and_from_zero_move_the_origin_only_where_moments_stay() -> None:
    origin = Origin(datetime(2026, 1, 1, 23, 59, tzinfo=UTC), 86_340.0)
    made = Workload([TraceRequest(float(at), 1, 1) for at in (0, 30, 90, 120)], "o", origin=origin)
    picked = made.select(30, 120)
    assert times(picked) == [30, 90]
    zeroed = picked.from_zero()
    assert times(zeroed) == [0, 60]
    assert zeroed.origin.started_at == datetime(2026, 1, 1, 23, 59, 30, tzinfo=UTC)
    assert made.select(90).from_zero().origin.seconds_of_day == 30.0
    assert times(made.shift(10)) == [10, 40, 100, 130]
    assert made.shift(10).origin == origin
    with pytest.raises(ValueError, match="select later ones first"):
        list(made.shift(-20))


def test_scaling_time_and_lengths() -> None:
    request = TraceRequest(
        8.0, 1000, 0, prefix_ids=(1, 2), block_tokens=512, shaped=(ShapedLength("L1", 40, "synthetic", "test"),)
    )
    made = next(iter(Workload([request], "s").scale_time(0.5).scale_lengths(0.5, 0.25)))
    assert (made.arrival_s, made.input_tokens, made.output_tokens, made.block_tokens) == (4.0, 500, 0, 256)
    assert made.shaped[0].output_tokens == 10


def test_looping_repeats_with_new_sessions_and_refuses_a_short_period() -> None:
    made = list(workload(0, 5, session_id="a").loop(3, 10))
    assert [request.arrival_s for request in made] == [0, 5, 10, 15, 20, 25]
    assert [request.session_id for request in made] == ["a", "a", "a@1", "a@1", "a@2", "a@2"]
    with pytest.raises(ValueError, match="after the period"):
        list(workload(0, 50).loop(2, 10))


@given(ARRIVALS, ARRIVALS)
def test_merging_orders_by_arrival_and_keeps_parts_apart(one: list[float], other: list[float]) -> None:
    first = workload(*one, session_id="s", prefix_ids=(1, 2), block_tokens=4)
    second = workload(*other, session_id="s", prefix_ids=(1, 2), block_tokens=4)
    made = list(first.merge(second))
    assert [request.arrival_s for request in made] == sorted(one + other)
    ids = {request.session_id: request.prefix_ids for request in made}
    assert ids == {"0/s": (2, 4), "1/s": (3, 5)}


@given(st.integers(1, 10_000), st.integers(0, 10_000), st.integers(2, 9_000), st.integers(1, 600))
def test_clipping_fits_the_window_and_changes_nothing_that_fits(
    input_tokens: int, output_tokens: int, window: int, block: int
) -> None:
    ids = tuple(range(-(-input_tokens // block)))
    shaped = (ShapedLength("L1", output_tokens, "synthetic", "test"),)
    request = TraceRequest(0.0, input_tokens, output_tokens, prefix_ids=ids, block_tokens=block, shaped=shaped)
    clipped = clip_to_window(request, window)
    assert clipped.input_tokens + clipped.output_tokens <= max(window, 0)
    assert 1 <= clipped.input_tokens <= input_tokens
    assert clipped.output_tokens == 0 if output_tokens == 0 else 1 <= clipped.output_tokens <= output_tokens
    assert len(clipped.prefix_ids) == -(-clipped.input_tokens // block)
    assert clipped.input_tokens + clipped.shaped[0].output_tokens <= window
    if input_tokens + output_tokens <= window:
        assert clipped == request


def test_operations_are_lazy_and_endless_sources_stay_endless() -> None:
    class Endless:
        def __iter__(self) -> itertools.starmap[TraceRequest]:
            return itertools.starmap(TraceRequest, ((float(at), 1, 1) for at in itertools.count()))

    made = Workload(Endless(), "endless").thin(0.5, 1).jitter(3.0, 1).scale_time(2.0).select(limit=5)
    assert len(list(made)) == 5
    assert made.steps[-1].endswith("first 5")


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda made: made.thin(0.0, 1), "share to keep"),
        (lambda made: made.thin(1.5, 1), "share to keep"),
        (lambda made: made.amplify(0.5, 1, 1.0), "thin for a lower load"),
        (lambda made: made.jitter(0.0, 1), "above 0 s"),
        (lambda made: made.scale_time(-1.0), "above 0"),
        (lambda made: made.loop(0, 5.0), "at least 1"),
        (lambda made: made.select(5.0, 5.0), "after the start"),
        (lambda made: made.scale_lengths(0.0), "above 0"),
    ],
)
def test_values_out_of_range_say_so(step: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        step(workload(0.0))  # type: ignore[operator]


def test_a_recorded_length_is_never_a_shaped_one() -> None:
    plain = TraceRequest(0.0, 5, 100)
    assert plain.length_at("L0") == ShapedLength("L0", 100, "measured", "recorded in the trace")
    with pytest.raises(ValueError, match="no output length at level L1"):
        plain.length_at("L1")
    judged = TraceRequest(0.0, 5, 100, shaped=(ShapedLength("L1", 31, "estimated", "ratio"),))
    assert judged.length_at("L1").output_tokens == 31
