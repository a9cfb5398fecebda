"""Positions, cache slots and lengths of a step, computed on the device from what the scheduler decided.

`step_inputs` serves any packed batch; `advance_decodes` moves a batch of decodes on by one token inside a captured
graph, so that a decode step needs nothing from the host.
"""
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.gpu import checks

_BLOCK = 256


@triton.jit(
    do_not_specialize=["table_stride", "num_requests", "num_tokens"],
    # Slices of one array that came from the host: where each begins varies with the batch.
    do_not_specialize_on_alignment=["num_computed", "query_lens"],
)
def step_inputs_kernel(
    query_start,
    context_lens,
    positions,
    slots,
    num_computed,
    query_lens,
    block_tables,
    table_stride,
    num_requests,
    num_tokens,
    PAGE: tl.constexpr,
    REQUESTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program r < num_requests fills the tokens of request r; the one after them fills the rest with no slot."""
    request = tl.program_id(0)
    others = tl.arange(0, REQUESTS)
    before = tl.load(query_lens + others, mask=others < tl.minimum(request, num_requests), other=0)
    begin = tl.sum(before, 0)
    tl.store(query_start + request, begin)
    if request == num_requests:
        for start in range(begin, num_tokens, BLOCK):
            tokens = start + tl.arange(0, BLOCK)
            tl.store(positions + tokens, tl.zeros([BLOCK], tl.int64), mask=tokens < num_tokens)
            tl.store(slots + tokens, tl.full([BLOCK], -1, tl.int64), mask=tokens < num_tokens)
    else:
        computed = tl.load(num_computed + request)
        length = tl.load(query_lens + request)
        tl.store(context_lens + request, computed + length)
        table = block_tables + request.to(tl.int64) * table_stride
        for start in range(0, length, BLOCK):
            tokens = start + tl.arange(0, BLOCK)
            mask = tokens < length
            position = computed + tokens
            block = tl.load(table + position // PAGE, mask=mask, other=0).to(tl.int64)
            tl.store(positions + begin + tokens, position.to(tl.int64), mask=mask)
            tl.store(slots + begin + tokens, block * PAGE + position % PAGE, mask=mask)


@triton.jit(do_not_specialize=["table_stride", "num_requests"])
def advance_kernel(
    positions, slots, context_lens, block_tables, table_stride, num_requests, PAGE: tl.constexpr, BLOCK: tl.constexpr
):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = rows < num_requests
    length = tl.load(context_lens + rows, mask=mask, other=0)
    used = mask & (length > 0)
    block = tl.load(block_tables + rows.to(tl.int64) * table_stride + length // PAGE, mask=used, other=0).to(tl.int64)
    tl.store(positions + rows, length.to(tl.int64), mask=mask)
    tl.store(slots + rows, tl.where(used, block * PAGE + length % PAGE, -1), mask=mask)
    tl.store(context_lens + rows, length + 1, mask=used)


def step_inputs(
    num_computed: torch.Tensor, query_lens: torch.Tensor, block_tables: torch.Tensor, block_size: int, num_tokens: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """`(query_start, context_lens, positions, slot_mapping)`; arguments as in `definitions.step_inputs`."""
    requests = num_computed.shape[0]
    checks.shape("query_lens", query_lens, requests)
    checks.shape("block_tables", block_tables, requests, None)
    checks.dense_tail("block_tables", block_tables)
    for name, tensor in (("num_computed", num_computed), ("query_lens", query_lens), ("block_tables", block_tables)):
        checks.dtype(name, tensor, torch.int32)
    checks.same_device(num_computed=num_computed, query_lens=query_lens, block_tables=block_tables)
    device = num_computed.device
    query_start = torch.empty(requests + 1, dtype=torch.int32, device=device)
    context_lens = torch.empty(requests, dtype=torch.int32, device=device)
    positions = torch.empty(num_tokens, dtype=torch.int64, device=device)
    slots = torch.empty(num_tokens, dtype=torch.int64, device=device)
    step_inputs_kernel[(requests + 1,)](
        query_start,
        context_lens,
        positions,
        slots,
        num_computed,
        query_lens,
        block_tables,
        block_tables.stride(0),
        requests,
        num_tokens,
        PAGE=block_size,
        REQUESTS=triton.next_power_of_2(max(1, requests)),
        BLOCK=_BLOCK,
        num_warps=4,
    )
    return query_start, context_lens, positions, slots


def advance_decodes(
    context_lens: torch.Tensor, block_tables: torch.Tensor, block_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """`(positions, slot_mapping)` of one more token for each request; adds it to `context_lens` in place.

    Shapes: context_lens `[B]` int32, block_tables `[B, max_blocks]` int32. A row of length 0 is padding of a captured
    graph: it stays 0 and gets position 0 and slot -1.
    """
    requests = context_lens.shape[0]
    checks.shape("block_tables", block_tables, requests, None)
    checks.dense_tail("block_tables", block_tables)
    checks.dtype("context_lens", context_lens, torch.int32)
    checks.dtype("block_tables", block_tables, torch.int32)
    checks.same_device(context_lens=context_lens, block_tables=block_tables)
    positions = torch.empty(requests, dtype=torch.int64, device=context_lens.device)
    slots = torch.empty(requests, dtype=torch.int64, device=context_lens.device)
    if requests > 0:
        advance_kernel[(triton.cdiv(requests, 128),)](
            positions,
            slots,
            context_lens,
            block_tables,
            block_tables.stride(0),
            requests,
            PAGE=block_size,
            BLOCK=128,
            num_warps=4,
        )
    return positions, slots
