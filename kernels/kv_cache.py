"""The paged KV cache: how large a block is, and its memory."""

from __future__ import annotations

import torch

from kernels.cpu.memory import empty_huge

KVCache = tuple[torch.Tensor, torch.Tensor]


def kv_bytes_per_block(num_layers: int, num_kv_heads: int, block_size: int, head_dim: int, dtype: torch.dtype) -> int:
    """Bytes of one block of `block_size` tokens: keys and values of all layers."""
    return 2 * num_layers * num_kv_heads * block_size * head_dim * dtype.itemsize


def allocate_kv_caches(
    num_layers: int,
    num_blocks: int,
    num_kv_heads: int,
    block_size: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device | str,
) -> list[KVCache]:
    """`(k_cache, v_cache)` of each layer, zeroed, shape `[num_blocks, num_kv_heads, block_size, head_dim]`.

    Layers lie one after another; inside a layer the keys and values of a block are adjacent, each head's tokens
    contiguous. On a CPU the whole cache is one region on huge pages where the system has them.

    Raises:
        ValueError: a size is not positive.
    """
    shape = (num_layers, num_blocks, 2, num_kv_heads, block_size, head_dim)
    if min(shape) < 1:
        raise ValueError(f"a KV cache needs positive sizes, not {shape}")
    if torch.device(device).type == "cpu":
        num_bytes = num_blocks * kv_bytes_per_block(num_layers, num_kv_heads, block_size, head_dim, dtype)
        storage = empty_huge(num_bytes).view(dtype).view(shape)
    else:
        storage = torch.zeros(shape, dtype=dtype, device=device)
    return [(layer[:, 0], layer[:, 1]) for layer in storage]
