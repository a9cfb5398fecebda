"""The paged KV cache: how large a block is, and its memory."""

from __future__ import annotations

import math

import torch

from kernels.cpu.memory import empty_huge
from kernels.gpu.definitions import QUANTIZED_DTYPES, KVScales

KVCache = tuple[torch.Tensor, torch.Tensor]
SCALE_BYTES = 4


def kv_bytes_per_block(num_layers: int, num_kv_heads: int, block_size: int, head_dim: int, dtype: torch.dtype) -> int:
    """Bytes of one block of `block_size` tokens: keys and values of all layers, and the scales of quantised ones."""
    per_head = head_dim * dtype.itemsize + (SCALE_BYTES if dtype in QUANTIZED_DTYPES else 0)
    return 2 * num_layers * num_kv_heads * block_size * per_head


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
    num_bytes = math.prod(shape) * dtype.itemsize
    if torch.device(device).type == "cpu":
        storage = empty_huge(num_bytes)
    else:
        storage = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    return [(layer[:, 0], layer[:, 1]) for layer in storage.view(dtype).view(shape)]


def allocate_kv_scales(
    num_layers: int, num_blocks: int, num_kv_heads: int, block_size: int, device: torch.device | str
) -> list[KVScales]:
    """The scales of each layer of a quantised cache, zeroed: `[num_blocks, num_kv_heads, block_size]` fp32."""
    shape = (num_layers, num_blocks, 2, num_kv_heads, block_size)
    return [KVScales(layer[:, 0], layer[:, 1]) for layer in torch.zeros(shape, dtype=torch.float32, device=device)]
