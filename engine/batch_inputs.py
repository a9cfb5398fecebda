"""From a scheduled batch to the tensors of one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from engine.batch import Batch, ScheduledRequest
from kernels.metadata import AttentionMetadata


@dataclass(frozen=True, slots=True)
class BatchInputs:
    """`token_ids` `[T]` int64; `sample_rows` `[R]` int64: the packed index of the last token of each request that
    samples, and before it those of the draft's other positions; `metadata` as the attention kernels take it."""

    token_ids: torch.Tensor
    sample_rows: torch.Tensor
    metadata: AttentionMetadata


def sample_rows(scheduled: Sequence[ScheduledRequest], packed_ends: np.ndarray) -> np.ndarray:
    """`[R]` int64: packed index of every token after which a token is drawn; `packed_ends` `[B]` ends each request."""
    rows: list[int] = []
    for each, end in zip(scheduled, packed_ends.tolist()):
        if each.samples:
            rows.extend(range(end - 1 - len(each.draft), end))
    return np.array(rows, dtype=np.int64)


def pack(batch: Batch, block_size: int, device: torch.device) -> BatchInputs:
    """Pack the tokens of `batch`, requests one after another in the batch's order."""
    scheduled = batch.requests
    lengths = np.fromiter((each.num_tokens for each in scheduled), dtype=np.int64, count=len(scheduled))
    starts = np.fromiter((each.start for each in scheduled), dtype=np.int64, count=len(scheduled))
    ends = starts + lengths
    query_start = np.zeros(len(scheduled) + 1, dtype=np.int32)
    np.cumsum(lengths, out=query_start[1:])

    block_counts = -(-ends // block_size)
    tables = np.zeros((len(scheduled), int(block_counts.max())), dtype=np.int32)
    token_ids: list[int] = []
    for row, each in enumerate(scheduled):
        count = block_counts[row]
        tables[row, :count] = each.request.block_table[:count]
        token_ids.extend(each.request.token_ids[each.start : each.end])
        token_ids.extend(each.draft)

    rows = np.repeat(np.arange(len(scheduled)), lengths)
    positions = np.arange(query_start[-1]) - np.repeat(query_start[:-1] - starts, lengths)
    slots = tables[rows, positions // block_size].astype(np.int64) * block_size + positions % block_size

    def tensor(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).to(device, non_blocking=True)

    num_decodes = 0
    while num_decodes < len(scheduled) and scheduled[num_decodes].num_tokens == 1:
        num_decodes += 1
    return BatchInputs(
        token_ids=torch.tensor(token_ids, dtype=torch.int64, device=device),
        sample_rows=tensor(sample_rows(scheduled, query_start[1:])),
        metadata=AttentionMetadata(
            query_start=tensor(query_start),
            context_lens=tensor(ends.astype(np.int32)),
            block_tables=tensor(tables),
            slot_mapping=tensor(slots),
            positions=tensor(positions.astype(np.int64)),
            max_query_len=int(lengths.max()),
            max_context_len=int(ends.max()),
            num_decodes=num_decodes,
        ),
    )
