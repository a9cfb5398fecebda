"""From a configuration to an engine that is ready to step: model, KV cache, scheduler, warm-up."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil
import torch

from engine.block_pool import BlockPool
from engine.checkpoint import open_checkpoint
from engine.client_protocol import EngineInfo
from engine.config import CPU_MAX_NUM_BATCHED_TOKENS, CUDA_MAX_NUM_BATCHED_TOKENS, EngineConfig
from engine.decoder import Decoder
from engine.engine import Engine
from engine.guided import GuideCompiler
from engine.model_config import ModelConfig
from engine.model_runner import ModelRunner
from engine.pace import PacedExecutor
from engine.sampler import Sampler
from engine.scheduler import Scheduler
from engine.scheduler_config import SchedulerConfig
from engine.weights import Weights
from kernels.kv_cache import allocate_kv_caches, kv_bytes_per_block
from kernels.threads import set_threads, usable_cores
from kernels.weight_format import WeightFormat

CPU_DEFAULT_KV_BYTES = 1 << 30
MEMORY_FRACTION = {"cpu": 0.25, "cuda": 0.90}


class Report(Protocol):
    def __call__(self, stage: str, done: int = 0, total: int = 0) -> None: ...


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    engine: Engine
    executor: PacedExecutor
    runner: ModelRunner
    guide_compiler: GuideCompiler
    info: EngineInfo
    eos_token_ids: frozenset[int]


def build_engine(config: EngineConfig, report: Report) -> BuiltEngine:
    """Load the model of `config` and make it ready; `report` hears of progress.

    Raises `ValueError` or `OSError` saying what to do when the model or the memory does not allow it.
    """
    device = choose_device(config.device)
    if device.type == "cpu":
        set_threads(config.num_threads or usable_cores())
    report("reading the model")
    checkpoint = open_checkpoint(Path(config.model))
    weights = checkpoint.open_weights()
    weight_format = config.weight_format or choose_weight_format(weights, device)
    decoder = Decoder(
        checkpoint.config,
        weights,
        weight_format,
        device,
        config.max_model_len,
        lambda done, total: report("loading weights", done, total),
    )
    report("reserving the KV cache")
    num_blocks = num_kv_blocks(config, checkpoint.config, decoder.max_model_len, decoder.dtype, device)
    kv_caches = allocate_kv_caches(
        checkpoint.config.num_layers,
        num_blocks,
        checkpoint.config.num_kv_heads,
        config.block_size,
        checkpoint.config.head_dim,
        decoder.dtype,
        device,
    )
    tokenizer = checkpoint.load_tokenizer()
    compiler = GuideCompiler(tokenizer.to_json(), checkpoint.config.vocab_size, tokenizer.eos_token_ids)
    runner = ModelRunner(decoder, kv_caches, Sampler(checkpoint.config.vocab_size, compiler), device)
    max_batched = config.max_num_batched_tokens or (
        CPU_MAX_NUM_BATCHED_TOKENS if device.type == "cpu" else CUDA_MAX_NUM_BATCHED_TOKENS
    )
    scheduler = Scheduler(
        SchedulerConfig(
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=max_batched,
            max_model_len=decoder.max_model_len,
            long_prefill_threshold_tokens=config.long_prefill_threshold_tokens,
        ),
        BlockPool(num_blocks, config.block_size),
    )
    report("warming up")
    runner.probe()
    info = EngineInfo(
        model_id=config.model_id,
        max_model_len=decoder.max_model_len,
        vocab_size=checkpoint.config.vocab_size,
        weight_format=weight_format.value,
        device=str(device),
        num_kv_blocks=num_blocks,
        block_size=config.block_size,
        max_num_seqs=config.max_num_seqs,
    )
    executor = PacedExecutor(runner)
    return BuiltEngine(Engine(scheduler, executor), executor, runner, compiler, info, tokenizer.eos_token_ids)


def choose_device(name: str) -> torch.device:
    """Raises `ValueError` when CUDA is asked for and not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("no CUDA device is available; use --device cpu, or check the driver with nvidia-smi")
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def choose_weight_format(weights: Weights, device: torch.device) -> WeightFormat:
    """`INT4` on a CPU for a file in blocks: the same bits as `BF16` in a third of the memory traffic."""
    stored = weights.blocks("model.layers.0.mlp.down_proj.weight") is not None
    return WeightFormat.INT4 if stored and device.type == "cpu" else WeightFormat.BF16


def num_kv_blocks(
    config: EngineConfig, model: ModelConfig, max_model_len: int, dtype: torch.dtype, device: torch.device
) -> int:
    """Blocks the KV cache gets: the stated bytes, or what the device has to spare.

    Never more than `max_num_seqs` requests of full length could fill. Raises `ValueError` when one request of
    full length would not fit.
    """
    block_bytes = kv_bytes_per_block(model.num_layers, model.num_kv_heads, config.block_size, model.head_dim, dtype)
    budget_bytes = config.kv_cache_bytes or spare_bytes(device)
    per_request = -(-max_model_len // config.block_size)
    blocks = min(budget_bytes // block_bytes, config.max_num_seqs * per_request)
    if blocks < per_request:
        raise ValueError(
            f"a KV cache of {budget_bytes / 2**20:.0f} MiB holds {blocks * config.block_size} tokens, fewer than the "
            f"model's context of {max_model_len}; raise --kv-cache-memory to "
            f"{per_request * block_bytes / 2**20:.0f} MiB or lower --max-model-len"
        )
    return int(blocks)


def spare_bytes(device: torch.device) -> int:
    """Memory the KV cache may take when nobody said how much."""
    if device.type == "cuda":
        free, _total = torch.cuda.mem_get_info(device)
        return int(free * MEMORY_FRACTION["cuda"])
    return min(CPU_DEFAULT_KV_BYTES, int(psutil.virtual_memory().available * MEMORY_FRACTION["cpu"]))
