"""Admission beside decodes that a caller takes itself: whom and how much the scheduler admits in any case."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.block_pool import BlockPool
from engine.request import Request, SamplingParams
from engine.scheduler_beside import SchedulerBeside
from engine.scheduler_config import SchedulerConfig
from tests.engine.fake_model import PagedFakeModel


def decoding(count: int, blocks: int, *, caching: bool = False) -> SchedulerBeside:
    """`count` requests that have one token each to compute."""
    config = SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=64, max_model_len=400, watermark=0.02)
    scheduler = SchedulerBeside(config, BlockPool(blocks, 4, prefix_caching=caching))
    model = PagedFakeModel(4)
    for number in range(count):
        scheduler.add(request(number, 9, number))
    while any(each.num_computed_tokens < each.num_prompt_tokens for each in scheduler.running) or scheduler.num_waiting:
        batch = scheduler.schedule()
        scheduler.update(batch, model.run(batch))
    return scheduler


def request(number: int, prompt: int, priority_key: int) -> Request:
    sampling = SamplingParams(max_tokens=100, ignore_eos=True)
    return Request(f"r{number}", (7,) * prompt, sampling, float(number), priority_key % 2)


def parts(batch) -> list[tuple[str, int, int, bool]]:
    return [(each.request.request_id, each.start, each.num_tokens, each.samples) for each in batch.requests]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 6), st.lists(st.integers(1, 90), min_size=1, max_size=5), st.sampled_from([60, 120, 400]))
def test_who_is_admitted_beside_decodes_is_who_is_admitted_among_them(count, prompts, blocks):
    plain, beside = decoding(count, blocks), decoding(count, blocks)
    for scheduler in (plain, beside):
        for number, prompt in enumerate(prompts, start=100):
            scheduler.add(request(number, prompt, number))
    waiting = beside.num_waiting
    found = beside.schedule_beside(count, owed_blocks=count)
    expected = parts(plain.schedule())
    admitted = [part for part in expected if int(part[0][1:]) >= 100]
    if found is None:
        assert beside.num_waiting == waiting
        return
    assert parts(found) == admitted
    assert beside.num_waiting == plain.num_waiting
    assert [each.request_id for each in beside.running] == [each.request_id for each in plain.running]


def test_it_leaves_the_choice_to_schedule_where_blocks_are_few_or_shared():
    few = decoding(2, 60)
    few.add(request(100, 90, 0))
    assert few.schedule_beside(2, owed_blocks=40) is None
    shared = decoding(2, 400, caching=True)
    shared.add(request(100, 16, 0))
    assert shared.schedule_beside(2, owed_blocks=2) is None
    idle = decoding(2, 400)
    assert idle.schedule_beside(2, owed_blocks=2) is None
    idle.add(request(100, 16, 0))
    assert idle.schedule_beside(2, owed_blocks=2) is not None
