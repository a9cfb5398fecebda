"""From a configuration to an engine that is ready to step: model, KV cache, scheduler, warm-up."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from engine.block_pool import BlockPool
from engine.checkpoint import open_checkpoint
from engine.client_protocol import EngineInfo
from engine.config import CPU_MAX_NUM_BATCHED_TOKENS, CUDA_MAX_NUM_BATCHED_TOKENS, EngineConfig
from engine.decoder import Decoder
from engine.device_runner import DeviceRunner, Limits
from engine.engine import Engine, OverlappedEngine
from engine.guided import GuideCompiler
from engine.kv_sizing import kv_budget_bytes, num_kv_blocks, step_bytes
from engine.leading_runner import LeadingRunner
from engine.model_runner import ModelRunner
from engine.pace import PacedExecutor, PacedLaunchingExecutor
from engine.rank_group import ProcessGroup, RankGroup
from engine.rank_processes import RankProcesses
from engine.sampler import Sampler
from engine.scheduler import Scheduler
from engine.scheduler_config import SchedulerConfig
from engine.shard import Shard
from engine.speculation import NgramConfig, NgramProposer, Proposer
from engine.weights import Weights
from kernels.backend import uses_triton
from kernels.gpu.definitions import QUANTIZED_DTYPES
from kernels.kv_cache import allocate_kv_caches, allocate_kv_scales
from kernels.threads import set_threads, usable_cores
from kernels.weight_format import WeightFormat

KV_DTYPES = {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn, "int8": torch.int8}
Runner = ModelRunner | DeviceRunner


class Report(Protocol):
    def __call__(self, stage: str, done: int = 0, total: int = 0) -> None: ...


class Probed(Protocol):
    def probe(self) -> None:
        """Proof that the device answers, without touching the cache; raises where it does not."""
        ...


@dataclass(frozen=True, slots=True)
class LoadedRunner:
    """A runner that is warm, over a model and a cache of `num_blocks` blocks; a rank's part of them in a group."""

    runner: Runner
    num_blocks: int
    max_batched: int
    decoder: Decoder
    guide_compiler: GuideCompiler
    eos_token_ids: frozenset[int]


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    engine: Engine
    executor: PacedExecutor
    runner: Probed
    guide_compiler: GuideCompiler
    info: EngineInfo
    eos_token_ids: frozenset[int]
    ranks: RankProcesses | None = None

    def close(self) -> None:
        """Let the other ranks go."""
        if self.ranks is not None:
            self.ranks.close()


def build_engine(config: EngineConfig, report: Report) -> BuiltEngine:
    """Load the model of `config` and make it ready; `report` hears of progress.

    Raises `ValueError` or `OSError` saying what to do when the model or the memory does not allow it.
    """
    if config.tensor_parallel == 1:
        return _engine_over(config, load_runner(config, report), None)
    choose_device(config.device, config.tensor_parallel)
    Shard(open_checkpoint(Path(config.model)).config, 0, config.tensor_parallel)
    report("starting the other ranks")
    ranks = RankProcesses(config)
    try:
        loaded = load_runner(config, report, join_group(config, 0, ranks.rendezvous))
        return _engine_over(config, loaded, ranks)
    except BaseException:
        ranks.close()
        raise


def join_group(config: EngineConfig, rank: int, rendezvous: Path) -> ProcessGroup:
    """Become rank `rank` of the engine's group; returns when all ranks have come."""
    device = choose_device(config.device, config.tensor_parallel, rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return ProcessGroup(rank, config.tensor_parallel, rendezvous, device)


def load_runner(config: EngineConfig, report: Report, group: RankGroup | None = None) -> LoadedRunner:
    """What each rank does before the first step, all of them together."""
    ranks, rank = config.tensor_parallel, 0 if group is None else group.rank
    device = choose_device(config.device, ranks, rank)
    if device.type == "cpu":
        set_threads(config.num_threads or max(1, usable_cores() // ranks))
    if uses_triton(device):
        prepare_triton(config)
    report("reading the model")
    checkpoint = open_checkpoint(Path(config.model))
    weights = checkpoint.open_weights()
    weight_format = config.weight_format or choose_weight_format(weights, device)
    if config.deterministic and weight_format is WeightFormat.FP32 and not uses_triton(device):
        raise ValueError("fp32 sums on a CPU change with the batch: use --weight-format bf16 with --deterministic")
    decoder = Decoder(
        checkpoint.config,
        weights,
        weight_format,
        device,
        config.max_model_len,
        lambda done, total: report("loading weights", done, total),
        group,
    )
    max_batched = config.max_num_batched_tokens or (
        CPU_MAX_NUM_BATCHED_TOKENS if device.type == "cpu" else CUDA_MAX_NUM_BATCHED_TOKENS
    )
    tokenizer = checkpoint.load_tokenizer()
    compiler = GuideCompiler(tokenizer.to_json(), checkpoint.config.vocab_size, tokenizer.eos_token_ids)
    report("reserving the KV cache")
    runner, num_blocks = make_runner(config, decoder, device, max_batched, compiler, group)
    report("warming up")
    compiler.prepare()
    if isinstance(runner, DeviceRunner):
        runner.warm_up(lambda done, total: report("compiling kernels and capturing graphs", done, total))
    else:
        runner.probe()
    return LoadedRunner(runner, num_blocks, max_batched, decoder, compiler, tokenizer.eos_token_ids)


def _engine_over(config: EngineConfig, loaded: LoadedRunner, ranks: RankProcesses | None) -> BuiltEngine:
    decoder, inner = loaded.decoder, loaded.runner
    overlap = overlaps(config, inner)
    scheduler = Scheduler(
        SchedulerConfig(
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=loaded.max_batched,
            max_model_len=decoder.max_model_len,
            long_prefill_threshold_tokens=config.long_prefill_threshold_tokens,
        ),
        BlockPool(loaded.num_blocks, config.block_size),
        runs_ahead=overlap,
        proposer=make_proposer(config, inner),
    )
    info = EngineInfo(
        model_id=config.model_id,
        max_model_len=decoder.max_model_len,
        vocab_size=decoder.config.vocab_size,
        weight_format=decoder.weight_format.value,
        device=str(decoder.device) if ranks is None else f"{decoder.device.type} x {config.tensor_parallel}",
        num_kv_blocks=loaded.num_blocks,
        block_size=config.block_size,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=loaded.max_batched,
    )
    runner = inner if ranks is None else LeadingRunner(inner, ranks)
    engine, executor = make_loop(scheduler, runner, overlap=overlap)
    return BuiltEngine(engine, executor, runner, loaded.guide_compiler, info, loaded.eos_token_ids, ranks)


def overlaps(config: EngineConfig, runner: Runner) -> bool:
    """Whether steps are launched ahead. Raises `ValueError` where that is asked for and cannot be."""
    if config.overlap and not isinstance(runner, DeviceRunner):
        raise ValueError("a CPU runs one step at a time: leave --overlap out")
    return isinstance(runner, DeviceRunner) and config.overlap is not False and config.speculate == "off"


def make_proposer(config: EngineConfig, runner: Runner) -> Proposer | None:
    """Penalties are counted on a device as tokens are drawn there, wrong guesses included: such requests go without."""
    if config.speculate == "off":
        return None
    return NgramProposer(NgramConfig(max_draft=config.max_draft), penalised=not isinstance(runner, DeviceRunner))


def make_loop(scheduler: Scheduler, runner: Runner | LeadingRunner, *, overlap: bool) -> tuple[Engine, PacedExecutor]:
    if overlap and not isinstance(runner, ModelRunner):
        launching = PacedLaunchingExecutor(runner)
        return OverlappedEngine(scheduler, launching), launching
    executor = PacedExecutor(runner)
    return Engine(scheduler, executor), executor


def choose_device(name: str, ranks: int = 1, rank: int = 0) -> torch.device:
    """The device of one rank. Raises `ValueError` when CUDA is asked for and not there, or has too few cards."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("no CUDA device is available; use --compute cpu, or check the driver with nvidia-smi")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if ranks == 1:
        return torch.device("cuda")
    if ranks > torch.cuda.device_count():
        raise ValueError(
            f"{ranks} ranks need as many GPUs, {torch.cuda.device_count()} are visible; lower --tensor-parallel or "
            "check CUDA_VISIBLE_DEVICES"
        )
    return torch.device("cuda", rank)


def choose_weight_format(weights: Weights, device: torch.device) -> WeightFormat:
    """`INT4` on a CPU for a file in blocks: weights no coarser than `BF16` in a third of the memory traffic."""
    stored = weights.blocks("model.layers.0.mlp.down_proj.weight") is not None
    return WeightFormat.INT4 if stored and device.type == "cpu" else WeightFormat.BF16


def prepare_triton(config: EngineConfig) -> None:
    """Settings of the Triton kernels that hold for the whole process."""
    from kernels.gpu.cache import use_kernel_cache
    from kernels.gpu.tuning import set_deterministic

    use_kernel_cache()
    set_deterministic(config.deterministic)


def make_runner(
    config: EngineConfig,
    decoder: Decoder,
    device: torch.device,
    max_batched: int,
    compiler: GuideCompiler | None,
    group: RankGroup | None = None,
) -> tuple[Runner, int]:
    """The KV cache and the executor over it, and how many blocks the cache has: the fewest that a rank has room for.

    Raises `ValueError` for a cache that this device cannot keep or that is too small.
    """
    model = decoder.config
    dtype = kv_dtype(config, decoder.dtype, device)
    drawn = config.max_num_seqs * (1 if config.speculate == "off" else 1 + config.max_draft)
    needed = step_bytes(model, drawn, max_batched, decoder.dtype.itemsize)
    budget = kv_budget_bytes(config, needed, device)
    num_blocks = num_kv_blocks(config, model, decoder.max_model_len, dtype, budget)
    if group is not None:
        num_blocks = group.smallest(num_blocks)
    sizes = (model.num_layers, num_blocks, model.num_kv_heads, config.block_size)
    caches = allocate_kv_caches(*sizes, model.head_dim, dtype, device)
    if not uses_triton(device):
        return ModelRunner(decoder, caches, Sampler(model.vocab_size, compiler), device), num_blocks
    scales = allocate_kv_scales(*sizes, device) if dtype in QUANTIZED_DTYPES else None
    limits = Limits(config.max_num_seqs, decoder.max_model_len)
    return DeviceRunner(decoder, caches, scales, model.vocab_size, limits, device, compiler), num_blocks


def kv_dtype(config: EngineConfig, computed: torch.dtype, device: torch.device) -> torch.dtype:
    """Raises `ValueError` where the device cannot keep keys and values as asked."""
    if config.kv_dtype == "auto":
        return computed
    dtype = KV_DTYPES[config.kv_dtype]
    if dtype is not computed and not uses_triton(device):
        raise ValueError(
            f"a {config.kv_dtype} KV cache needs a GPU or other weights: on this CPU it is kept as computed, in "
            f"{str(computed).removeprefix('torch.')}; leave --kv-dtype at auto"
        )
    if dtype is torch.float8_e4m3fn and device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
        raise ValueError("an fp8 KV cache needs compute capability 8.9 or newer; use --kv-dtype int8 on this card")
    return dtype
