"""Decode attention: one query token a request, the cache read once for all heads of a group, splits along the keys.

Flash-decoding (Dao et al., 2023) over a paged cache. Grid `(kv_heads, requests, splits)` is known on the host, so a
CUDA graph can hold it; each program finds its share from the request's own length and leaves when there is none.
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
def first_visible(length, WINDOW: tl.constexpr):
    first = 0
    if WINDOW > 0:
        first = tl.maximum(length - WINDOW, 0)
    return first


@triton.jit
def split_size_of(length, first, num_splits, TILE: tl.constexpr):
    """Keys a split takes: the request's tiles shared out evenly."""
    tiles = tl.cdiv(length - first // TILE * TILE, TILE)
    return tl.maximum(tl.cdiv(tiles, num_splits), 1) * TILE


@triton.jit(do_not_specialize=["num_splits", "table_stride"])
def decode_kernel(
    out,
    partial_out,
    partial_lse,
    q,
    k_cache,
    v_cache,
    k_scales,
    v_scales,
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
    num_splits,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE: tl.constexpr,
    TILE: tl.constexpr,
    WINDOW: tl.constexpr,
    SPLIT: tl.constexpr,
    QUANTIZED: tl.constexpr,
):
    kv_head = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1).to(tl.int64)
    split = tl.program_id(2)
    length = tl.load(context_lens + row)
    first = first_visible(length, WINDOW)
    size = split_size_of(length, first, num_splits, TILE)
    begin = first // TILE * TILE + split * size
    end = tl.minimum(begin + size, length)
    if begin >= end and SPLIT:
        return

    lane = tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    head = kv_head * GROUP + lane
    used = (lane < GROUP)[:, None] & (d < HEAD_DIM)[None, :]
    queries = tl.load(q + row * q_stride_token + head[:, None] * q_stride_head + d[None, :], mask=used, other=0.0)
    k_base = k_cache + kv_head * k_stride_head
    v_base = v_cache + kv_head * v_stride_head
    table_row = block_tables + row * table_stride

    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start in range(begin, end, TILE):
        keys = start + tl.arange(0, TILE)
        visible = (keys >= first) & (keys < end)
        pages = page_numbers(table_row, keys, visible, PAGE, True)
        k = load_tile(k_base, k_stride_block, pages, keys, visible, PAGE, HEAD_DIM, BLOCK_D, True)
        scores = tl.dot(queries, tl.trans(k.to(queries.dtype)), input_precision="ieee") * scale_log2
        if QUANTIZED:
            scale_base = k_scales + kv_head * scales_stride_head
            scores *= load_scales(scale_base, scales_stride_block, pages, keys, visible, PAGE, True)[None, :]
        scores = tl.where(visible[None, :], scores, float("-inf"))
        # Every tile of a split holds a visible key, so the new peak is finite.
        new_peak = tl.maximum(peak, tl.max(scores, 1))
        weights = tl.exp2(scores - new_peak[:, None])
        fade = tl.exp2(peak - new_peak)
        total = total * fade + tl.sum(weights, 1)
        v = load_tile(v_base, v_stride_block, pages, keys, visible, PAGE, HEAD_DIM, BLOCK_D, True)
        if QUANTIZED:
            scale_base = v_scales + kv_head * scales_stride_head
            weights *= load_scales(scale_base, scales_stride_block, pages, keys, visible, PAGE, True)[None, :]
        acc = tl.dot(weights.to(queries.dtype), v.to(queries.dtype), acc * fade[:, None], input_precision="ieee")
        peak = new_peak

    # A padding row of a captured graph has length 0: it writes zeros.
    result = acc / tl.where(total > 0, total, 1.0)[:, None]
    if SPLIT:
        slot = (row * tl.num_programs(0) * GROUP + head) * num_splits + split
        tl.store(partial_out + slot[:, None] * HEAD_DIM + d[None, :], result, mask=used)
        tl.store(partial_lse + slot, peak + tl.log2(total), mask=lane < GROUP)
    else:
        target = out + row * out_stride_token + head[:, None] * out_stride_head + d[None, :]
        tl.store(target, result.to(out.dtype.element_ty), mask=used)


@triton.jit(do_not_specialize=["num_splits"])
def reduce_kernel(
    out,
    partial_out,
    partial_lse,
    context_lens,
    out_stride_token,
    out_stride_head,
    num_splits,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TILE: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
):
    """Join the splits of one head of one request by their log-sum-exp, in split order."""
    head = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1).to(tl.int64)
    length = tl.load(context_lens + row)
    first = first_visible(length, WINDOW)
    size = split_size_of(length, first, num_splits, TILE)
    written = tl.cdiv(length - first // TILE * TILE, size)

    d = tl.arange(0, BLOCK_D)
    slot = (row * tl.num_programs(0) + head) * num_splits
    peak = tl.full([], float("-inf"), tl.float32)
    total = tl.full([], 0.0, tl.float32)
    acc = tl.zeros([BLOCK_D], tl.float32)
    for start in range(0, written, BLOCK_SPLITS):
        splits = start + tl.arange(0, BLOCK_SPLITS)
        valid = splits < written
        lse = tl.load(partial_lse + slot + splits, mask=valid, other=float("-inf"))
        mask = valid[:, None] & (d < HEAD_DIM)[None, :]
        values = tl.load(partial_out + (slot + splits)[:, None] * HEAD_DIM + d[None, :], mask=mask, other=0.0)
        new_peak = tl.maximum(peak, tl.max(lse, 0))
        weights = tl.exp2(lse - new_peak)
        fade = tl.exp2(peak - new_peak)
        total = total * fade + tl.sum(weights, 0)
        acc = acc * fade + tl.sum(values * weights[:, None], 0)
        peak = new_peak
    result = acc / tl.where(total > 0, total, 1.0)
    target = out + row * out_stride_token + head * out_stride_head + d
    tl.store(target, result.to(out.dtype.element_ty), mask=d < HEAD_DIM)


def decode_attention(
    out: torch.Tensor,
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    metadata: AttentionMetadata,
    scale: float,
    window: int | None,
    scales: KVScales | None,
) -> None:
    """Write rows `[0, num_decodes)` of `out`; arguments were checked by `paged_attention`."""
    kv_heads, page, head_dim = k_cache.shape[1:]
    group = q.shape[1] // kv_heads
    rows = metadata.num_decodes
    reach = metadata.max_context_len if window is None else min(window, metadata.max_context_len)
    element_bytes = k_cache.element_size() if q.element_size() == 2 else 4
    config = tuning.decode_config(q.device, element_bytes, head_dim)
    num_splits = tuning.num_splits(q.device, config, rows * kv_heads, reach)
    if num_splits > 1:
        partial_out = torch.empty((rows, q.shape[1], num_splits, head_dim), dtype=torch.float32, device=q.device)
        partial_lse = torch.empty((rows, q.shape[1], num_splits), dtype=torch.float32, device=q.device)
    else:
        partial_out = partial_lse = out
    block_d = triton.next_power_of_2(head_dim)
    decode_kernel[(kv_heads, rows, num_splits)](
        out,
        partial_out,
        partial_lse,
        q,
        k_cache,
        v_cache,
        scales.k if scales else None,
        scales.v if scales else None,
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
        num_splits,
        GROUP=group,
        BLOCK_M=max(16, triton.next_power_of_2(group)),
        HEAD_DIM=head_dim,
        BLOCK_D=block_d,
        PAGE=page,
        TILE=config.tile,
        WINDOW=window or 0,
        SPLIT=num_splits > 1,
        QUANTIZED=scales is not None,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    if num_splits > 1:
        reduce_kernel[(q.shape[1], rows)](
            out,
            partial_out,
            partial_lse,
            metadata.context_lens,
            out.stride(0),
            out.stride(1),
            num_splits,
            HEAD_DIM=head_dim,
            BLOCK_D=block_d,
            TILE=config.tile,
            WINDOW=window or 0,
            BLOCK_SPLITS=16,
            num_warps=4,
        )
