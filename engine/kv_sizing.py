"""How many blocks the KV cache gets: the stated bytes, or what the device has to spare beside a step's work."""

from __future__ import annotations

import psutil
import torch

from engine.config import EngineConfig
from engine.model_config import ModelConfig
from kernels.kv_cache import kv_bytes_per_block

CPU_DEFAULT_KV_BYTES = 1 << 30
CPU_MEMORY_FRACTION = 0.25
# Kept beside the cache and a step's tensors: loaded kernels, graphs, the allocator's rounding.
CUDA_RESERVE_BYTES = 512 << 20


def num_kv_blocks(
    config: EngineConfig, model: ModelConfig, max_model_len: int, dtype: torch.dtype, budget_bytes: int
) -> int:
    """Blocks that `budget_bytes` hold, never more than `max_num_seqs` requests of full length could fill.

    Raises `ValueError` when one request of full length would not fit.
    """
    block_bytes = kv_bytes_per_block(model.num_layers, model.num_kv_heads, config.block_size, model.head_dim, dtype)
    per_request = -(-max_model_len // config.block_size)
    blocks = min(budget_bytes // block_bytes, config.max_num_seqs * per_request)
    if blocks < per_request:
        raise ValueError(
            f"a KV cache of {budget_bytes / 2**20:.0f} MiB holds {blocks * config.block_size} tokens, fewer than the "
            f"model's context of {max_model_len}; raise --kv-cache-memory to "
            f"{per_request * block_bytes / 2**20:.0f} MiB or lower --max-model-len"
        )
    return int(blocks)


def step_bytes(model: ModelConfig, max_num_seqs: int, max_num_batched_tokens: int, element_bytes: int) -> int:
    """An upper bound of the memory that one step's tensors take at once, beside weights and cache.

    The widest moment of a layer, for each token: hidden states and their residual before and after, the fused
    projection and the attended heads, the gate and up halves and their product. Then the logits in fp32 with one copy
    of them for log-probabilities, and the count tables of penalties.
    """
    heads = (2 * model.num_heads + 2 * model.num_kv_heads) * model.head_dim
    per_token = 4 * model.hidden_size + heads + 3 * model.intermediate_size
    per_row = (2 * 4 + 4 + 1) * model.vocab_size
    return max_num_batched_tokens * per_token * element_bytes + max_num_seqs * per_row


def kv_budget_bytes(config: EngineConfig, needed_bytes: int, device: torch.device) -> int:
    """Bytes for keys and values: as stated, or what is free on a card less `needed_bytes`, or a modest part of RAM.

    On a card `gpu_memory_fraction` of the whole memory is the most that weights, cache and steps may take together.
    """
    if config.kv_cache_bytes is not None:
        return config.kv_cache_bytes
    if device.type != "cuda":
        return min(CPU_DEFAULT_KV_BYTES, int(psutil.virtual_memory().available * CPU_MEMORY_FRACTION))
    return cuda_budget_bytes(*torch.cuda.mem_get_info(device), config.gpu_memory_fraction, needed_bytes)


def cuda_budget_bytes(free_bytes: int, total_bytes: int, fraction: float, needed_bytes: int) -> int:
    """What is left of `fraction` of the card, never negative."""
    held_back = int((1.0 - fraction) * total_bytes)
    return max(0, free_bytes - held_back - needed_bytes - CUDA_RESERVE_BYTES)
