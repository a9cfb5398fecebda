"""Other implementations of the benchmarked functions, each set up once outside the timed call.

A peer that is not installed or refuses the shape raises `PeerUnavailableError`: the report gives the reason.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from kernels import reference

if TYPE_CHECKING:
    from bench._kernel_cases import AttentionInputs

Call = Callable[[], object]
Tensors = dict[str, Any]


class PeerUnavailableError(Exception):
    """Says why a peer was not measured."""


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise PeerUnavailableError(f"{name} cannot be imported: {error}") from error


def _contiguous(inputs: AttentionInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of all requests one after another, `[tokens, kv_heads, D]`."""
    page = inputs.k_cache.shape[2]
    parts: list[list[torch.Tensor]] = [[], []]
    for row, length in enumerate(inputs.context_lens):
        pages = inputs.metadata.block_tables[row, : -(-length // page)].long()
        for part, cache in zip(parts, (inputs.k_cache, inputs.v_cache)):
            part.append(cache[pages].transpose(1, 2).flatten(0, 1)[:length])
    return torch.cat(parts[0]).contiguous(), torch.cat(parts[1]).contiguous()


def flashinfer_attention(inputs: AttentionInputs) -> Call:
    """Paged decode with tensor cores, or FA2 paged prefill, on the same cache; planned outside the timed call."""
    flashinfer = _module("flashinfer")
    page, head_dim = inputs.k_cache.shape[2:]
    device = inputs.q.device
    counts = [-(-length // page) for length in inputs.context_lens]
    starts = [0]
    for count in counts:
        starts.append(starts[-1] + count)
    indptr = torch.tensor(starts, dtype=torch.int32, device=device)
    pages = torch.cat([inputs.metadata.block_tables[row, :count] for row, count in enumerate(counts)])
    last = torch.tensor([(length - 1) % page + 1 for length in inputs.context_lens], dtype=torch.int32, device=device)
    workspace = torch.empty(256 << 20, dtype=torch.uint8, device=device)
    heads = inputs.q.shape[1], inputs.k_cache.shape[1]
    dtypes = {"q_data_type": inputs.q.dtype, "kv_data_type": inputs.k_cache.dtype}
    if max(inputs.query_lens) == 1:
        decode = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "HND", use_tensor_cores=True)
        decode.plan(indptr, pages, last, *heads, head_dim, page, **dtypes)
        return lambda: decode.run(inputs.q, (inputs.k_cache, inputs.v_cache))
    prefill = flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace, "HND", backend="fa2")
    prefill.plan(inputs.metadata.query_start, indptr, pages, last, *heads, head_dim, page, causal=True, **dtypes)
    return lambda: prefill.run(inputs.q, (inputs.k_cache, inputs.v_cache))


def varlen_attention(inputs: AttentionInputs) -> Call:
    varlen = _module("torch.nn.attention.varlen")
    keys, values = _contiguous(inputs)
    lengths = torch.tensor((0, *inputs.context_lens), device=inputs.q.device)
    key_start = lengths.cumsum(0).int()
    limits = max(inputs.query_lens), max(inputs.context_lens)
    return lambda: varlen.varlen_attn(
        inputs.q, keys, values, inputs.metadata.query_start, key_start, *limits, window_size=(-1, 0), enable_gqa=True
    )


def _batched(inputs: AttentionInputs) -> tuple[torch.Tensor, ...]:
    """`[B, heads, tokens, D]` of equally long requests."""
    batch = len(inputs.context_lens)
    keys, values = _contiguous(inputs)
    return tuple(
        each.reshape(batch, -1, *each.shape[1:]).transpose(1, 2).contiguous() for each in (inputs.q, keys, values)
    )


def _packed(result: torch.Tensor) -> torch.Tensor:
    return result.transpose(1, 2).flatten(0, 1)


def sdpa_attention(inputs: AttentionInputs) -> Call:
    q, k, v = _batched(inputs)
    causal = q.shape[2] > 1
    if causal and q.shape[2] != k.shape[2]:
        raise PeerUnavailableError("SDPA aligns the causal mask with the first key, so a later chunk has no fast path")
    return lambda: _packed(F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True))


def flex_attention(inputs: AttentionInputs) -> Call:
    flex = _module("torch.nn.attention.flex_attention")
    q, k, v = _batched(inputs)
    offset = k.shape[2] - q.shape[2]

    def causal(b: torch.Tensor, h: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return query + offset >= key

    mask = None
    if q.shape[2] > 1:
        mask = flex.create_block_mask(causal, None, None, q.shape[2], k.shape[2], device=q.device)
    compiled = _compiled_flex()
    return lambda: _packed(compiled(q, k, v, block_mask=mask, enable_gqa=True))


@functools.cache
def _compiled_flex() -> Any:
    return torch.compile(_module("torch.nn.attention.flex_attention").flex_attention, dynamic=False)


def liger_add_rms_norm(inputs: Tensors) -> Call:
    liger = _module("liger_kernel.ops.fused_add_rms_norm")
    function = liger.LigerFusedAddRMSNormFunction.apply
    return lambda: function(inputs["x"], inputs["residual"], inputs["weight"][0], 1e-5)


def liger_silu_mul(inputs: Tensors) -> Call:
    liger = _module("liger_kernel.ops.swiglu")
    gate, up = (half.contiguous() for half in inputs["gate_up"].chunk(2, dim=-1))
    return lambda: liger.LigerSiLUMulFunction.apply(gate, up)


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=False)


def compiled_add_rms_norm(inputs: Tensors) -> Call:
    function = _compiled(reference.add_rms_norm)
    return lambda: function(inputs["x"], inputs["residual"], inputs["weight"][0], 1e-5)


def compiled_silu_mul(inputs: Tensors) -> Call:
    function = _compiled(reference.silu_and_mul)
    return lambda: function(inputs["gate_up"])


def torch_argmax(inputs: Tensors) -> Call:
    return lambda: inputs["logits"].argmax(-1)


def torch_multinomial(inputs: Tensors) -> Call:
    return lambda: torch.multinomial(torch.softmax(inputs["logits"].float(), -1), 1)


def torch_sort(inputs: Tensors) -> Call:
    return lambda: torch.sort(inputs["logits"].float(), descending=True).values


def cublas_linear(inputs: Tensors) -> Call:
    return lambda: F.linear(inputs["x"], inputs["dense"])
