"""What the scheduler hands out and how requests end."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from engine.batch import Batch, SampledTokens, StepResult, TokenLogprobs
from engine.request import FinishReason, Request
from engine.scheduler_config import SchedulerConfig

MakeRequest = Callable[..., Request]


def shape(batch: Batch) -> list[tuple[str, int, int, bool]]:
    return [(s.request.request_id, s.start, s.num_tokens, s.samples) for s in batch.requests]


def draw(batch: Batch, *token_ids: tuple[int, ...]) -> StepResult:
    return StepResult(tuple(SampledTokens(tokens) for tokens in token_ids), 1.0, 2.0)


def test_an_empty_scheduler_has_no_work(make_rig) -> None:
    scheduler = make_rig(8, 4).scheduler
    batch = scheduler.schedule()
    assert not scheduler.has_work
    assert batch.requests == ()
    assert scheduler.update(batch, StepResult((), 0.0, 0.0)) == []
    assert scheduler.fail(batch, "x") == []


def test_prefill_then_decode_until_max_tokens(make_rig, make_request: MakeRequest, expected_output) -> None:
    rig = make_rig(8, 4)
    request = make_request(6, request_id="a", max_tokens=3, ignore_eos=True)
    rig.scheduler.add(request)
    batches = rig.run_all()
    assert [shape(batch) for batch in batches] == [
        [("a", 0, 6, True)],
        [("a", 6, 1, True)],
        [("a", 7, 1, True)],
    ]
    assert request.finish_reason is FinishReason.LENGTH
    assert request.token_ids[6:] == expected_output(request, 8192)
    assert rig.pool.num_used == 0


def test_a_request_knows_when_its_first_step_began(make_rig, make_request: MakeRequest) -> None:
    rig = make_rig(16, 4, max_num_seqs=1)
    first, second = (make_request(6, max_tokens=3, ignore_eos=True) for _ in range(2))
    rig.scheduler.add(first)
    rig.scheduler.add(second)
    rig.step()
    assert (first.admitted_s, second.admitted_s) == (0.0, None)
    rig.run_all()
    # One seat: the second begins when the third step of the first is over.
    assert (first.admitted_s, second.admitted_s) == (0.0, 3.0)


def test_a_step_that_fails_admits_nobody(make_rig, make_request: MakeRequest) -> None:
    scheduler = make_rig(16, 4).scheduler
    request = make_request(6)
    scheduler.add(request)
    scheduler.fail(scheduler.schedule(), "the device is lost")
    assert request.admitted_s is None


def test_a_prompt_is_chunked_to_the_budget_and_samples_at_its_end(make_rig, make_request: MakeRequest) -> None:
    rig = make_rig(16, 4, max_num_batched_tokens=5)
    rig.scheduler.add(make_request(12, request_id="a", max_tokens=1))
    assert [shape(batch) for batch in rig.run_all()] == [
        [("a", 0, 5, False)],
        [("a", 5, 5, False)],
        [("a", 10, 2, True)],
    ]


@pytest.mark.parametrize("budget", range(1, 14))
def test_chunk_boundaries_do_not_change_the_output(
    make_rig, make_request: MakeRequest, expected_output, budget: int
) -> None:
    rig = make_rig(32, 4, max_num_batched_tokens=budget)
    requests = [make_request(length, max_tokens=6) for length in (12, 1, 4, 9)]
    for request in requests:
        rig.scheduler.add(request)
    for batch in rig.drain():
        assert batch.num_tokens <= budget
    for request in requests:
        assert request.token_ids[request.num_prompt_tokens :] == expected_output(request, 8192)


def test_decodes_come_first_and_a_long_prompt_takes_what_is_left(make_rig, make_request: MakeRequest) -> None:
    rig = make_rig(64, 4, max_num_batched_tokens=8)
    long = make_request(40, request_id="long", arrival_s=0.0, max_tokens=2)
    short = make_request(3, request_id="short", arrival_s=1.0, max_tokens=20)
    rig.scheduler.add(short)
    rig.step()
    rig.scheduler.add(long)
    for step in range(5):
        batch, _ = rig.step()
        assert shape(batch) == [("short", 3 + step, 1, True), ("long", 7 * step, 7, False)]


def test_a_one_token_chunk_stands_with_the_single_tokens(make_rig, make_request: MakeRequest) -> None:
    rig = make_rig(64, 4, max_num_batched_tokens=8)
    first = make_request(9, request_id="first", max_tokens=9)
    rig.scheduler.add(first)
    rig.step()
    rig.scheduler.add(make_request(7, request_id="second", max_tokens=9))
    batch, _ = rig.step()
    assert shape(batch) == [("first", 8, 1, True), ("second", 0, 7, True)]
    third, fourth = make_request(5, request_id="third"), make_request(2, request_id="fourth")
    rig.scheduler.add(third)
    rig.scheduler.add(fourth)
    batch, _ = rig.step()
    assert shape(batch) == [
        ("first", 9, 1, True),
        ("second", 7, 1, True),
        ("fourth", 0, 1, False),
        ("third", 0, 5, True),
    ]


def test_the_long_prefill_threshold_lets_others_in(make_rig, make_request: MakeRequest) -> None:
    rig = make_rig(64, 4, max_num_batched_tokens=16, long_prefill_threshold_tokens=4)
    rig.scheduler.add(make_request(10, request_id="long", max_tokens=1))
    rig.scheduler.add(make_request(3, request_id="short", max_tokens=1))
    assert [shape(batch) for batch in rig.run_all()] == [
        [("long", 0, 4, False), ("short", 0, 3, True)],
        [("long", 4, 4, False)],
        [("long", 8, 2, True)],
    ]


def test_admission_goes_by_priority_then_arrival(make_rig, make_request: MakeRequest) -> None:
    rig = make_rig(64, 4, max_num_seqs=1)
    order = []
    for name, priority, arrival_s in (("c", 1, 0.0), ("b", 0, 2.0), ("a", 0, 1.0), ("z", -1, 9.0)):
        rig.scheduler.add(make_request(4, request_id=name, priority=priority, arrival_s=arrival_s, max_tokens=1))
    for batch in rig.drain():
        order += [scheduled.request.request_id for scheduled in batch.requests]
    assert order == ["z", "a", "b", "c"]


def test_the_head_of_the_line_is_not_overtaken(make_rig, make_request: MakeRequest) -> None:
    rig = make_rig(4, 4)
    rig.scheduler.add(make_request(8, request_id="running", max_tokens=4))
    rig.step()
    rig.scheduler.add(make_request(10, request_id="big", max_tokens=1))
    rig.scheduler.add(make_request(2, request_id="small", max_tokens=1))
    batch, _ = rig.step()
    assert [scheduled.request.request_id for scheduled in batch.requests] == ["running"]
    assert rig.scheduler.num_waiting == 2


@pytest.mark.parametrize(
    ("sampling", "drawn", "kept", "reason"),
    [
        ({"max_tokens": 9}, (5, 6, 7), (5, 6, 7), None),
        ({"max_tokens": 2}, (5, 6, 7), (5, 6), FinishReason.LENGTH),
        ({"max_tokens": 9}, (5, 2, 7), (5, 2), FinishReason.STOP),
        ({"max_tokens": 9, "ignore_eos": True}, (5, 2, 7), (5, 2, 7), None),
        ({"max_tokens": 9, "stop_token_ids": (6,)}, (5, 6, 7), (5, 6), FinishReason.STOP),
        ({"max_tokens": 9, "stop_token_ids": (6,), "ignore_eos": True}, (2, 6), (2, 6), FinishReason.STOP),
        ({"max_tokens": 9, "min_tokens": 3}, (2, 2, 2, 2), (2, 2, 2), FinishReason.STOP),
        ({"max_tokens": 9, "min_tokens": 2, "stop_token_ids": (6,)}, (6, 5), (6, 5), None),
        ({"max_tokens": 2}, (5, 2), (5, 2), FinishReason.STOP),
        ({"max_tokens": 99}, (5,) * 9, (5,) * 6, FinishReason.LENGTH),
    ],
)
def test_stopping(make_rig, make_request: MakeRequest, sampling, drawn, kept, reason) -> None:
    rig = make_rig(16, 4, max_model_len=10)
    request = make_request(4, eos=(2,), **sampling)
    rig.scheduler.add(request)
    batch = rig.scheduler.schedule()
    logprobs = tuple(TokenLogprobs(-float(index)) for index in range(len(drawn)))
    (update,) = rig.scheduler.update(batch, StepResult((SampledTokens(drawn, logprobs),), 0.0, 1.0))
    assert update.request is request
    assert update.token_ids == kept
    assert update.logprobs == logprobs[: len(kept)]
    assert update.finish_reason is request.finish_reason is reason
    assert tuple(request.token_ids[4:]) == kept
    assert rig.scheduler.has_work == (reason is None)
    rig.check()


def test_several_tokens_in_one_result_are_caught_up_with(make_rig, make_request: MakeRequest) -> None:
    rig = make_rig(16, 4)
    request = make_request(6, request_id="a", max_tokens=20)
    rig.scheduler.add(request)
    rig.scheduler.update(batch := rig.scheduler.schedule(), draw(batch, (1, 2, 3)))
    batch = rig.scheduler.schedule()
    assert shape(batch) == [("a", 6, 3, True)]
    rig.check()


def test_a_prefix_hit_is_not_computed_again_and_is_counted_once(make_rig, make_request: MakeRequest) -> None:
    rig = make_rig(32, 4)
    prompt = list(range(10))
    first = make_request(prompt, max_tokens=1)
    rig.scheduler.add(first)
    rig.run_all()
    second = make_request(prompt, request_id="second", max_tokens=5)
    rig.scheduler.add(second)
    batch, _ = rig.step()
    assert shape(batch) == [("second", 8, 2, True)]
    assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 8)
    rig.run_all()
    stats = rig.scheduler.stats()
    assert (stats.prefix_query_tokens, stats.prefix_hit_tokens) == (20, 8)


def test_a_salt_is_its_own_cache(make_rig, make_request: MakeRequest) -> None:
    rig = make_rig(32, 4)
    for salt, cached in (("a", 0), ("b", 0), ("a", 8)):
        request = make_request(list(range(10)), cache_salt=salt, max_tokens=2)
        rig.scheduler.add(request)
        rig.run_all()
        assert request.num_cached_tokens == cached


def test_record_splits_prefill_from_decode(make_rig, make_request: MakeRequest) -> None:
    rig = make_rig(32, 4, max_num_batched_tokens=6)
    rig.scheduler.add(make_request(5, request_id="a", max_tokens=9))
    rig.step()
    rig.scheduler.add(make_request(8, request_id="b", max_tokens=9))
    batch = rig.scheduler.schedule()
    result = rig.model.run(batch)
    rig.scheduler.update(batch, result)
    record = rig.scheduler.record(batch, result)
    assert (record.step_id, record.duration_s) == (1, 1.0)
    assert [(w.request_id, w.prefill_tokens, w.decode_tokens, w.kv_tokens_read) for w in record.work] == [
        ("a", 0, 1, 6),
        ("b", 5, 0, 5),
    ]


def test_stats_are_plain_figures(make_rig, make_request: MakeRequest) -> None:
    rig = make_rig(32, 4, max_num_seqs=1, max_num_batched_tokens=6)
    assert rig.scheduler.stats().oldest_waiting_arrival_s is None
    rig.scheduler.add(make_request(10, arrival_s=1.0))
    rig.scheduler.add(make_request(7, arrival_s=3.0, priority=-1))
    rig.scheduler.add(make_request(5, arrival_s=2.0))
    assert rig.scheduler.stats().waiting_prefill_tokens == 22
    rig.step()
    stats = rig.scheduler.stats()
    assert (stats.running, stats.waiting, stats.waiting_prefill_tokens) == (1, 2, 16)
    assert (stats.kv_blocks_used, stats.kv_blocks_total) == (2, 32)
    assert stats.oldest_waiting_arrival_s == 1.0
    assert (rig.scheduler.num_running, rig.scheduler.num_waiting) == (1, 2)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_num_seqs", 0),
        ("max_num_batched_tokens", 0),
        ("long_prefill_threshold_tokens", 0),
        ("max_model_len", 1),
        ("watermark", 1.0),
        ("watermark", -0.1),
    ],
)
def test_config_names_the_bad_field(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        SchedulerConfig(**{field: value})


def test_finished_requests_are_not_kept(make_rig, make_request: MakeRequest) -> None:
    rig = make_rig(32, 4)
    for _ in range(20):
        rig.scheduler.add(make_request(3, max_tokens=2))
        rig.run_all()
    assert not rig.scheduler._requests
    assert not rig.scheduler._running
    assert not rig.scheduler._void_in_flight
    assert not rig.pool._chains
    assert len(rig.scheduler._retired) == 1
