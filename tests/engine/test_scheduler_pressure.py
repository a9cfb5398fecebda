"""Too little of something: blocks, budget, seats, or no service at all."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from engine.batch import SampledTokens, StepResult
from engine.request import FinishReason, Request

MakeRequest = Callable[..., Request]


def ids(batch) -> list[str]:
    return [scheduled.request.request_id for scheduled in batch.requests]


def test_preemption_takes_the_newest_of_the_lowest_priority(make_rig, make_request: MakeRequest) -> None:
    rig = make_rig(4, 4)
    rig.scheduler.add(make_request(4, request_id="low-old", priority=1, arrival_s=0.0, max_tokens=9))
    rig.scheduler.add(make_request(4, request_id="low-new", priority=1, arrival_s=1.0, max_tokens=9))
    rig.scheduler.add(make_request(4, request_id="high", priority=0, arrival_s=2.0, max_tokens=9))
    batch, _ = rig.step()
    assert ids(batch) == ["high", "low-old", "low-new"]
    batch, _ = rig.step()
    # One block is left: `high` takes it, `low-old` takes that of `low-new`.
    assert ids(batch) == ["high", "low-old"]
    assert batch.retired == ("low-new",)
    stats = rig.scheduler.stats()
    assert (stats.preemptions, stats.running, stats.waiting) == (1, 2, 1)


def test_preemption_looks_at_priority_not_at_who_was_admitted_last(make_rig, make_request: MakeRequest) -> None:
    rig = make_rig(4, 4)
    rig.scheduler.add(make_request(6, request_id="low", priority=1, max_tokens=9))
    rig.step()
    rig.scheduler.add(make_request(6, request_id="high", priority=0, max_tokens=9))
    retired = [request_id for _ in range(4) for request_id in rig.step()[0].retired]
    assert retired == ["low"]


def test_preemption_keeps_the_output_and_recomputes_as_prefill(
    make_rig, make_request: MakeRequest, expected_output
) -> None:
    rig = make_rig(6, 4)
    requests = [make_request(5, max_tokens=12) for _ in range(3)]
    for request in requests:
        rig.scheduler.add(request)
    recomputed = 0
    for batch in rig.drain():
        for scheduled in batch.requests:
            if scheduled.request.num_preemptions and scheduled.num_tokens > 1:
                recomputed += 1
                assert scheduled.num_prefill_tokens == scheduled.num_tokens
    assert rig.scheduler.stats().preemptions > 0
    assert recomputed > 0
    for request in requests:
        assert request.token_ids[5:] == expected_output(request, 8192)
        assert request.num_cached_tokens == 0
    assert rig.scheduler.stats().prefix_query_tokens == 15


def test_a_preempted_request_finds_its_own_blocks_again(make_rig, make_request: MakeRequest) -> None:
    rig = make_rig(7, 4)
    first = make_request(8, request_id="first", max_tokens=6)
    second = make_request(12, request_id="second", max_tokens=6)
    rig.scheduler.add(first)
    rig.scheduler.add(second)
    starts = [
        scheduled.start
        for batch in rig.drain()
        for scheduled in batch.requests
        if scheduled.request is second and second.num_preemptions
    ]
    assert second.num_preemptions == 1
    # The first admission counts, not the return.
    assert second.admitted_s == 0.0
    assert starts[0] == 12


def test_a_preempted_request_has_nothing_computed(make_rig, make_request: MakeRequest) -> None:
    rig = make_rig(4, 4)
    rig.scheduler.add(make_request(8, request_id="a", max_tokens=5))
    victim = make_request(8, request_id="b", max_tokens=5)
    rig.scheduler.add(victim)
    rig.step()
    rig.step()
    assert (victim.num_preemptions, victim.num_computed_tokens, victim.block_table) == (1, 0, [])
    assert rig.scheduler.stats().waiting_prefill_tokens == victim.num_tokens == 9


@pytest.mark.parametrize(("ahead", "behind"), [(6, 1), (10, 2)])
def test_several_tokens_of_one_preempt_one_behind_it(make_rig, make_request: MakeRequest, ahead, behind) -> None:
    rig = make_rig(5, 4)
    rig.scheduler.add(make_request(4, request_id="a", max_tokens=12))
    rig.scheduler.add(make_request(8, request_id="b", max_tokens=12))
    batch = rig.scheduler.schedule()
    result = StepResult((SampledTokens((1,) * ahead), SampledTokens((1,) * behind)), 0.0, 1.0)
    rig.scheduler.update(batch, result)
    # A single token of `b` is served before `a`, two come after it; either way `a` then takes the blocks of `b`.
    batch = rig.scheduler.schedule()
    assert [(s.request.request_id, s.num_tokens) for s in batch.requests] == [("a", ahead)]
    assert batch.retired == ("b",)
    rig.check()


def test_nobody_is_admitted_in_a_step_that_preempted(make_rig, make_request: MakeRequest) -> None:
    rig = make_rig(4, 4)
    rig.scheduler.add(make_request(4, request_id="a", max_tokens=9))
    rig.scheduler.add(make_request(9, request_id="b", max_tokens=5))
    assert ids(rig.step()[0]) == ["a", "b"]
    rig.scheduler.add(make_request(1, request_id="c", priority=0, max_tokens=1))
    batch, _ = rig.step()
    assert ids(batch) == ["a"]
    assert rig.scheduler.stats().preemptions == 1
    assert rig.scheduler.num_waiting == 2


def test_the_watermark_is_kept_free_unless_nobody_runs(make_rig, make_request: MakeRequest) -> None:
    rig = make_rig(10, 4, watermark=0.3)
    rig.scheduler.add(make_request(20, request_id="a", max_tokens=1 + 8))
    rig.scheduler.add(make_request(12, request_id="b", max_tokens=1))
    assert ids(rig.step()[0]) == ["a"]
    rig.scheduler.abort(["b"])
    rig.scheduler.add(make_request(8, request_id="c", max_tokens=1))
    assert ids(rig.step()[0]) == ["a"]
    rig.scheduler.add(make_request(4, request_id="d", priority=-1, max_tokens=1))
    assert ids(rig.step()[0]) == ["a", "d"]
    rig.run_all()
    rig.scheduler.add(make_request(40, request_id="whole pool", max_tokens=1))
    assert ids(rig.step()[0]) == ["whole pool"]


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "match"),
    [
        (40, 1, "leaves no room"),
        (41, 1, "leaves no room"),
        (17, 1, "5 KV blocks"),
        (8, 10, "5 KV blocks"),
        (39, 99, "10 KV blocks"),
    ],
)
def test_what_can_never_be_served_is_refused(make_rig, make_request: MakeRequest, prompt, max_tokens, match) -> None:
    rig = make_rig(4, 4, max_model_len=40)
    with pytest.raises(ValueError, match=match):
        rig.scheduler.add(make_request(prompt, max_tokens=max_tokens))
    assert not rig.scheduler.has_work


@pytest.mark.parametrize(("prompt", "max_tokens"), [(16, 1), (8, 9), (1, 16)])
def test_what_just_fits_is_served(make_rig, make_request: MakeRequest, prompt: int, max_tokens: int) -> None:
    rig = make_rig(4, 4, watermark=0.9)
    request = make_request(prompt, max_tokens=max_tokens)
    rig.scheduler.add(request)
    rig.run_all()
    assert request.num_output_tokens == max_tokens


def test_an_id_in_use_and_a_used_request_are_refused(make_rig, make_request: MakeRequest) -> None:
    rig = make_rig(8, 4)
    request = make_request(4, request_id="a", max_tokens=2)
    rig.scheduler.add(request)
    with pytest.raises(ValueError, match="in use"):
        rig.scheduler.add(make_request(4, request_id="a"))
    rig.run_all()
    with pytest.raises(ValueError, match="ran before"):
        rig.scheduler.add(request)


def test_a_lower_token_budget_holds_until_it_is_lifted(make_rig, make_request: MakeRequest) -> None:
    rig = make_rig(64, 4, max_num_batched_tokens=12)
    for _ in range(3):
        rig.scheduler.add(make_request(10, max_tokens=6))
    rig.scheduler.set_token_budget(2)
    assert [rig.step()[0].num_tokens for _ in range(3)] == [2, 2, 2]
    rig.scheduler.set_token_budget(100)
    assert rig.scheduler.token_budget == 12
    rig.scheduler.set_token_budget(None)
    assert rig.step()[0].num_tokens == 12
    with pytest.raises(ValueError, match="pause"):
        rig.scheduler.set_token_budget(0)


def test_a_budget_below_the_decodes_still_ends_everything(make_rig, make_request: MakeRequest, expected_output) -> None:
    rig = make_rig(64, 4, max_num_batched_tokens=64)
    requests = [make_request(3, max_tokens=5) for _ in range(6)]
    for request in requests:
        rig.scheduler.add(request)
    rig.step()
    rig.scheduler.set_token_budget(1)
    rig.run_all()
    for request in requests:
        assert request.token_ids[3:] == expected_output(request, 8192)


def test_a_cap_on_running_stops_admission_only(make_rig, make_request: MakeRequest) -> None:
    rig = make_rig(64, 4, max_num_seqs=3)
    for name in "abcd":
        rig.scheduler.add(make_request(2, request_id=name, max_tokens=3))
    assert ids(rig.step()[0]) == ["a", "b", "c"]
    rig.scheduler.set_max_running(1)
    assert ids(rig.step()[0]) == ["a", "b", "c"]
    rig.step()
    for name in "ef":
        rig.scheduler.add(make_request(2, request_id=name, max_tokens=3))
    assert ids(rig.step()[0]) == ["d"]
    rig.scheduler.set_max_running(None)
    assert ids(rig.step()[0]) == ["d", "e", "f"]
    with pytest.raises(ValueError, match="pause"):
        rig.scheduler.set_max_running(0)


def test_a_pause_keeps_everything_and_takes_in_more(make_rig, make_request: MakeRequest, expected_output) -> None:
    rig = make_rig(64, 4)
    first = make_request(5, request_id="first", max_tokens=4)
    rig.scheduler.add(first)
    rig.step()
    used = rig.pool.num_used
    rig.scheduler.pause()
    second = make_request(5, request_id="second", max_tokens=4)
    rig.scheduler.add(second)
    assert rig.scheduler.paused
    assert not rig.scheduler.has_work
    assert rig.scheduler.schedule().requests == ()
    assert (rig.pool.num_used, rig.scheduler.num_waiting) == (used, 1)
    rig.scheduler.resume()
    rig.run_all()
    for request in (first, second):
        assert request.finish_reason is FinishReason.LENGTH
        assert request.token_ids[5:] == expected_output(request, 8192)
