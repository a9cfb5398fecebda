"""Requests that leave before their time, and steps that fail, also while another step is under way."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from engine.batch import SampledTokens, StepResult
from engine.request import FinishReason, Request

MakeRequest = Callable[..., Request]


def ids(batch) -> list[str]:
    return [scheduled.request.request_id for scheduled in batch.requests]


def test_abort_in_every_state(make_rig, make_request: MakeRequest) -> None:
    rig = make_rig(8, 4, max_num_batched_tokens=12, max_num_seqs=2)
    decoding = make_request(4, request_id="decoding", max_tokens=20)
    prefilling = make_request(20, request_id="prefilling", max_tokens=4)
    waiting = make_request(4, request_id="waiting")
    for request in (decoding, prefilling, waiting):
        rig.scheduler.add(request)
    rig.step()
    rig.step()
    gone = rig.scheduler.abort(["waiting", "unknown", "prefilling", "decoding", "decoding"])
    assert gone == [waiting, prefilling, decoding]
    assert {request.finish_reason for request in gone} == {FinishReason.ABORT}
    assert rig.pool.num_used == 0
    assert not rig.scheduler.has_work
    assert rig.scheduler.abort(["decoding"]) == []
    rig.check()
    # What never ran has no state to drop.
    rig.scheduler.add(make_request(4, request_id="next", max_tokens=1))
    assert rig.step()[0].retired == ("prefilling", "decoding")


def test_requests_that_were_decoded_elsewhere_are_completed(make_rig, make_request: MakeRequest) -> None:
    """A caller that knows a run of decode steps may take it at once (virtual-time simulation does)."""
    rig = make_rig(16, 4)
    done, other = make_request(6, request_id="done", max_tokens=5), make_request(6, request_id="other", max_tokens=9)
    for request in (done, other):
        rig.scheduler.add(request)
    rig.step()
    with pytest.raises(ValueError, match="has not drawn its last token"):
        rig.scheduler.complete([done])
    for request in (done, other):
        rig.pool.grow(request, 10)
        request.token_ids += [1] * 4
        request.num_computed_tokens = 10
    rig.scheduler.complete([done])
    assert done.finish_reason is FinishReason.LENGTH
    assert rig.scheduler.num_running == 1
    rig.check()
    assert rig.scheduler.schedule().retired == ("done",)
    with pytest.raises(ValueError, match="does not run"):
        rig.scheduler.complete([done])
    rig.scheduler.abort(["other"])
    assert rig.pool.num_used == 0


def test_abort_of_a_preempted_request_retires_it_once(make_rig, make_request: MakeRequest) -> None:
    rig = make_rig(4, 4)
    rig.scheduler.add(make_request(8, request_id="a", max_tokens=5))
    rig.scheduler.add(make_request(8, request_id="b", max_tokens=5))
    rig.step()
    batch, _ = rig.step()
    assert batch.retired == ("b",)
    rig.scheduler.abort(["b"])
    assert all("b" not in batch.retired for batch in rig.run_all())
    rig.check()


def test_an_id_can_be_used_again_after_abort(make_rig, make_request: MakeRequest, expected_output) -> None:
    rig = make_rig(8, 4)
    rig.scheduler.add(make_request(6, request_id="a", max_tokens=9))
    rig.step()
    rig.scheduler.abort(["a"])
    again = make_request(7, request_id="a", max_tokens=9)
    rig.scheduler.add(again)
    batch, _ = rig.step()
    assert batch.retired == ("a",)
    assert batch.requests[0].start == 0
    rig.run_all()
    assert again.token_ids[7:] == expected_output(again, 8192)


def test_an_abort_between_schedule_and_update_is_ignored_by_update(make_rig, make_request: MakeRequest) -> None:
    rig = make_rig(8, 4)
    first, second = make_request(6, request_id="a", max_tokens=9), make_request(5, request_id="b", max_tokens=9)
    rig.scheduler.add(first)
    rig.scheduler.add(second)
    batch = rig.scheduler.schedule()
    result = rig.model.run(batch)
    rig.scheduler.abort(["a"])
    again = make_request(3, request_id="a", max_tokens=9)
    rig.scheduler.add(again)
    updates = rig.scheduler.update(batch, result)
    assert [update.request for update in updates] == [second]
    assert first.num_output_tokens == again.num_output_tokens == 0
    rig.check()
    # The work was done all the same.
    assert [work.request_id for work in rig.scheduler.record(batch, result).work] == ["a", "b"]


def test_a_failed_step_ends_its_requests_and_publishes_nothing(make_rig, make_request: MakeRequest) -> None:
    rig = make_rig(16, 4, max_num_seqs=2)
    prompt = list(range(9))
    first, second = make_request(prompt, max_tokens=9), make_request(4, max_tokens=9)
    third = make_request(prompt, request_id="third", max_tokens=9)
    for request in (first, second, third):
        rig.scheduler.add(request)
    batch = rig.scheduler.schedule()
    updates = rig.scheduler.fail(batch, "out of memory")
    assert [(u.request, u.finish_reason, u.error, u.token_ids) for u in updates] == [
        (first, FinishReason.ERROR, "out of memory", ()),
        (second, FinishReason.ERROR, "out of memory", ()),
    ]
    assert first.num_computed_tokens == 0
    assert rig.pool.num_used == 0
    rig.check()
    batch = rig.scheduler.schedule()
    assert ids(batch) == ["third"]
    assert batch.requests[0].start == 0
    assert set(batch.retired) == {first.request_id, second.request_id}


def test_one_request_may_fail_alone(make_rig, make_request: MakeRequest) -> None:
    rig = make_rig(16, 4)
    good, bad = make_request(4, max_tokens=9), make_request(8, max_tokens=9)
    rig.scheduler.add(good)
    rig.scheduler.add(bad)
    batch = rig.scheduler.schedule()
    result = StepResult((SampledTokens((3,)), SampledTokens(error="no token fits the grammar")), 0.0, 1.0)
    updates = rig.scheduler.update(batch, result)
    assert [(u.finish_reason, u.error) for u in updates] == [
        (None, None),
        (FinishReason.ERROR, "no token fits the grammar"),
    ]
    assert rig.scheduler.num_running == 1
    rig.check()


@pytest.mark.parametrize(("budget", "sampled"), [(8, SampledTokens()), (3, SampledTokens((1,)))])
def test_a_result_that_does_not_fit_ends_the_request(make_rig, make_request: MakeRequest, budget, sampled) -> None:
    rig = make_rig(16, 4, max_num_batched_tokens=budget)
    rig.scheduler.add(make_request(6, max_tokens=9))
    batch = rig.scheduler.schedule()
    (update,) = rig.scheduler.update(batch, StepResult((sampled,), 0.0, 1.0))
    assert update.finish_reason is FinishReason.ERROR
    assert "the executor drew" in (update.error or "")
    assert not rig.scheduler.has_work


def test_a_batch_lands_once_and_with_as_many_results_as_requests(make_rig, make_request: MakeRequest) -> None:
    rig = make_rig(16, 4)
    rig.scheduler.add(make_request(6, max_tokens=9))
    batch = rig.scheduler.schedule()
    with pytest.raises(ValueError, match="0 results for 1"):
        rig.scheduler.update(batch, StepResult((), 0.0, 1.0))
    rig.scheduler.update(batch, rig.model.run(batch))
    with pytest.raises(ValueError, match="not in flight"):
        rig.scheduler.update(batch, StepResult((SampledTokens((1,)),), 0.0, 1.0))
    with pytest.raises(ValueError, match="not in flight"):
        rig.scheduler.fail(batch, "lost")


def test_a_second_step_may_be_scheduled_before_the_first_lands(
    make_rig, make_request: MakeRequest, expected_output
) -> None:
    rig = make_rig(32, 4, max_num_batched_tokens=8)
    decoding, prefilling = make_request(3, request_id="a", max_tokens=5), make_request(20, request_id="b", max_tokens=3)
    rig.scheduler.add(decoding)
    rig.scheduler.add(prefilling)
    first = rig.scheduler.schedule()
    first_result = rig.model.run(first)
    second = rig.scheduler.schedule()
    # The token of `a` is still being drawn; the prompt of `b` goes on.
    assert ids(first) == ["a", "b"]
    assert [(s.request.request_id, s.start, s.num_tokens) for s in second.requests] == [("b", 5, 8)]
    second_result = rig.model.run(second)
    rig.scheduler.update(first, first_result)
    rig.scheduler.update(second, second_result)
    rig.run_all()
    for request in (decoding, prefilling):
        assert request.token_ids[request.num_prompt_tokens :] == expected_output(request, 8192)


def test_a_step_in_flight_is_not_in_the_cache_yet(make_rig, make_request: MakeRequest) -> None:
    rig = make_rig(32, 4, max_num_batched_tokens=8)
    prompt = list(range(20))
    rig.scheduler.add(make_request(prompt, max_tokens=3))
    first = rig.scheduler.schedule()
    second = rig.scheduler.schedule()
    assert (first.num_tokens, second.num_tokens) == (8, 8)
    twin = make_request(prompt)
    assert rig.pool.find_prefix(twin).num_tokens == 0
    rig.scheduler.update(first, StepResult((SampledTokens(),), 0.0, 1.0))
    assert rig.pool.find_prefix(twin).num_tokens == 8
    rig.scheduler.update(second, StepResult((SampledTokens(),), 0.0, 1.0))
    assert rig.pool.find_prefix(twin).num_tokens == 16


def test_a_request_preempted_while_in_flight_draws_its_token_again(
    make_rig, make_request: MakeRequest, expected_output
) -> None:
    rig = make_rig(4, 4)
    old, new = make_request(8, request_id="old", max_tokens=5), make_request(8, request_id="new", max_tokens=5)
    rig.scheduler.add(old)
    first = rig.scheduler.schedule()
    first_result = rig.model.run(first)
    rig.scheduler.add(new)
    second = rig.scheduler.schedule()
    second_result = rig.model.run(second)
    rig.scheduler.update(first, first_result)
    third = rig.scheduler.schedule()
    assert (ids(first), ids(second), ids(third)) == (["old"], ["new"], ["old"])
    assert third.retired == ("new",)
    third_result = rig.model.run(third)
    assert rig.scheduler.update(second, second_result) == []
    rig.scheduler.update(third, third_result)
    rig.check()
    rig.run_all()
    for request in (old, new):
        assert request.token_ids[8:] == expected_output(request, 8192)


def test_a_failed_step_voids_its_requests_in_the_next(make_rig, make_request: MakeRequest) -> None:
    rig = make_rig(32, 4, max_num_batched_tokens=8)
    request = make_request(20, request_id="a", max_tokens=3)
    rig.scheduler.add(request)
    first = rig.scheduler.schedule()
    second = rig.scheduler.schedule()
    assert ids(second) == ["a"]
    assert len(rig.scheduler.fail(first, "lost")) == 1
    assert rig.scheduler.update(second, StepResult((SampledTokens(),), 0.0, 1.0)) == []
    assert request.finish_reason is FinishReason.ERROR
    rig.check()
