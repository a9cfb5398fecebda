"""The operations of `kernels.reference` on CPU tensors, run by the compiled library.

Each function returns None (or False) where the library does not cover the arguments; the caller then uses the
definition. Covered are bf16 and fp32 with dimensions in multiples of 16, as all served models have them.
"""

from __future__ import annotations

import torch

from kernels.cpu import abi
from kernels.cpu.library import native_library
from kernels.metadata import AttentionMetadata

LANES = 16
MAX_GROUP = 48
MAX_HEAD_DIM = 256
_DTYPES = (torch.bfloat16, torch.float32)


def norm(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """`(rms_norm(x + residual), x + residual)`; without a residual the second is `x`."""
    library = native_library()
    dim = x.shape[-1]
    if library is None or x.dtype not in _DTYPES or weight.dtype is not x.dtype or dim % LANES or x.dim() > 3:
        return None
    if x.stride(-1) != 1 or not weight.is_contiguous() or x.numel() == 0:
        return None
    if residual is not None and (residual.dtype is not x.dtype or residual.shape != x.shape):
        return None
    shape = (1,) * (3 - x.dim()) + tuple(x.shape)
    strides = (0,) * (3 - x.dim()) + x.stride()
    out = torch.empty(x.shape, dtype=x.dtype)
    total = x
    if residual is not None:
        residual = residual.contiguous()
        total = torch.empty_like(out)
    library.norm(
        abi.NormABI(
            x=x.data_ptr(),
            residual=None if residual is None else residual.data_ptr(),
            weight=weight.data_ptr(),
            out=out.data_ptr(),
            total=total.data_ptr(),
            outer_stride=strides[0],
            inner_stride=strides[1],
            outer=shape[0],
            inner=shape[1],
            dim=dim,
            is_float=x.dtype is torch.float32,
            eps=eps,
        )
    )
    return out, total


def silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor | None:
    library = native_library()
    dim = gate_up.shape[-1] // 2
    if library is None or gate_up.dim() != 2 or gate_up.dtype not in _DTYPES or dim % LANES:
        return None
    if gate_up.stride(1) != 1:
        return None
    out = torch.empty((gate_up.shape[0], dim), dtype=gate_up.dtype)
    library.silu_and_mul(
        abi.SiluABI(
            gate_up=gate_up.data_ptr(),
            out=out.data_ptr(),
            stride=gate_up.stride(0),
            rows=gate_up.shape[0],
            dim=dim,
            is_float=gate_up.dtype is torch.float32,
        )
    )
    return out


def _caches_covered(k_cache: torch.Tensor, v_cache: torch.Tensor, dtype: torch.dtype) -> bool:
    return all(
        cache.dtype is dtype and cache.stride(3) == 1 and cache.stride(2) == cache.shape[3]
        for cache in (k_cache, v_cache)
    )


def check_metadata(metadata: AttentionMetadata, tokens: int) -> None:
    """Refuse metadata that the library would misread.

    Raises:
        ValueError: a dtype or shape differs from `AttentionMetadata`'s, or the arrays speak of other numbers of tokens.
    """
    requests = metadata.context_lens.shape[0]
    expected = {
        "query_start": (torch.int32, (requests + 1,)),
        "context_lens": (torch.int32, (requests,)),
        "slot_mapping": (torch.int64, (tokens,)),
        "positions": (torch.int64, (tokens,)),
        "block_tables": (torch.int32, (requests, metadata.block_tables.shape[-1])),
    }
    for name, (dtype, shape) in expected.items():
        array = getattr(metadata, name)
        if array.dtype is not dtype or array.shape != shape or array.device.type != "cpu":
            raise ValueError(
                f"metadata.{name} must be {dtype} {shape} on the CPU, not {array.dtype} {tuple(array.shape)}"
            )


def _check_heads(q: torch.Tensor, *others: torch.Tensor) -> None:
    for other in others:
        if other.shape[-1] != q.shape[-1] or q.shape[1] % other.shape[1]:
            raise ValueError(f"queries {tuple(q.shape)} do not fit keys or values {tuple(other.shape)}")


def _heads_packed(x: torch.Tensor) -> bool:
    return x.stride(2) == 1 and (x.shape[1] == 1 or x.stride(1) == x.shape[2])


def rope_and_write_kv(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    cos_sin: torch.Tensor,
    metadata: AttentionMetadata,
) -> torch.Tensor | None:
    library = native_library()
    tokens, num_heads, head_dim = q.shape
    if library is None or q.dtype not in _DTYPES or head_dim % (2 * LANES):
        return None
    if not (k.dtype is v.dtype is q.dtype and all(map(_heads_packed, (q, k, v)))):
        return None
    if not (_caches_covered(k_cache, v_cache, q.dtype) and cos_sin.is_contiguous() and cos_sin.dtype is torch.float32):
        return None
    check_metadata(metadata, tokens)
    _check_heads(q, k, v, k_cache, v_cache)
    if not k.shape[:2] == v.shape[:2] == (tokens, k_cache.shape[1]) or v_cache.shape[1:] != k_cache.shape[1:]:
        raise ValueError(f"keys {tuple(k.shape)}, values {tuple(v.shape)} and caches do not fit each other")
    out = torch.empty((tokens, num_heads, head_dim), dtype=q.dtype)
    positions, slots = metadata.positions.contiguous(), metadata.slot_mapping.contiguous()
    library.rope_and_write_kv(
        abi.RopeABI(
            q=q.data_ptr(),
            k=k.data_ptr(),
            v=v.data_ptr(),
            q_out=out.data_ptr(),
            k_cache=k_cache.data_ptr(),
            v_cache=v_cache.data_ptr(),
            cos_sin=cos_sin.data_ptr(),
            positions=positions.data_ptr(),
            slots=slots.data_ptr(),
            q_stride=q.stride(0),
            k_stride=k.stride(0),
            v_stride=v.stride(0),
            k_block_stride=k_cache.stride(0),
            k_head_stride=k_cache.stride(1),
            v_block_stride=v_cache.stride(0),
            v_head_stride=v_cache.stride(1),
            tokens=tokens,
            num_heads=num_heads,
            num_kv_heads=k.shape[1],
            head_dim=head_dim,
            block_size=k_cache.shape[2],
            is_float=q.dtype is torch.float32,
        )
    )
    return out


def paged_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    metadata: AttentionMetadata,
    scale: float,
    window: int | None = None,
) -> torch.Tensor | None:
    library = native_library()
    num_heads, head_dim = q.shape[1:]
    num_kv_heads = k_cache.shape[1]
    if library is None or q.dtype not in _DTYPES or head_dim % LANES or head_dim > MAX_HEAD_DIM:
        return None
    if num_heads // num_kv_heads > MAX_GROUP or not _heads_packed(q) or not _caches_covered(k_cache, v_cache, q.dtype):
        return None
    check_metadata(metadata, q.shape[0])
    _check_heads(q, k_cache, v_cache)
    out = torch.empty(q.shape, dtype=q.dtype)
    query_start, context_lens = metadata.query_start.contiguous(), metadata.context_lens.contiguous()
    tables = metadata.block_tables
    if tables.stride(1) != 1:
        tables = tables.contiguous()
    library.attention(
        abi.AttentionABI(
            q=q.data_ptr(),
            out=out.data_ptr(),
            k_cache=k_cache.data_ptr(),
            v_cache=v_cache.data_ptr(),
            query_start=query_start.data_ptr(),
            context_lens=context_lens.data_ptr(),
            block_tables=tables.data_ptr(),
            q_stride=q.stride(0),
            out_stride=out.stride(0),
            k_block_stride=k_cache.stride(0),
            k_head_stride=k_cache.stride(1),
            v_block_stride=v_cache.stride(0),
            v_head_stride=v_cache.stride(1),
            table_stride=tables.stride(0),
            num_requests=context_lens.shape[0],
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            block_size=k_cache.shape[2],
            window=window or 0,
            is_float=q.dtype is torch.float32,
            scale=scale,
        )
    )
    return out
