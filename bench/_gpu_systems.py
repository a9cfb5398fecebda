"""The systems of the GPU engine benchmark, each alone in its process, all with random weights of one shape.

`python -m bench._gpu_systems NAME SHAPE DEVICE RANKS` reads one JSON workload a line and answers each with one JSON
line.
"""

from __future__ import annotations

import gc
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from bench._gpu_shapes import MAX_MODEL_LEN, SHAPES, TINY, RandomWeights, hf_config
from kernels.weight_format import WeightFormat

if TYPE_CHECKING:
    from engine.config import EngineConfig
    from engine.device_runner import DeviceRunner
    from engine.model_runner import ModelRunner
    from engine.rank_group import RankGroup

MAX_BATCHED = 4096


@dataclass(frozen=True, slots=True)
class GpuWorkload:
    """`requests` prompts of `shortest` to `longest` tokens, answers drawn likewise; one request takes `longest`.

    Lengths and tokens come from Python's generator seeded with `seed`, in the order in which small engines commonly
    draw theirs for this benchmark.
    """

    requests: int
    shortest: int
    longest: int
    seed: int = 0
    temperature: float = 0.6

    def pairs(self, vocab_size: int) -> list[tuple[list[int], int]]:
        """`(prompt token ids, tokens to generate)` of each request."""
        rng = random.Random(self.seed)
        if self.requests == 1:
            return [([rng.randint(0, vocab_size - 1) for _ in range(self.longest)], self.longest)]
        top = min(10_000, vocab_size - 1)
        prompts = [
            [rng.randint(0, top) for _ in range(rng.randint(self.shortest, self.longest))] for _ in range(self.requests)
        ]
        return [(prompt, rng.randint(self.shortest, self.longest)) for prompt in prompts]


@dataclass(frozen=True, slots=True)
class GpuMeasurement:
    """One run, from the first request to the last token. `energy_j`: of the whole board; None without a counter."""

    seconds: float
    output_tokens: int
    prompt_tokens: int
    energy_j: float | None
    start_seconds: float


class System(Protocol):
    version: str

    def run(self, workload: GpuWorkload) -> int:
        """Serve the workload; the number of tokens that came out."""
        ...


def load_runner(
    shape: str, settings: EngineConfig, group: RankGroup | None = None
) -> tuple[ModelRunner | DeviceRunner, int]:
    """A warm runner over random weights of `shape`, and how many blocks its cache has; a rank's part in a group."""
    from engine.build import KV_DTYPES, choose_device, make_runner, prepare_triton
    from engine.decoder import Decoder
    from engine.device_runner import DeviceRunner, Limits
    from kernels.gpu.definitions import QUANTIZED_DTYPES
    from kernels.kv_cache import allocate_kv_caches, allocate_kv_scales

    config = TINY if shape == "tiny" else SHAPES[shape]
    where = choose_device(settings.device, settings.tensor_parallel, 0 if group is None else group.rank)
    if where.type == "cuda":
        prepare_triton(settings)
    weight_format = settings.weight_format or WeightFormat.BF16
    decoder = Decoder(config, RandomWeights(config, where), weight_format, where, MAX_MODEL_LEN, group=group)
    if where.type == "cuda":
        runner, num_blocks = make_runner(settings, decoder, where, MAX_BATCHED, None, group)
        assert isinstance(runner, DeviceRunner)
        runner.warm_up()
        return runner, num_blocks
    # A dry run takes the way of a GPU, over the plain-torch definitions.
    num_blocks, local = 256, decoder.config
    dtype = KV_DTYPES.get(settings.kv_dtype, decoder.dtype)
    sizes = (local.num_layers, num_blocks, local.num_kv_heads, settings.block_size)
    caches = allocate_kv_caches(*sizes, local.head_dim, dtype, where)
    scales = allocate_kv_scales(*sizes, where) if dtype in QUANTIZED_DTYPES else None
    limits = Limits(settings.max_num_seqs, MAX_MODEL_LEN)
    return DeviceRunner(decoder, caches, scales, config.vocab_size, limits, where), num_blocks


class Gridserve:
    def __init__(self, shape: str, device: str, ranks: int, **options: Any) -> None:
        from importlib.metadata import version

        from engine.block_pool import BlockPool
        from engine.build import join_group, make_loop, make_proposer, overlaps
        from engine.config import EngineConfig
        from engine.leading_runner import LeadingRunner
        from engine.rank_processes import RankProcesses
        from engine.scheduler import Scheduler
        from engine.scheduler_config import SchedulerConfig

        self.version = version("gridserve")
        self._vocab_size = (TINY if shape == "tiny" else SHAPES[shape]).vocab_size
        self._count = 0
        settings = EngineConfig(
            shape, shape, device=device, max_num_seqs=256, block_size=32, tensor_parallel=ranks, **options
        )
        self._ranks: RankProcesses | None = None
        group = None
        if ranks > 1:
            self._ranks = RankProcesses(settings, (sys.executable, "-m", "bench._gpu_rank"))
            group = join_group(settings, 0, self._ranks.rendezvous)
        runner, num_blocks = load_runner(shape, settings, group)
        limits = SchedulerConfig(max_num_seqs=256, max_num_batched_tokens=MAX_BATCHED, max_model_len=MAX_MODEL_LEN)
        overlap = overlaps(settings, runner)
        pool, proposer = BlockPool(num_blocks, settings.block_size), make_proposer(settings, runner)
        scheduler = Scheduler(limits, pool, runs_ahead=overlap, proposer=proposer)
        leading = runner if self._ranks is None else LeadingRunner(runner, self._ranks)
        self._engine, _ = make_loop(scheduler, leading, overlap=overlap)

    def close(self) -> None:
        if self._ranks is not None:
            self._ranks.close()

    def run(self, workload: GpuWorkload) -> int:
        from engine.request import Request, SamplingParams

        engine = self._engine
        engine.scheduler.reset_prefix_cache()
        for index, (prompt, tokens) in enumerate(workload.pairs(self._vocab_size)):
            self._count += 1
            params = SamplingParams(max_tokens=tokens, temperature=workload.temperature, seed=index, ignore_eos=True)
            engine.add(Request(f"r{self._count}", tuple(prompt), params, time.monotonic()))
        produced = 0
        while engine.has_work:
            outcome = engine.step()
            if outcome.fault is not None:
                raise RuntimeError(outcome.fault)
            produced += sum(len(update.token_ids) for update in outcome.updates)
        return produced


class TransformersContinuous:
    """transformers' continuous batching manager with its defaults, bf16."""

    def __init__(self, shape_name: str, device: str, ranks: int) -> None:
        import torch
        import transformers

        if ranks > 1:
            raise ValueError("transformers is measured on one GPU")
        config = TINY if shape_name == "tiny" else SHAPES[shape_name]
        self.version = f"transformers {transformers.__version__}"
        self._vocab_size = config.vocab_size
        shape = hf_config(config)
        with torch.device(device):
            model = transformers.AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16)
        self._model = model.to(device).eval()
        self._extra: dict[str, Any] = {}
        if device == "cpu":
            # Left to itself the cache of a dry run would take most of the machine's memory.
            small = transformers.ContinuousBatchingConfig(block_size=32, num_blocks=64, max_batch_tokens=64)
            self._extra = {"continuous_batching_config": small}

    def run(self, workload: GpuWorkload) -> int:
        from transformers import GenerationConfig

        greedy = workload.temperature == 0.0
        extra = {} if greedy else {"temperature": workload.temperature}
        config = GenerationConfig(
            max_new_tokens=workload.longest, do_sample=not greedy, eos_token_id=-1, pad_token_id=0, **extra
        )
        pairs = workload.pairs(self._vocab_size)
        produced = 0
        with self._model.continuous_batching_context_manager(
            generation_config=config, warmup=True, **self._extra
        ) as manager:
            for prompt, tokens in pairs:
                manager.add_request(input_ids=prompt, max_new_tokens=tokens)
            finished = 0
            while finished < len(pairs):
                result = manager.get_result(timeout=1)
                if result is not None and result.is_finished():
                    finished += 1
                    produced += len(result.generated_tokens)
                elif result is None and not manager.is_running():
                    raise RuntimeError("transformers' generation thread ended")
        return produced


class Vllm:
    def __init__(self, shape_name: str, device: str, ranks: int) -> None:
        import vllm

        config = TINY if shape_name == "tiny" else SHAPES[shape_name]
        self._api = vllm
        self.version = f"vllm {vllm.__version__}"
        self._vocab_size = config.vocab_size
        self._folder = tempfile.TemporaryDirectory()
        shape = hf_config(config)
        shape.architectures = ["Qwen3ForCausalLM" if config.architecture == "qwen3" else "LlamaForCausalLM"]
        shape.save_pretrained(self._folder.name)
        self._model = vllm.LLM(
            model=self._folder.name,
            load_format="dummy",
            skip_tokenizer_init=True,
            dtype="bfloat16",
            max_model_len=MAX_MODEL_LEN,
            max_num_seqs=256,
            tensor_parallel_size=ranks,
        )

    def run(self, workload: GpuWorkload) -> int:
        pairs = workload.pairs(self._vocab_size)
        prompts = [{"prompt_token_ids": prompt} for prompt, _ in pairs]
        params = [
            self._api.SamplingParams(
                temperature=workload.temperature, ignore_eos=True, max_tokens=tokens, detokenize=False, seed=index
            )
            for index, (_, tokens) in enumerate(pairs)
        ]
        results = self._model.generate(prompts, params, use_tqdm=False)
        return sum(len(each.outputs[0].token_ids) for each in results)


def gridserve(**options: Any) -> Callable[[str, str, int], System]:
    return lambda shape, device, ranks: Gridserve(shape, device, ranks, **options)


# Shape, device, and ranks that share the model.
SYSTEMS: dict[str, Callable[[str, str, int], System]] = {
    "gridserve": gridserve(),
    "gridserve-fp8-kv": gridserve(kv_dtype="fp8"),
    "gridserve-int8-kv": gridserve(kv_dtype="int8"),
    "gridserve-int8-weights": gridserve(weight_format=WeightFormat.INT8),
    "gridserve-no-overlap": gridserve(overlap=False),
    "gridserve-ngram": gridserve(speculate="ngram"),
    "gridserve-deterministic": gridserve(deterministic=True),
    "transformers-continuous": TransformersContinuous,
    "vllm": Vllm,
}


class EnergyCounter:
    """Joules that the boards of all ranks have taken, from their own counters; None where there is none."""

    def __init__(self, device: str, ranks: int = 1) -> None:
        self._devices: list[Any] = []
        self.reason: str | None = "no GPU: nothing to read"
        if device != "cuda":
            return
        from power.device import DeviceError
        from power.nvml import NvmlDevice, visible_uuids

        try:
            self._devices = [NvmlDevice(visible_uuids()[rank]) for rank in range(ranks)]
            self.reason = None
        except (DeviceError, IndexError) as error:
            self.reason = f"NVML: {error}"

    def joules(self) -> float | None:
        total_j = 0.0
        for device in self._devices:
            energy_j = device.sample().energy_j
            if energy_j is None:
                return None
            total_j += energy_j
        return total_j if self._devices else None


def main(argv: list[str]) -> int:
    name, shape, device, ranks = argv[0], argv[1], argv[2], int(argv[3])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the libraries print must not mix with the answers

    def answer(value: dict[str, Any]) -> None:
        print(json.dumps(value), file=answers, flush=True)

    began_s = time.perf_counter()
    try:
        system = SYSTEMS[name](shape, device, ranks)
    except ImportError as error:
        answer({"missing": str(error)})
        return 0
    start_s = time.perf_counter() - began_s
    counter = EnergyCounter(device, ranks)
    answer({"version": system.version, "energy_missing": counter.reason})
    for line in sys.stdin:
        gc.collect()
        workload = GpuWorkload(**json.loads(line))
        vocab_size = (TINY if shape == "tiny" else SHAPES[shape]).vocab_size
        prompt_tokens = sum(len(prompt) for prompt, _ in workload.pairs(vocab_size))
        before_j, started_s = counter.joules(), time.perf_counter()
        produced = system.run(workload)
        seconds, after_j = time.perf_counter() - started_s, counter.joules()
        energy_j = after_j - before_j if before_j is not None and after_j is not None else None
        answer(asdict(GpuMeasurement(seconds, produced, prompt_tokens, energy_j, start_s)))
    if isinstance(system, Gridserve):
        system.close()
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    sys.exit(main(sys.argv[1:]))
