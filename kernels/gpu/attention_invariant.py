"""Deterministic attention: a query's result is a function of its own request, however the batch and its chunks are cut.

Decodes and chunks take the same path with the same tiles. Keys are cut at multiples of SEGMENT, counted from the start
of the request; each segment of each block of queries is one program, and a second kernel joins a row's segments in
order. So a token gets the same bits whether its prompt came whole, in chunks or token by token, whatever shares the
batch. The partial results pass through memory, a bounded piece of the blocks at a time.
"""
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.gpu import tuning
from kernels.gpu.attention_prefill import attend, key_range, locate
from kernels.gpu.definitions import KVScales
from kernels.metadata import AttentionMetadata

_LOG2_E = 1.4426950408889634


@triton.jit(do_not_specialize=["first_block", "num_requests", "num_splits", "table_stride"])
def segment_kernel(
    partial_out,
    partial_lse,
    q,
    k_cache,
    v_cache,
    k_scales,
    v_scales,
    query_start,
    context_lens,
    block_tables,
    scale_log2,
    q_stride_token,
    q_stride_head,
    k_stride_block,
    k_stride_head,
    v_stride_block,
    v_stride_head,
    scales_stride_block,
    scales_stride_head,
    table_stride,
    first_block,
    num_requests,
    num_splits,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE: tl.constexpr,
    TILE: tl.constexpr,
    WINDOW: tl.constexpr,
    QUANTIZED: tl.constexpr,
    SEGMENT: tl.constexpr,
):
    BLOCK_Q: tl.constexpr = BLOCK_M // GROUP
    kv_head = tl.program_id(0).to(tl.int64)
    block = first_block + tl.program_id(1)
    request, query_begin, query_len, token_begin = locate(query_start, block, 0, num_requests, BLOCK_Q)
    if token_begin >= query_len:
        return
    offset = tl.load(context_lens + request) - query_len
    begin, low, _, _, end = key_range(
        offset + token_begin, offset + tl.minimum(token_begin + BLOCK_Q, query_len) - 1, TILE, WINDOW
    )
    segment_begin = (low // SEGMENT + tl.program_id(2)) * SEGMENT
    low = tl.maximum(low, segment_begin)
    high = tl.minimum(end, segment_begin + SEGMENT)
    if low >= high:
        return

    lane = tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    token = token_begin + lane // GROUP
    used = (lane < BLOCK_Q * GROUP) & (token < query_len)
    mask = used[:, None] & (d < HEAD_DIM)[None, :]
    q_offsets = (query_begin + token).to(tl.int64) * q_stride_token + (kv_head * GROUP + lane % GROUP) * q_stride_head
    queries = tl.load(q + q_offsets[:, None] + d[None, :], mask=mask, other=0.0)
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
    # One masked loop for all tiles: a tile a row sees whole must take the same instructions wherever its block begins.
    acc, total, peak = attend(
        acc, total, peak, queries, offset + token, low, high, begin, end,
        k_base, v_base, k_scale_base, v_scale_base, table_row,
        scale_log2, k_stride_block, v_stride_block, scales_stride_block,
        HEAD_DIM, BLOCK_D, PAGE, TILE, WINDOW, QUANTIZED, True, True,
    )  # fmt: skip

    # A row that sees no key of this segment leaves zeros and a log-sum-exp of -inf.
    divisor = tl.where(total > 0, total, 1.0)
    result = acc / divisor[:, None]
    slot = ((tl.program_id(1) * tl.num_programs(0) + kv_head) * num_splits + tl.program_id(2)) * BLOCK_M + lane
    tl.store(partial_out + slot[:, None] * HEAD_DIM + d[None, :], result, mask=mask)
    tl.store(partial_lse + slot, peak + tl.log2(divisor), mask=used)


@triton.jit(do_not_specialize=["first_block", "num_requests", "num_splits"])
def join_kernel(
    out,
    partial_out,
    partial_lse,
    query_start,
    context_lens,
    out_stride_token,
    out_stride_head,
    first_block,
    num_requests,
    num_splits,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TILE: tl.constexpr,
    WINDOW: tl.constexpr,
    SEGMENT: tl.constexpr,
    ROWS: tl.constexpr,
):
    """ROWS rows of one block: its segments by their log-sum-exp, one after another."""
    BLOCK_Q: tl.constexpr = BLOCK_M // GROUP
    kv_head = tl.program_id(0).to(tl.int64)
    block = first_block + tl.program_id(1)
    request, query_begin, query_len, token_begin = locate(query_start, block, 0, num_requests, BLOCK_Q)
    if token_begin >= query_len:
        return
    offset = tl.load(context_lens + request) - query_len
    _, low, _, _, end = key_range(
        offset + token_begin, offset + tl.minimum(token_begin + BLOCK_Q, query_len) - 1, TILE, WINDOW
    )
    segments = tl.cdiv(tl.maximum(end, 0) - low // SEGMENT * SEGMENT, SEGMENT)

    lane = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, BLOCK_D)
    token = token_begin + lane // GROUP
    used = (lane < BLOCK_Q * GROUP) & (token < query_len)
    mask = used[:, None] & (d < HEAD_DIM)[None, :]
    first_slot = (tl.program_id(1) * tl.num_programs(0) + kv_head) * num_splits * BLOCK_M
    peak = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, BLOCK_D], tl.float32)
    for segment in range(segments):
        slot = first_slot + segment * BLOCK_M + lane
        lse = tl.load(partial_lse + slot, mask=used, other=float("-inf"))
        values = tl.load(partial_out + slot[:, None] * HEAD_DIM + d[None, :], mask=mask, other=0.0)
        new_peak = tl.maximum(peak, lse)
        base = tl.where(new_peak == float("-inf"), 0.0, new_peak)
        weight = tl.exp2(lse - base)
        fade = tl.exp2(peak - base)
        total = total * fade + weight
        acc = acc * fade[:, None] + values * weight[:, None]
        peak = new_peak
    result = acc / tl.where(total > 0, total, 1.0)[:, None]
    out_offsets = (query_begin + token).to(tl.int64) * out_stride_token
    out_offsets += (kv_head * GROUP + lane % GROUP) * out_stride_head
    tl.store(out + out_offsets[:, None] + d[None, :], result.to(out.dtype.element_ty), mask=mask)


def invariant_attention(
    out: torch.Tensor,
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    metadata: AttentionMetadata,
    scale: float,
    window: int | None,
    scales: KVScales | None,
) -> None:
    """Write all rows of `out`; arguments were checked by `paged_attention`."""
    kv_heads, page, head_dim = k_cache.shape[1:]
    group = q.shape[1] // kv_heads
    num_requests = metadata.context_lens.shape[0]
    element_bytes = k_cache.element_size() if q.element_size() == 2 else 4
    config = tuning.prefill_config(q.device, element_bytes, head_dim, group)
    block_q = config.block_m // group
    blocks = q.shape[0] // block_q + num_requests
    segment = tuning.SEGMENT
    assert segment % config.tile == 0, "a tile must lie in one segment"
    num_splits = triton.cdiv(metadata.max_context_len, segment)
    if window is not None:
        num_splits = min(num_splits, triton.cdiv(window + block_q, segment) + 1)
    bytes_per_block = kv_heads * num_splits * config.block_m * (head_dim + 1) * 4
    blocks_at_once = min(blocks, max(1, tuning.SEGMENT_WORKSPACE_BYTES // bytes_per_block))
    slots = blocks_at_once * kv_heads * num_splits * config.block_m
    partial_out = torch.empty((slots, head_dim), dtype=torch.float32, device=q.device)
    partial_lse = torch.empty((slots,), dtype=torch.float32, device=q.device)
    block_d = triton.next_power_of_2(head_dim)
    # As many as leave a thread 16 sums.
    rows = min(config.block_m, 16, 2048 // block_d)
    for first_block in range(0, blocks, blocks_at_once):
        count = min(blocks_at_once, blocks - first_block)
        segment_kernel[(kv_heads, count, num_splits)](
            partial_out,
            partial_lse,
            q,
            k_cache,
            v_cache,
            scales.k if scales else None,
            scales.v if scales else None,
            metadata.query_start,
            metadata.context_lens,
            metadata.block_tables,
            scale * _LOG2_E,
            q.stride(0),
            q.stride(1),
            k_cache.stride(0),
            k_cache.stride(1),
            v_cache.stride(0),
            v_cache.stride(1),
            scales.k.stride(0) if scales else 0,
            scales.k.stride(1) if scales else 0,
            metadata.block_tables.stride(0),
            first_block,
            num_requests,
            num_splits,
            GROUP=group,
            BLOCK_M=config.block_m,
            HEAD_DIM=head_dim,
            BLOCK_D=block_d,
            PAGE=page,
            TILE=config.tile,
            WINDOW=window or 0,
            QUANTIZED=scales is not None,
            SEGMENT=segment,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
        join_kernel[(kv_heads, count, config.block_m // rows)](
            out,
            partial_out,
            partial_lse,
            metadata.query_start,
            metadata.context_lens,
            out.stride(0),
            out.stride(1),
            first_block,
            num_requests,
            num_splits,
            GROUP=group,
            BLOCK_M=config.block_m,
            HEAD_DIM=head_dim,
            BLOCK_D=block_d,
            TILE=config.tile,
            WINDOW=window or 0,
            SEGMENT=segment,
            ROWS=rows,
            num_warps=4,
        )
