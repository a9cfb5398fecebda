"""The systems of the GPU engine benchmark, each alone in its process, all with random weights of one shape.

`python -m bench._gpu_systems NAME SHAPE DEVICE` reads one JSON workload a line and answers each with one JSON line.
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
from typing import Any, Protocol

from bench._gpu_shapes import MAX_MODEL_LEN, SHAPES, TINY, RandomWeights, hf_config
from engine.model_config import ModelConfig


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


class Gridserve:
    def __init__(self, config: ModelConfig, device: str, **options: Any) -> None:
        from importlib.metadata import version

        import torch

        from engine.block_pool import BlockPool
        from engine.build import choose_device, make_loop, make_proposer, make_runner, overlaps, prepare_triton
        from engine.config import EngineConfig
        from engine.decoder import Decoder
        from engine.device_runner import DeviceRunner, Limits
        from engine.scheduler import Scheduler
        from engine.scheduler_config import SchedulerConfig
        from kernels.kv_cache import allocate_kv_caches
        from kernels.weight_format import WeightFormat

        self.version = version("gridserve")
        self._vocab_size = config.vocab_size
        self._count = 0
        where = choose_device(device)
        settings = EngineConfig("random", "random", device=device, max_num_seqs=256, block_size=32, **options)
        weights = RandomWeights(config, where)
        decoder = Decoder(config, weights, WeightFormat.BF16, where, MAX_MODEL_LEN)
        max_batched = 4096
        runner: Any
        if where.type == "cuda":
            prepare_triton(settings)
            runner, num_blocks = make_runner(settings, decoder, where, max_batched, None)
            runner.warm_up()
        else:
            # A dry run takes the way of a GPU, over the plain-torch definitions.
            num_blocks = 256
            caches = allocate_kv_caches(
                config.num_layers, num_blocks, config.num_kv_heads, 32, config.head_dim, torch.bfloat16, where
            )
            runner = DeviceRunner(decoder, caches, None, config.vocab_size, Limits(256, MAX_MODEL_LEN), where)
        limits = SchedulerConfig(max_num_seqs=256, max_num_batched_tokens=max_batched, max_model_len=MAX_MODEL_LEN)
        proposer = make_proposer(settings, runner)
        overlap = overlaps(settings, runner)
        scheduler = Scheduler(limits, BlockPool(num_blocks, 32), runs_ahead=overlap, proposer=proposer)
        self._engine, _ = make_loop(scheduler, runner, overlap=overlap)

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

    def __init__(self, config: ModelConfig, device: str) -> None:
        import torch
        import transformers

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
    def __init__(self, config: ModelConfig, device: str) -> None:
        import vllm

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


SYSTEMS: dict[str, Callable[[ModelConfig, str], System]] = {
    "gridserve": Gridserve,
    "gridserve-fp8-kv": lambda config, device: Gridserve(config, device, kv_dtype="fp8"),
    "gridserve-int8-kv": lambda config, device: Gridserve(config, device, kv_dtype="int8"),
    "gridserve-no-overlap": lambda config, device: Gridserve(config, device, overlap=False),
    "gridserve-ngram": lambda config, device: Gridserve(config, device, speculate="ngram"),
    "gridserve-deterministic": lambda config, device: Gridserve(config, device, deterministic=True),
    "transformers-continuous": TransformersContinuous,
    "vllm": Vllm,
}


class EnergyCounter:
    """Joules the visible board has taken, from its own counter; None where there is none."""

    def __init__(self, device: str) -> None:
        self._device: Any = None
        self.reason: str | None = "no GPU: nothing to read"
        if device != "cuda":
            return
        from power.device import DeviceError
        from power.nvml import NvmlDevice, visible_uuids

        try:
            self._device = NvmlDevice(visible_uuids()[0])
            self.reason = None
        except (DeviceError, IndexError) as error:
            self.reason = f"NVML: {error}"

    def joules(self) -> float | None:
        return None if self._device is None else self._device.sample().energy_j


def main(argv: list[str]) -> int:
    name, shape, device = argv
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the libraries print must not mix with the answers

    def answer(value: dict[str, Any]) -> None:
        print(json.dumps(value), file=answers, flush=True)

    began_s = time.perf_counter()
    try:
        system = SYSTEMS[name](TINY if shape == "tiny" else SHAPES[shape], device)
    except ImportError as error:
        answer({"missing": str(error)})
        return 0
    start_s = time.perf_counter() - began_s
    counter = EnergyCounter(device)
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
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    sys.exit(main(sys.argv[1:]))
