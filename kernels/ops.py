"""The operations the engine calls, dispatched by device (`kernels.backend`).

CUDA tensors go to the Triton kernels (`kernels.gpu`). CPU tensors go to the compiled library (`kernels.cpu`) where it
is available and covers the arguments: bf16 or fp32, dimensions in multiples of 16, heads packed. Everything else runs
the definition: `kernels.reference`, and `kernels.gpu.definitions` for what only GPUs have kernels for.
`kernels.cpu_status()` says what CPU tensors meet and why.
"""

from __future__ import annotations

import functools
from types import ModuleType

import numpy as np
import torch

from kernels import reference
from kernels.backend import uses_triton
from kernels.cpu import ops as cpu
from kernels.gpu import definitions
from kernels.gpu.definitions import KVScales
from kernels.metadata import AttentionMetadata

__all__ = [
    "add_rms_norm",
    "apply_penalties",
    "count_tokens",
    "embedding",
    "greedy_argmax",
    "gumbel_sample",
    "paged_attention",
    "rms_norm",
    "rope_and_write_kv",
    "sampling_thresholds",
    "silu_and_mul",
    "step_inputs",
]


@functools.cache
def _triton() -> ModuleType:
    """Imported when first needed: Triton is Linux only, and slow to import."""
    from kernels.gpu import ops

    return ops


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Root-mean-square norm over the last dimension. Shapes: x `[..., H]`, weight `[H]`."""
    if uses_triton(x.device):
        return _triton().rms_norm(x, weight, eps)  # type: ignore[no-any-return]
    if x.device.type == "cpu":
        done = cpu.norm(x, None, weight, eps)
        if done is not None:
            return done[0]
    return reference.rms_norm(x, weight, eps)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns `(rms_norm(x + residual), x + residual)`, both `[T, H]` in the dtype of `x`."""
    if uses_triton(x.device):
        return _triton().add_rms_norm(x, residual, weight, eps)  # type: ignore[no-any-return]
    if x.device.type == "cpu":
        done = cpu.norm(x, residual, weight, eps)
        if done is not None:
            return done
    return reference.add_rms_norm(x, residual, weight, eps)


def silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """`silu(gate) * up` for `gate_up` `[T, 2 * I]` with the gate in the first half; returns `[T, I]`."""
    if uses_triton(gate_up.device):
        return _triton().silu_and_mul(gate_up)  # type: ignore[no-any-return]
    if gate_up.device.type == "cpu":
        done = cpu.silu_and_mul(gate_up)
        if done is not None:
            return done
    return reference.silu_and_mul(gate_up)


def embedding(token_ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Rows of `table` `[V, H]` at `token_ids` `[T]` int64: `[T, H]`."""
    if uses_triton(table.device):
        return _triton().embedding(token_ids, table)  # type: ignore[no-any-return]
    return definitions.embedding(token_ids, table)


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
    """Norm the heads of `q` and `k` where weights are given, rotate them, store `k` and `v`, return the rotated `q`.

    Shapes as in `kernels.reference`, q_norm and k_norm `[D]`; a cache of int8 or fp8 codes needs `scales`.
    """
    if uses_triton(q.device):
        return _triton().rope_and_write_kv(  # type: ignore[no-any-return]
            q, k, v, k_cache, v_cache, cos_sin, metadata, q_norm=q_norm, k_norm=k_norm, eps=eps, scales=scales
        )
    q = q if q_norm is None else rms_norm(q, q_norm, eps)
    k = k if k_norm is None else rms_norm(k, k_norm, eps)
    if q.device.type == "cpu" and scales is None:
        done = cpu.rope_and_write_kv(q, k, v, k_cache, v_cache, cos_sin, metadata)
        if done is not None:
            return done
    return definitions.rope_and_write_kv(q, k, v, k_cache, v_cache, cos_sin, metadata, scales=scales)


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

    A cache of int8 or fp8 codes needs `scales`.
    """
    if uses_triton(q.device):
        return _triton().paged_attention(  # type: ignore[no-any-return]
            q, k_cache, v_cache, metadata, scale, window, scales=scales
        )
    if q.device.type == "cpu" and scales is None:
        done = cpu.paged_attention(q, k_cache, v_cache, metadata, scale, window)
        if done is not None:
            return done
    return definitions.paged_attention(q, k_cache, v_cache, metadata, scale, window, scales=scales)


def greedy_argmax(logits: torch.Tensor) -> torch.Tensor:
    """`[R]` int64, the lowest index of the largest of each row `[R, vocab]`; -1 where none is possible.

    None is possible where no logit is above -inf or one is NaN. fp32 on a CPU goes through numpy, whose argmax reads at
    memory speed where torch's takes ten times as long.
    """
    if uses_triton(logits.device):
        return _triton().greedy_argmax(logits)  # type: ignore[no-any-return]
    if logits.device.type != "cpu" or logits.dtype is not torch.float32:
        return definitions.greedy_argmax(logits)
    best = torch.from_numpy(np.asarray(logits.detach().numpy().argmax(axis=-1)))
    largest = logits.gather(1, best.unsqueeze(1)).squeeze(1)
    return torch.where(largest > -torch.inf, best, -1)


def gumbel_sample(
    logits: torch.Tensor,
    temperatures: torch.Tensor,
    thresholds: torch.Tensor,
    seeds: torch.Tensor,
    positions: torch.Tensor,
) -> torch.Tensor:
    """One token id of each row of `[R, V]`, `[R]` int64; arguments as in `kernels.gpu.definitions`."""
    chosen = _triton() if uses_triton(logits.device) else definitions
    return chosen.gumbel_sample(logits, temperatures, thresholds, seeds, positions)  # type: ignore[no-any-return]


def sampling_thresholds(
    logits: torch.Tensor,
    temperatures: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
) -> torch.Tensor:
    """The smallest `logits / temperature` of each row that may be drawn; arguments as in `kernels.gpu.definitions`."""
    chosen = _triton() if uses_triton(logits.device) else definitions
    return chosen.sampling_thresholds(logits, temperatures, top_k, top_p, min_p)  # type: ignore[no-any-return]


def apply_penalties(
    logits: torch.Tensor,
    slots: torch.Tensor,
    output_counts: torch.Tensor,
    prompt_seen: torch.Tensor,
    repetition: torch.Tensor,
    frequency: torch.Tensor,
    presence: torch.Tensor,
) -> None:
    """Penalties on `logits` `[R, V]` fp32, in place; arguments as in `kernels.gpu.definitions`."""
    chosen = _triton() if uses_triton(logits.device) else definitions
    chosen.apply_penalties(logits, slots, output_counts, prompt_seen, repetition, frequency, presence)


def count_tokens(output_counts: torch.Tensor, slots: torch.Tensor, token_ids: torch.Tensor) -> None:
    """Add one to `output_counts[slots[r], token_ids[r]]`; slots of -1 are passed over."""
    chosen = _triton() if uses_triton(output_counts.device) else definitions
    chosen.count_tokens(output_counts, slots, token_ids)


def step_inputs(
    num_computed: torch.Tensor, query_lens: torch.Tensor, block_tables: torch.Tensor, block_size: int, num_tokens: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """`(query_start, context_lens, positions, slot_mapping)`; arguments as in `kernels.gpu.definitions`."""
    chosen = _triton() if uses_triton(num_computed.device) else definitions
    made: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor] = chosen.step_inputs(
        num_computed, query_lens, block_tables, block_size, num_tokens
    )
    return made
