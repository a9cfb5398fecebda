"""A small random model behind the real scheduler: what the tests of executors run."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

import torch

from engine.block_pool import BlockPool
from engine.decoder import Decoder
from engine.device_runner import DeviceRunner, Limits
from engine.engine import Engine, OverlappedEngine, StepOutcome
from engine.model_config import ModelConfig
from engine.model_runner import ModelRunner
from engine.request import Request, SamplingParams
from engine.sampler import Sampler
from engine.scheduler import Scheduler
from engine.scheduler_config import SchedulerConfig
from kernels.kv_cache import allocate_kv_caches, allocate_kv_scales

VOCAB, BLOCK_SIZE, MAX_LEN = 300, 16, 256
CPU = torch.device("cpu")


def small_config(**changes: object) -> ModelConfig:
    """Qwen3's shape in small, its second layer with a sliding window."""
    fields: dict[str, object] = {
        "architecture": "qwen3",
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 32,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "max_position_embeddings": MAX_LEN,
        "layer_windows": (None, 40),
        "qk_norm": True,
    }
    return ModelConfig(**fields | changes)  # type: ignore[arg-type]


def plain_runner(decoder: Decoder, num_blocks: int = 60, sampler: Sampler | None = None) -> ModelRunner:
    config = decoder.config
    sizes = (config.num_layers, num_blocks, config.num_kv_heads, BLOCK_SIZE, config.head_dim)
    caches = allocate_kv_caches(*sizes, decoder.dtype, decoder.device)
    return ModelRunner(decoder, caches, sampler or Sampler(config.vocab_size), decoder.device)


def device_runner(
    decoder: Decoder,
    num_blocks: int = 60,
    kv_dtype: torch.dtype | None = None,
    max_num_seqs: int = 9,
    max_model_len: int = MAX_LEN,
    poison: bool = False,
    **options,
) -> DeviceRunner:
    """`kv_dtype`: of codes with scales; as computed when None. `poison`: what was never written is NaN."""
    config, device = decoder.config, decoder.device
    sizes = (config.num_layers, num_blocks, config.num_kv_heads, BLOCK_SIZE)
    caches = allocate_kv_caches(*sizes, config.head_dim, kv_dtype or decoder.dtype, device)
    scales = None if kv_dtype is None else allocate_kv_scales(*sizes, device)
    if poison:
        for each in (cache for pair in caches for cache in pair) if kv_dtype is None else ():
            each.fill_(torch.nan)
        for each in scales or ():
            each.k.fill_(torch.nan)
            each.v.fill_(torch.nan)
    limits = Limits(max_num_seqs, max_model_len)
    return DeviceRunner(decoder, caches, scales, config.vocab_size, limits, device, **options)


def make_engine(runner, num_blocks: int = 60, *, overlap: bool = False, proposer=None, **config: int) -> Engine:
    settings = SchedulerConfig(**{"max_model_len": MAX_LEN, "max_num_seqs": 9} | config)
    scheduler = Scheduler(settings, BlockPool(num_blocks, BLOCK_SIZE), runs_ahead=overlap, proposer=proposer)
    return OverlappedEngine(scheduler, runner) if overlap else Engine(scheduler, runner)


def ragged_requests(count: int = 12, vocab_size: int = VOCAB, **params) -> list[Request]:
    """Ragged prompts, half of them with a common beginning."""
    rng = random.Random(1)
    prefix = [rng.randrange(vocab_size) for _ in range(40)]
    made = []
    for index in range(count):
        own = [rng.randrange(vocab_size) for _ in range(rng.choice([1, 15, 16, 17, 60]))]
        sampling = SamplingParams(**{"max_tokens": rng.randrange(1, 40), "temperature": 0.0} | params)
        made.append(Request(f"r{index}", tuple(prefix * (index % 2) + own), sampling, float(index)))
    return made


def serve(
    engine: Engine, requests: Iterable[Request], each_step: Callable[[StepOutcome], object] = lambda outcome: None
) -> dict[str, list[int]]:
    """The tokens that each request generated; the allocator is checked after every step."""
    requests = list(requests)
    for each in requests:
        engine.add(each)
    for _ in range(10_000):
        if not engine.has_work:
            break
        outcome = engine.step()
        assert outcome.fault is None, outcome.fault
        each_step(outcome)
        engine.scheduler.check_integrity()
    assert not engine.has_work
    return {each.request_id: each.token_ids[each.num_prompt_tokens :] for each in requests}
