"""The paged KV cache's memory."""

from __future__ import annotations

import math

import torch

from kernels.cpu.memory import empty_huge


def kv_bytes_per_block(num_layers: int, num_kv_heads: int, block_size: int, head_dim: int, dtype: torch.dtype) -> int:
    """Bytes of one block: keys and values of `block_size` tokens in every layer."""
    return 2 * num_layers * num_kv_heads * block_size * head_dim * dtype.itemsize


def allocate_kv_caches(
    num_layers: int,
    num_blocks: int,
    num_kv_heads: int,
    block_size: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Key and value caches of each layer, `[num_blocks, num_kv_heads, block_size, head_dim]`.

    Keys and values of a block stand side by side.
    """
    shape = (num_blocks, 2, num_kv_heads, block_size, head_dim)
    caches = []
    for _ in range(num_layers):
        if device.type == "cpu":
            layer = empty_huge(math.prod(shape) * dtype.itemsize).view(dtype).view(shape)
        else:
            layer = torch.zeros(shape, dtype=dtype, device=device)
        caches.append((layer[:, 0], layer[:, 1]))
    return caches
