"""The operations the engine calls, dispatched by device: each has its definition in `kernels.reference`.

CPU tensors go to the compiled library (`kernels.cpu`) where it is available and covers the arguments: bf16 or fp32,
dimensions in multiples of 16, heads packed. Everything else runs the definition. `GRIDSERVE_CPU_KERNELS=torch` makes
every CPU call run the definition; `kernels.cpu_status()` says which of the two is active and why.
"""

from __future__ import annotations

import numpy as np
import torch

from kernels import reference
from kernels.cpu import ops as cpu
from kernels.metadata import AttentionMetadata

__all__ = ["add_rms_norm", "greedy_argmax", "paged_attention", "rms_norm", "rope_and_write_kv", "silu_and_mul"]


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Root-mean-square norm over the last dimension. Shapes: x `[..., H]`, weight `[H]`."""
    if x.device.type == "cpu":
        done = cpu.norm(x, None, weight, eps)
        if done is not None:
            return done[0]
    return reference.rms_norm(x, weight, eps)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns `(rms_norm(x + residual), x + residual)`, both `[T, H]` in the dtype of `x`."""
    if x.device.type == "cpu":
        done = cpu.norm(x, residual, weight, eps)
        if done is not None:
            return done
    return reference.add_rms_norm(x, residual, weight, eps)


def silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """`silu(gate) * up` for `gate_up` `[T, 2 * I]` with the gate in the first half; returns `[T, I]`."""
    if gate_up.device.type == "cpu":
        done = cpu.silu_and_mul(gate_up)
        if done is not None:
            return done
    return reference.silu_and_mul(gate_up)


def rope_and_write_kv(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    cos_sin: torch.Tensor,
    metadata: AttentionMetadata,
) -> torch.Tensor:
    """Rotate `q` and `k`, store `k` and `v`, return the rotated `q`; shapes as in `kernels.reference`."""
    if q.device.type == "cpu":
        done = cpu.rope_and_write_kv(q, k, v, k_cache, v_cache, cos_sin, metadata)
        if done is not None:
            return done
    return reference.rope_and_write_kv(q, k, v, k_cache, v_cache, cos_sin, metadata)


def paged_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    metadata: AttentionMetadata,
    scale: float,
    window: int | None = None,
) -> torch.Tensor:
    """Causal attention of packed queries over the paged cache; arguments as in `kernels.reference`."""
    if q.device.type == "cpu":
        done = cpu.paged_attention(q, k_cache, v_cache, metadata, scale, window)
        if done is not None:
            return done
    return reference.paged_attention(q, k_cache, v_cache, metadata, scale, window)


def greedy_argmax(logits: torch.Tensor) -> torch.Tensor:
    """`[R]` int64 index of the largest of each row `[R, vocab]`; the first of equals, as `torch.argmax` on a CPU.

    fp32 on a CPU goes through numpy, whose argmax reads at memory speed where torch's takes ten times as long.
    """
    if logits.device.type == "cpu" and logits.dtype is torch.float32:
        return torch.from_numpy(np.asarray(logits.detach().numpy().argmax(axis=-1)))
    return logits.argmax(dim=-1)
