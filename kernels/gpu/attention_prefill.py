"""Prefill attention: chunks of many query tokens a request, causal, the heads of a group packed as rows.

FlashAttention-2 (Dao, 2023) over a paged cache: a program takes `BLOCK_M // GROUP` tokens of one request and one KV
head. Tiles that every row sees whole run without masks; only the window's edge and the diagonal pay for one. The grid
is an upper bound known on the host; a program finds its request by binary search in `query_start`.
"""
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.gpu import tuning
from kernels.gpu.definitions import KVScales
from kernels.gpu.kv_tile import load_scales, load_tile, page_numbers
from kernels.metadata import AttentionMetadata

_LOG2_E = 1.4426950408889634


@triton.jit
def find_request(query_start, block, first_request, num_requests, BLOCK_Q: tl.constexpr):
    """The last request whose first q-block is at or before `block`; request i begins at `start_i // BLOCK_Q + i`."""
    low = first_request
    high = num_requests
    while high - low > 1:
        middle = (low + high) // 2
        begin = (tl.load(query_start + middle) - first_request) // BLOCK_Q + middle - first_request
        if begin <= block:
            low = middle
        else:
            high = middle
    return low


@triton.jit
def locate(query_start, block, first_request, num_requests, BLOCK_Q: tl.constexpr):
    """`(request, its first packed token, its tokens, first token of the block within the request)`."""
    request = find_request(query_start, block, first_request, num_requests, BLOCK_Q)
    query_begin = tl.load(query_start + request)
    query_len = tl.load(query_start + request + 1) - query_begin
    own_first = (query_begin - first_request) // BLOCK_Q + request - first_request
    return request, query_begin, query_len, (block - own_first) * BLOCK_Q


@triton.jit
def key_range(first_position, last_position, TILE: tl.constexpr, WINDOW: tl.constexpr):
    """`(begin, low, full_low, full_high, end)`: the block sees keys `[begin, end)`, tiles from `low`; every row sees
    the tiles of `[full_low, full_high)` whole."""
    begin = 0
    low = 0
    full_low = 0
    if WINDOW > 0:
        begin = tl.maximum(first_position - WINDOW + 1, 0)
        low = begin // TILE * TILE
        full_low = tl.maximum(tl.cdiv(tl.maximum(last_position - WINDOW + 1, 0), TILE) * TILE, low)
    full_high = tl.maximum((first_position + 1) // TILE * TILE, full_low)
    return begin, low, full_low, full_high, last_position + 1


@triton.jit
def attend(
    acc,
    total,
    peak,
    queries,
    positions,
    low,
    high,
    begin,
    end,
    k_base,
    v_base,
    k_scale_base,
    v_scale_base,
    table_row,
    scale_log2,
    k_stride_block,
    v_stride_block,
    scales_stride_block,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE: tl.constexpr,
    TILE: tl.constexpr,
    WINDOW: tl.constexpr,
    QUANTIZED: tl.constexpr,
    MASKED: tl.constexpr,
    GUARD: tl.constexpr,
):
    """Take in the keys `[low, high)`, `low` a multiple of TILE; without MASKED every row sees all of them.

    Keys outside `[begin, end)` are seen by no row and never read. GUARD: a row may meet a tile before its first key.
    """
    for start in range(low, high, TILE):
        keys = start + tl.arange(0, TILE)
        valid = (keys >= begin) & (keys < end)
        pages = page_numbers(table_row, keys, valid, PAGE, MASKED)
        k = load_tile(k_base, k_stride_block, pages, keys, valid, PAGE, HEAD_DIM, BLOCK_D, MASKED)
        scores = tl.dot(queries, tl.trans(k.to(queries.dtype)), input_precision="ieee")
        if QUANTIZED:
            scores *= load_scales(k_scale_base, scales_stride_block, pages, keys, valid, PAGE, MASKED)[None, :]
        if MASKED:
            visible = keys[None, :] <= positions[:, None]
            if WINDOW > 0:
                visible = visible & (keys[None, :] > positions[:, None] - WINDOW)
            scores = tl.where(visible, scores, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(scores, 1) * scale_log2)
        base = new_peak
        if MASKED and GUARD:
            # A row that has seen no key yet keeps a peak of -inf, and -inf - -inf is no number.
            base = tl.where(new_peak == float("-inf"), 0.0, new_peak)
        weights = tl.exp2(scores * scale_log2 - base[:, None])
        fade = tl.exp2(peak - base)
        total = total * fade + tl.sum(weights, 1)
        v = load_tile(v_base, v_stride_block, pages, keys, valid, PAGE, HEAD_DIM, BLOCK_D, MASKED)
        if QUANTIZED:
            weights *= load_scales(v_scale_base, scales_stride_block, pages, keys, valid, PAGE, MASKED)[None, :]
        acc = tl.dot(weights.to(queries.dtype), v.to(queries.dtype), acc * fade[:, None], input_precision="ieee")
        peak = new_peak
    return acc, total, peak


@triton.jit(do_not_specialize=["first_request", "num_requests", "table_stride"])
def prefill_kernel(
    out,
    q,
    k_cache,
    v_cache,
    k_scales,
    v_scales,
    query_start,
    context_lens,
    block_tables,
    scale_log2,
    out_stride_token,
    out_stride_head,
    q_stride_token,
    q_stride_head,
    k_stride_block,
    k_stride_head,
    v_stride_block,
    v_stride_head,
    scales_stride_block,
    scales_stride_head,
    table_stride,
    first_request,
    num_requests,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE: tl.constexpr,
    TILE: tl.constexpr,
    WINDOW: tl.constexpr,
    QUANTIZED: tl.constexpr,
):
    BLOCK_Q: tl.constexpr = BLOCK_M // GROUP
    kv_head = tl.program_id(0).to(tl.int64)
    # The last blocks of a chunk see the most keys: start them first, so that the short ones fill the end.
    block = tl.num_programs(1) - 1 - tl.program_id(1)
    request, query_begin, query_len, token_begin = locate(query_start, block, first_request, num_requests, BLOCK_Q)
    if token_begin >= query_len:
        return

    length = tl.load(context_lens + request)
    lane = tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    token = token_begin + lane // GROUP
    head = kv_head * GROUP + lane % GROUP
    used = ((lane < BLOCK_Q * GROUP) & (token < query_len))[:, None] & (d < HEAD_DIM)[None, :]
    packed = (query_begin + token).to(tl.int64)
    q_offsets = packed * q_stride_token + head * q_stride_head
    queries = tl.load(q + q_offsets[:, None] + d[None, :], mask=used, other=0.0)

    offset = length - query_len
    positions = offset + token
    begin, low, full_low, full_high, end = key_range(
        offset + token_begin, offset + tl.minimum(token_begin + BLOCK_Q, query_len) - 1, TILE, WINDOW
    )

    k_base = k_cache + kv_head * k_stride_head
    v_base = v_cache + kv_head * v_stride_head
    k_scale_base = k_scales
    v_scale_base = v_scales
    if QUANTIZED:
        k_scale_base += kv_head * scales_stride_head
        v_scale_base += kv_head * scales_stride_head
    table_row = block_tables + request.to(tl.int64) * table_stride

    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    if WINDOW > 0:
        acc, total, peak = attend(
            acc, total, peak, queries, positions, low, tl.minimum(full_low, end), begin, end,
            k_base, v_base, k_scale_base, v_scale_base, table_row,
            scale_log2, k_stride_block, v_stride_block, scales_stride_block,
            HEAD_DIM, BLOCK_D, PAGE, TILE, WINDOW, QUANTIZED, True, WINDOW > 0,
        )  # fmt: skip
    acc, total, peak = attend(
        acc, total, peak, queries, positions, full_low, full_high, begin, end,
        k_base, v_base, k_scale_base, v_scale_base, table_row,
        scale_log2, k_stride_block, v_stride_block, scales_stride_block,
        HEAD_DIM, BLOCK_D, PAGE, TILE, WINDOW, QUANTIZED, False, WINDOW > 0,
    )  # fmt: skip
    acc, total, peak = attend(
        acc, total, peak, queries, positions, full_high, end, begin, end,
        k_base, v_base, k_scale_base, v_scale_base, table_row,
        scale_log2, k_stride_block, v_stride_block, scales_stride_block,
        HEAD_DIM, BLOCK_D, PAGE, TILE, WINDOW, QUANTIZED, True, WINDOW > 0,
    )  # fmt: skip

    result = acc / tl.where(total > 0, total, 1.0)[:, None]
    out_offsets = packed * out_stride_token + head * out_stride_head
    tl.store(out + out_offsets[:, None] + d[None, :], result.to(out.dtype.element_ty), mask=used)


def prefill_attention(
    out: torch.Tensor,
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    metadata: AttentionMetadata,
    scale: float,
    window: int | None,
    scales: KVScales | None,
) -> None:
    """Write the rows of `out` after the first `num_decodes`; arguments were checked by `paged_attention`."""
    kv_heads, page, head_dim = k_cache.shape[1:]
    group = q.shape[1] // kv_heads
    num_requests = metadata.context_lens.shape[0]
    element_bytes = k_cache.element_size() if q.element_size() == 2 else 4
    config = tuning.prefill_config(q.device, element_bytes, head_dim, group)
    # Each request adds at most one block that is not full.
    block_q = config.block_m // group
    blocks = (q.shape[0] - metadata.num_decodes) // block_q + num_requests - metadata.num_decodes
    prefill_kernel[(kv_heads, blocks)](
        out,
        q,
        k_cache,
        v_cache,
        scales.k if scales else None,
        scales.v if scales else None,
        metadata.query_start,
        metadata.context_lens,
        metadata.block_tables,
        scale * _LOG2_E,
        out.stride(0),
        out.stride(1),
        q.stride(0),
        q.stride(1),
        k_cache.stride(0),
        k_cache.stride(1),
        v_cache.stride(0),
        v_cache.stride(1),
        scales.k.stride(0) if scales else 0,
        scales.k.stride(1) if scales else 0,
        metadata.block_tables.stride(0),
        metadata.num_decodes,
        num_requests,
        GROUP=group,
        BLOCK_M=config.block_m,
        HEAD_DIM=head_dim,
        BLOCK_D=triton.next_power_of_2(head_dim),
        PAGE=page,
        TILE=config.tile,
        WINDOW=window or 0,
        QUANTIZED=scales is not None,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
