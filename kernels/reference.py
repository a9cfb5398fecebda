"""Plain-torch definitions of every operation: the specification that the Triton and C++ kernels are tested against.

They run on any device and dtype, favour clarity over speed, and compute in fp32 where a fused kernel would.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from kernels.metadata import AttentionMetadata


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Root-mean-square norm over the last dimension, computed in fp32. Shapes: x `[..., H]`, weight `[H]`."""
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return normed.to(x.dtype) * weight


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns `(rms_norm(x + residual), x + residual)`, both `[T, H]` in the dtype of `x`."""
    total = x + residual
    return rms_norm(total, weight, eps), total


def silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """`silu(gate) * up` for `gate_up` `[T, 2 * I]` with the gate in the first half; returns `[T, I]`."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def apply_rope(x: torch.Tensor, positions: torch.Tensor, cos_sin: torch.Tensor) -> torch.Tensor:
    """Rotate heads by position, NeoX style (halves, not pairs).

    Shapes: x `[T, heads, D]`, positions `[T]` int64, cos_sin `[max_position, D]` fp32: cosines then sines of
    the `D / 2` frequencies.
    """
    cos, sin = cos_sin[positions].unsqueeze(1).chunk(2, dim=-1)
    low, high = x.float().chunk(2, dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1).to(x.dtype)


def write_kv(
    k: torch.Tensor, v: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, slot_mapping: torch.Tensor
) -> None:
    """Store keys and values `[T, kv_heads, D]` in the caches `[blocks, kv_heads, block_size, D]`; slot -1 skips."""
    block_size = k_cache.shape[2]
    kept = slot_mapping >= 0
    blocks = slot_mapping[kept] // block_size
    offsets = slot_mapping[kept] % block_size
    k_cache[blocks, :, offsets] = k[kept].to(k_cache.dtype)
    v_cache[blocks, :, offsets] = v[kept].to(v_cache.dtype)


def rope_and_write_kv(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    cos_sin: torch.Tensor,
    metadata: AttentionMetadata,
) -> torch.Tensor:
    """Rotate `q` and `k`, store `k` and `v`, return the rotated `q`. Shapes as in `apply_rope` and `write_kv`."""
    rotated_k = apply_rope(k, metadata.positions, cos_sin)
    write_kv(rotated_k, v, k_cache, v_cache, metadata.slot_mapping)
    return apply_rope(q, metadata.positions, cos_sin)


def paged_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    metadata: AttentionMetadata,
    scale: float,
    window: int | None = None,
) -> torch.Tensor:
    """Causal attention of packed queries over the paged cache, this step's keys and values already written.

    Args:
        q: `[T, heads, D]`.
        k_cache, v_cache: `[blocks, kv_heads, block_size, D]`; `heads` is a multiple of `kv_heads`.
        scale: factor on the scores, usually `D ** -0.5`.
        window: a query at position p sees keys in `(p - window, p]`; None sees all of `[0, p]`.

    Returns `[T, heads, D]` in the dtype of `q`; scores, softmax and sums are fp32.
    """
    block_size = k_cache.shape[2]
    group = q.shape[1] // k_cache.shape[1]
    out = torch.zeros_like(q)
    starts = metadata.query_start.tolist()
    for row, context_len in enumerate(metadata.context_lens.tolist()):
        begin, end = starts[row], starts[row + 1]
        blocks = metadata.block_tables[row, : -(-context_len // block_size)].long()
        keys, values = (
            cache[blocks].transpose(1, 2).flatten(0, 1)[:context_len].float().repeat_interleave(group, dim=1)
            for cache in (k_cache, v_cache)
        )
        query_positions = torch.arange(context_len - (end - begin), context_len, device=q.device)
        distance = query_positions[:, None] - torch.arange(context_len, device=q.device)[None, :]
        visible = distance >= 0 if window is None else (distance >= 0) & (distance < window)
        scores = torch.einsum("qhd,khd->hqk", q[begin:end].float(), keys) * scale
        weights = scores.masked_fill(~visible, -torch.inf).softmax(dim=-1)
        out[begin:end] = torch.einsum("hqk,khd->qhd", weights, values).to(q.dtype)
    return out
