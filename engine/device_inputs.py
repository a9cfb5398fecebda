"""From a scheduled batch to the one array of int32 that a step sends to the device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.batch import Batch
from engine.batch_inputs import sample_rows
from engine.request_rows import RequestRows, Seat

# A token whose id only the device knows: the request's last drawn one.
UNKNOWN_TOKEN = -1


@dataclass(frozen=True, slots=True)
class StepArrays:
    """What a step sends, each part int32, and what the host keeps.

    Attributes:
        rows, computed, lengths: `[B]`: row, tokens in the cache before the step and tokens of the step.
        tokens: `[T]`, packed; `UNKNOWN_TOKEN` where the device knows better.
        where, blocks: changed entries of the flat block tables.
        sampling: batch positions that draw a token, once for each token under speculation.
        last: `[R]` packed index of the token that each of those draws from.
        ends: `[R]` the position of the token to draw.
        num_decodes: the first so many requests have one token.
        max_context_len: longest context after the step.
    """

    rows: np.ndarray
    computed: np.ndarray
    lengths: np.ndarray
    tokens: np.ndarray
    where: np.ndarray
    blocks: np.ndarray
    sampling: tuple[int, ...]
    last: np.ndarray
    ends: np.ndarray
    num_decodes: int
    max_context_len: int

    @property
    def num_requests(self) -> int:
        return len(self.rows)

    @property
    def decodes_only(self) -> bool:
        return self.num_decodes == len(self.rows)


def step_arrays(batch: Batch, rows: RequestRows, seats: list[Seat], block_size: int) -> StepArrays:
    """Read `batch` once. Raises `ValueError` when a token is unknown that the device does not know either."""
    scheduled = batch.requests
    count = len(scheduled)
    starts = np.fromiter((each.start for each in scheduled), dtype=np.int32, count=count)
    lengths = np.fromiter((each.num_tokens for each in scheduled), dtype=np.int32, count=count)
    ends = starts + lengths
    tokens: list[int] = []
    for each in scheduled:
        known = each.request.token_ids[each.start : each.end]
        missing = each.num_tokens - len(known) - len(each.draft)
        tokens += known
        tokens += each.draft
        if missing:
            if each.num_tokens != 1:
                raise ValueError(
                    f"request {each.request.request_id!r} is scheduled {missing} tokens past what is known"
                )
            tokens.append(UNKNOWN_TOKEN)
    where, blocks = rows.table_changes(seats, (-(-ends // block_size)).tolist())
    sampling = tuple(index for index, each in enumerate(scheduled) if each.samples for _ in range(len(each.draft) + 1))
    last = sample_rows(scheduled, np.cumsum(lengths))
    # Positions of the tokens to draw: one after the token drawn from.
    begins = np.cumsum(lengths) - lengths
    num_decodes = 0
    while num_decodes < count and lengths[num_decodes] == 1:
        num_decodes += 1
    chosen = list(sampling)
    return StepArrays(
        rows=np.fromiter((seat.row for seat in seats), dtype=np.int32, count=count),
        computed=starts,
        lengths=lengths,
        tokens=np.array(tokens, dtype=np.int32),
        where=np.array(where, dtype=np.int32),
        blocks=np.array(blocks, dtype=np.int32),
        sampling=sampling,
        last=last.astype(np.int32),
        ends=(last - begins[chosen] + starts[chosen] + 1).astype(np.int32),
        num_decodes=num_decodes,
        max_context_len=int(ends.max()),
    )


def padded_decodes(arrays: StepArrays, size: int, padding_row: int) -> np.ndarray:
    """`[4, size]` int32: rows, computed, lengths and tokens of a batch of decodes, padded with requests of length 0."""
    packed = np.zeros((4, size), dtype=np.int32)
    count = arrays.num_requests
    packed[0, count:] = padding_row
    for part, values in zip(packed, (arrays.rows, arrays.computed, arrays.lengths, arrays.tokens)):
        part[:count] = values
    return packed
