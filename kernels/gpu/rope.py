"""Rotary embedding and the write into the paged cache in one pass, with head norms and quantisation where asked.

Program (token, KV head) takes the query heads of its group, the key head and the value head: q, k and v are read once
and written once. A quantised head's scale is the largest magnitude of the head, found in registers.
"""
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.gpu import checks
from kernels.gpu.attention import check_cache
from kernels.gpu.definitions import KVScales
from kernels.metadata import AttentionMetadata


@triton.jit
def rotate_heads(low, high, cos, sin, weight, eps, half, HALF: tl.constexpr, NORM: tl.constexpr, dtype: tl.constexpr):
    """Norm (with weights, over both halves) and rotate heads given as two halves `[heads, HALF]` fp32."""
    if NORM:
        mask = half < HALF
        inverse = tl.rsqrt((tl.sum(low * low, 1) + tl.sum(high * high, 1)) / (2 * HALF) + eps)[:, None]
        weight_low = tl.load(weight + half, mask=mask, other=0.0).to(tl.float32)[None, :]
        weight_high = tl.load(weight + HALF + half, mask=mask, other=0.0).to(tl.float32)[None, :]
        low = ((low * inverse).to(dtype).to(tl.float32) * weight_low).to(dtype).to(tl.float32)
        high = ((high * inverse).to(dtype).to(tl.float32) * weight_high).to(dtype).to(tl.float32)
    return (low * cos - high * sin).to(dtype), (high * cos + low * sin).to(dtype)


@triton.jit
def quantize(low, high, CODE_MAX: tl.constexpr, INTEGER: tl.constexpr):
    """Codes of both halves `[1, HALF]` of one head, still fp32, and its scale."""
    low = low.to(tl.float32)
    high = high.to(tl.float32)
    peak = tl.maximum(tl.max(tl.abs(low)), tl.max(tl.abs(high)))
    factor = tl.where(peak > 0, tl.div_rn(CODE_MAX, tl.where(peak > 0, peak, 1.0)), 0.0)
    # The conversion to fp8 must not meet values past its range: not every path saturates.
    low = tl.clamp(low * factor, -CODE_MAX, CODE_MAX)
    high = tl.clamp(high * factor, -CODE_MAX, CODE_MAX)
    if INTEGER:
        # Adding and taking away 1.5 * 2^23 rounds to the nearest even integer.
        low = low + 12582912.0 - 12582912.0
        high = high + 12582912.0 - 12582912.0
    return low, high, tl.div_rn(peak, CODE_MAX)


@triton.jit
def rope_and_write_kernel(
    q_out,
    q,
    k,
    v,
    k_cache,
    v_cache,
    k_scales,
    v_scales,
    q_weight,
    k_weight,
    cos_sin,
    positions,
    slots,
    eps,
    q_stride_token,
    q_stride_head,
    k_stride_token,
    k_stride_head,
    v_stride_token,
    v_stride_head,
    k_stride_block,
    k_cache_stride_head,
    v_stride_block,
    v_cache_stride_head,
    scales_stride_block,
    scales_stride_head,
    cos_sin_stride,
    GROUP: tl.constexpr,
    BLOCK_GROUP: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    PAGE: tl.constexpr,
    Q_NORM: tl.constexpr,
    K_NORM: tl.constexpr,
    CODE_MAX: tl.constexpr,
    INTEGER: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1).to(tl.int64)
    half = tl.arange(0, BLOCK_HALF)[None, :]
    in_half = half < HALF
    position = tl.load(positions + token)
    cos = tl.load(cos_sin + position * cos_sin_stride + half, mask=in_half, other=0.0)
    sin = tl.load(cos_sin + position * cos_sin_stride + HALF + half, mask=in_half, other=0.0)
    dims = tl.arange(0, BLOCK_HALF)

    lane = tl.arange(0, BLOCK_GROUP)[:, None]
    used = (lane < GROUP) & in_half
    q_at = q + token * q_stride_token + (kv_head * GROUP + lane) * q_stride_head + half
    low = tl.load(q_at, mask=used, other=0.0).to(tl.float32)
    high = tl.load(q_at + HALF, mask=used, other=0.0).to(tl.float32)
    low, high = rotate_heads(low, high, cos, sin, q_weight, eps, dims, HALF, Q_NORM, q_out.dtype.element_ty)
    heads = tl.num_programs(1) * GROUP
    q_to = q_out + (token * heads + kv_head * GROUP + lane) * (2 * HALF) + half
    tl.store(q_to, low, mask=used)
    tl.store(q_to + HALF, high, mask=used)

    slot = tl.load(slots + token)
    if slot < 0:
        return
    block = slot // PAGE
    offset = slot % PAGE
    k_at = k + token * k_stride_token + kv_head * k_stride_head + half
    low = tl.load(k_at, mask=in_half, other=0.0).to(tl.float32)
    high = tl.load(k_at + HALF, mask=in_half, other=0.0).to(tl.float32)
    low, high = rotate_heads(low, high, cos, sin, k_weight, eps, dims, HALF, K_NORM, k.dtype.element_ty)
    v_at = v + token * v_stride_token + kv_head * v_stride_head + half
    v_low = tl.load(v_at, mask=in_half, other=0.0)
    v_high = tl.load(v_at + HALF, mask=in_half, other=0.0)
    if CODE_MAX > 0:
        scale_at = block * scales_stride_block + kv_head * scales_stride_head + offset
        low, high, scale = quantize(low, high, CODE_MAX, INTEGER)
        tl.store(k_scales + scale_at, scale)
        v_low, v_high, scale = quantize(v_low, v_high, CODE_MAX, INTEGER)
        tl.store(v_scales + scale_at, scale)
    k_to = k_cache + block * k_stride_block + kv_head * k_cache_stride_head + offset * (2 * HALF) + half
    tl.store(k_to, low.to(k_cache.dtype.element_ty), mask=in_half)
    tl.store(k_to + HALF, high.to(k_cache.dtype.element_ty), mask=in_half)
    v_to = v_cache + block * v_stride_block + kv_head * v_cache_stride_head + offset * (2 * HALF) + half
    tl.store(v_to, v_low.to(v_cache.dtype.element_ty), mask=in_half)
    tl.store(v_to + HALF, v_high.to(v_cache.dtype.element_ty), mask=in_half)


def rope_and_write_kv(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    cos_sin: torch.Tensor,
    metadata: AttentionMetadata,
    *,
    q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
    eps: float = 1e-6,
    scales: KVScales | None = None,
) -> torch.Tensor:
    """Rotate `q` and `k`, store `k` and `v`, return the rotated `q`; slots of -1 store nothing.

    Shapes: q `[T, heads, D]`, k and v `[T, kv_heads, D]`, caches `[blocks, kv_heads, block_size, D]`, cos_sin
    `[max_position, D]` fp32, q_norm and k_norm `[D]`: weights of a norm of each head before the rotation. A cache
    of int8 or fp8 needs `scales`, which are written beside the codes.
    """
    check_cache(k_cache, v_cache, scales)
    kv_heads, page, head_dim = k_cache.shape[1:]
    tokens, heads = q.shape[:2]
    checks.shape("q", q, None, None, head_dim)
    checks.shape("k", k, tokens, kv_heads, head_dim)
    checks.shape("v", v, tokens, kv_heads, head_dim)
    checks.shape("cos_sin", cos_sin, None, head_dim)
    checks.dtype("cos_sin", cos_sin, torch.float32)
    checks.shape("positions", metadata.positions, tokens)
    checks.shape("slot_mapping", metadata.slot_mapping, tokens)
    for name, tensor in (("q", q), ("k", k), ("v", v), ("cos_sin", cos_sin)):
        checks.dense_tail(name, tensor)
    checks.dtype("q", q, *checks.FLOATS)
    checks.dtype("k and v", k, v.dtype)
    checks.dtype("positions", metadata.positions, torch.int64)
    checks.dtype("slot_mapping", metadata.slot_mapping, torch.int64)
    checks.require(heads % kv_heads == 0, f"{heads} heads do not divide among {kv_heads} KV heads")
    checks.require(head_dim % 2 == 0, f"rotary embedding needs an even head dimension, got {head_dim}")
    for name, weight in (("q_norm", q_norm), ("k_norm", k_norm)):
        if weight is not None:
            checks.shape(name, weight, head_dim)
    checks.same_device(q=q, k=k, v=v, k_cache=k_cache, cos_sin=cos_sin, positions=metadata.positions)

    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    group = heads // kv_heads
    if tokens > 0:
        rope_and_write_kernel[(tokens, kv_heads)](
            out,
            q,
            k,
            v,
            k_cache,
            v_cache,
            scales.k if scales else None,
            scales.v if scales else None,
            q_norm,
            k_norm,
            cos_sin,
            metadata.positions,
            metadata.slot_mapping,
            eps,
            q.stride(0),
            q.stride(1),
            k.stride(0),
            k.stride(1),
            v.stride(0),
            v.stride(1),
            k_cache.stride(0),
            k_cache.stride(1),
            v_cache.stride(0),
            v_cache.stride(1),
            scales.k.stride(0) if scales else 0,
            scales.k.stride(1) if scales else 0,
            cos_sin.stride(0),
            GROUP=group,
            BLOCK_GROUP=triton.next_power_of_2(group),
            HALF=head_dim // 2,
            BLOCK_HALF=triton.next_power_of_2(head_dim // 2),
            PAGE=page,
            Q_NORM=q_norm is not None,
            K_NORM=k_norm is not None,
            CODE_MAX=0.0 if scales is None else 127.0 if k_cache.dtype is torch.int8 else 448.0,
            INTEGER=k_cache.dtype is torch.int8,
            num_warps=1 if group * head_dim <= 256 else 2,
        )
    return out
