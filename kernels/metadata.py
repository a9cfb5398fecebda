"""Where the packed tokens of a step belong: the one argument every attention kernel shares."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """Layout of `T` packed tokens of `B` requests, requests one after another, no padding.

    Attributes:
        query_start: `[B + 1]` int32, offset of each request's tokens in `T`.
        context_lens: `[B]` int32, tokens of each request in the cache once this step's are written.
        block_tables: `[B, max_blocks]` int32, block numbers of each request, rows padded with 0.
        slot_mapping: `[T]` int64, `block * block_size + offset` for each token's key and value; -1 writes nothing.
        positions: `[T]` int64, position of each token in its request.
        max_query_len: upper bound of tokens one request has in this step, known on the host.
        max_context_len: upper bound of `context_lens`, known on the host.
        num_decodes: the first so many requests have exactly one query token each.
    """

    query_start: torch.Tensor
    context_lens: torch.Tensor
    block_tables: torch.Tensor
    slot_mapping: torch.Tensor
    positions: torch.Tensor
    max_query_len: int
    max_context_len: int
    num_decodes: int
