"""Packing a batch: each packed token lands on its own slot, in order, without padding."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.batch import Batch, ScheduledRequest
from engine.batch_inputs import pack
from engine.request import Request, SamplingParams

BLOCK_SIZE = 4


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(0, 19), st.integers(1, 20)), min_size=1, max_size=6),
    st.randoms(use_true_random=False),
)
def test_each_token_has_its_position_slot_and_row(shapes, rng):
    blocks = list(range(100))
    rng.shuffle(blocks)
    scheduled = []
    for index, (length, start, count) in enumerate(shapes):
        start = min(start, length - 1)
        count = min(count, length - start)
        request = Request(f"r{index}", tuple(rng.randrange(1000) for _ in range(length)), SamplingParams(), 0.0)
        request.block_table = [blocks.pop() for _ in range(-(-(start + count) // BLOCK_SIZE) + rng.randrange(2))]
        scheduled.append(ScheduledRequest(request, start, count, start + count == length))
    inputs = pack(Batch(0, tuple(scheduled)), BLOCK_SIZE, torch.device("cpu"))

    metadata, at = inputs.metadata, 0
    for row, each in enumerate(scheduled):
        assert metadata.query_start[row] == at
        assert metadata.context_lens[row] == each.end
        for offset in range(each.num_tokens):
            position = each.start + offset
            assert inputs.token_ids[at] == each.request.token_ids[position]
            assert metadata.positions[at] == position
            block = each.request.block_table[position // BLOCK_SIZE]
            assert metadata.slot_mapping[at] == block * BLOCK_SIZE + position % BLOCK_SIZE
            at += 1
    assert metadata.query_start[-1] == at == len(inputs.token_ids)
    lasts = [int(metadata.query_start[row + 1]) - 1 for row, each in enumerate(scheduled) if each.samples]
    assert inputs.sample_rows.tolist() == lasts
    assert metadata.max_query_len == max(each.num_tokens for each in scheduled)
    assert metadata.max_context_len == max(each.end for each in scheduled)
    counts = [each.num_tokens for each in scheduled] + [2]
    assert metadata.num_decodes == next(i for i, count in enumerate(counts) if count != 1)
