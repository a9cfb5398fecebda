"""Paged attention of a mixed batch: the decodes in front by one kernel, the chunks behind them by another.

In deterministic mode one pair of kernels serves both alike.
"""

from __future__ import annotations

import torch

from kernels.gpu import checks, tuning
from kernels.gpu.attention_decode import decode_attention
from kernels.gpu.attention_invariant import invariant_attention
from kernels.gpu.attention_prefill import prefill_attention
from kernels.gpu.definitions import QUANTIZED_DTYPES, KVScales
from kernels.metadata import AttentionMetadata


def paged_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    metadata: AttentionMetadata,
    scale: float,
    window: int | None = None,
    *,
    scales: KVScales | None = None,
) -> torch.Tensor:
    """Causal attention of packed queries over the paged cache; arguments as in `kernels.reference`.

    `scales` belongs to a cache of int8 or fp8 and holds one factor for each token and head. A request of
    `context_lens` 0 among the decodes (padding of a captured graph) gets zeros. Raises `ValueError` on shapes,
    dtypes, strides or devices that the kernels do not take.
    """
    check_cache(k_cache, v_cache, scales)
    kv_heads, _, head_dim = k_cache.shape[1:]
    checks.shape("q", q, None, None, head_dim)
    checks.dtype("q", q, *checks.FLOATS)
    checks.dense_tail("q", q)
    num_requests = metadata.context_lens.shape[0]
    checks.shape("query_start", metadata.query_start, num_requests + 1)
    checks.shape("block_tables", metadata.block_tables, num_requests, None)
    checks.dense_tail("block_tables", metadata.block_tables)
    for name in ("query_start", "context_lens", "block_tables"):
        checks.dtype(name, getattr(metadata, name), torch.int32)
    checks.require(q.shape[1] % kv_heads == 0, f"{q.shape[1]} heads do not divide among {kv_heads} KV heads")
    checks.require(scale > 0, f"scale must be positive, got {scale}")
    checks.require(window is None or window > 0, f"window must be positive or None, got {window}")
    checks.require(
        0 <= metadata.num_decodes <= min(num_requests, q.shape[0]),
        f"num_decodes={metadata.num_decodes} is not within the {num_requests} requests and {q.shape[0]} tokens",
    )
    checks.same_device(q=q, k_cache=k_cache, context_lens=metadata.context_lens, block_tables=metadata.block_tables)

    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if tuning.deterministic():
        invariant_attention(out, q, k_cache, v_cache, metadata, scale, window, scales)
        return out
    if metadata.num_decodes > 0:
        decode_attention(out, q, k_cache, v_cache, metadata, scale, window, scales)
    if metadata.num_decodes < num_requests and q.shape[0] > metadata.num_decodes:
        prefill_attention(out, q, k_cache, v_cache, metadata, scale, window, scales)
    return out


def check_cache(k_cache: torch.Tensor, v_cache: torch.Tensor, scales: KVScales | None) -> None:
    """Both caches `[blocks, kv_heads, block_size, D]` the inner two dimensions dense; scales if and only if coded."""
    checks.shape("k_cache", k_cache, None, None, None, None)
    checks.shape("v_cache", v_cache, *k_cache.shape)
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        checks.dtype(name, cache, *checks.FLOATS, *QUANTIZED_DTYPES)
        checks.dense_tail(name, cache, dims=2)
    checks.require(
        k_cache.dtype is not torch.float8_e4m3fn or tuning.traits(k_cache.device).capability >= 89,
        "an fp8 cache needs compute capability 8.9; use int8 on this card",
    )
    checks.require(k_cache.dtype == v_cache.dtype, "k_cache and v_cache must share one dtype")
    checks.require(
        (scales is not None) == (k_cache.dtype in QUANTIZED_DTYPES),
        f"a cache of {k_cache.dtype} {'needs' if scales is None else 'takes no'} scales",
    )
    if scales is not None:
        checks.shape("scales.k", scales.k, *k_cache.shape[:3])
        checks.shape("scales.v", scales.v, *k_cache.shape[:3])
        checks.dense_tail("scales.k", scales.k)
        checks.require(scales.k.stride() == scales.v.stride(), "scales.k and scales.v must share their strides")
    checks.same_device(k_cache=k_cache, v_cache=v_cache, scales_k=scales.k if scales else None)
