"""The systems the engine benchmark compares, each behind one method, each alone in its process.

`python -m bench._systems NAME MODEL THREADS RANKS` reads one JSON request per line on standard input and answers each
with one JSON line, so that a parent can run the systems in turn on an otherwise idle machine.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import psutil

GREEDY_FIRST_TOKEN = 100  # below are special tokens of many vocabularies


@dataclass(frozen=True, slots=True)
class Workload:
    """`concurrency` requests at once, each `prompt_tokens` random tokens in and `output_tokens` greedy tokens out."""

    concurrency: int
    prompt_tokens: int
    output_tokens: int
    seed: int

    def prompts(self, vocab_size: int) -> list[list[int]]:
        rng = np.random.default_rng(self.seed)
        shape = (self.concurrency, self.prompt_tokens)
        return [[int(t) for t in row] for row in rng.integers(GREEDY_FIRST_TOKEN, vocab_size, shape)]


@dataclass(frozen=True, slots=True)
class Measurement:
    """When each token of each request came, seconds after the start of the run; peak memory of the process so far."""

    token_times_s: list[list[float]]
    peak_memory_bytes: int


class System(Protocol):
    version: str

    def run(self, workload: Workload) -> list[list[float]]:
        """Serve the workload; the times of each request's tokens, seconds after the start."""
        ...


class Gridserve:
    def __init__(self, model: str, threads: int, weight_format: str | None, ranks: int) -> None:
        from importlib.metadata import version

        from engine.build import build_engine
        from engine.config import EngineConfig
        from kernels.weight_format import WeightFormat

        chosen = None if weight_format is None else WeightFormat(weight_format)
        config = EngineConfig(
            model,
            "bench",
            weight_format=chosen,
            max_model_len=2048,
            num_threads=max(1, threads // ranks),
            tensor_parallel=ranks,
        )
        self._built = build_engine(config, lambda stage, done=0, total=0: None)
        self.version = version("gridserve")
        self._runs = 0

    def run(self, workload: Workload) -> list[list[float]]:
        from engine.request import Request, SamplingParams

        engine = self._built.engine
        times: dict[str, list[float]] = {}
        params = SamplingParams(max_tokens=workload.output_tokens, temperature=0.0, ignore_eos=True)
        started_s = time.perf_counter()
        self._runs += 1
        for index, prompt in enumerate(workload.prompts(self._built.info.vocab_size)):
            name = f"{self._runs}-{index}"
            times[name] = []
            engine.add(Request(name, tuple(prompt), params, time.monotonic()))
        while engine.has_work:
            outcome = engine.step()
            now_s = time.perf_counter() - started_s
            for update in outcome.updates:
                times[update.request.request_id].extend([now_s] * len(update.token_ids))
        return list(times.values())

    def close(self) -> None:
        self._built.close()


class LlamaCpp:
    """llama.cpp through its C API: one context, all sequences in one batch. `plain`: without the weight layouts of its
    own for some instruction sets, of which the one for AMX ends the process on some virtual machines."""

    def __init__(self, model: str, threads: int, plain: bool = False) -> None:
        import llama_cpp

        self._api = llama_cpp
        self.version = f"llama-cpp-python {llama_cpp.__version__}"
        llama_cpp.llama_backend_init()
        self._silence = llama_cpp.llama_log_callback(lambda _level, _text, _data: None)
        llama_cpp.llama_log_set(self._silence, None)
        self._threads = threads
        params = llama_cpp.llama_model_default_params()
        params.use_extra_bufts = not plain
        self._model = llama_cpp.llama_model_load_from_file(model.encode(), params)
        if not self._model:
            raise ValueError(f"llama.cpp cannot load {model}")
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))

    def run(self, workload: Workload) -> list[list[float]]:
        api = self._api
        sequences = workload.concurrency
        length = workload.prompt_tokens + workload.output_tokens
        params = api.llama_context_default_params()
        params.n_ctx = sequences * (length + 32)
        params.n_batch = params.n_ubatch = 512
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = self._threads
        context = api.llama_init_from_model(self._model, params)
        batch = api.llama_batch_init(512, 0, 1)
        try:
            return self._serve(context, batch, workload)
        finally:
            api.llama_batch_free(batch)
            api.llama_free(context)

    def _serve(self, context: Any, batch: Any, workload: Workload) -> list[list[float]]:
        times: list[list[float]] = [[] for _ in range(workload.concurrency)]
        latest = [0] * workload.concurrency
        started_s = time.perf_counter()

        def put(token: int, position: int, sequence: int, wanted: bool) -> None:
            at = batch.n_tokens
            batch.token[at], batch.pos[at] = token, position
            batch.n_seq_id[at], batch.seq_id[at][0], batch.logits[at] = 1, sequence, wanted
            batch.n_tokens += 1

        def decode(wanted: list[tuple[int, int]]) -> None:
            if self._api.llama_decode(context, batch):
                raise RuntimeError("llama_decode failed")
            for row, sequence in wanted:
                logits = self._api.llama_get_logits_ith(context, row)
                latest[sequence] = int(np.argmax(np.ctypeslib.as_array(logits, shape=(self._vocab_size,))))
                times[sequence].append(time.perf_counter() - started_s)
            batch.n_tokens = 0

        batch.n_tokens = 0
        wanted: list[tuple[int, int]] = []
        for sequence, prompt in enumerate(workload.prompts(self._vocab_size)):
            for position, token in enumerate(prompt):
                last = position + 1 == len(prompt)
                if last:
                    wanted.append((batch.n_tokens, sequence))
                put(token, position, sequence, last)
                if batch.n_tokens == 512:
                    decode(wanted)
                    wanted = []
        if batch.n_tokens:
            decode(wanted)
        for step in range(workload.output_tokens - 1):
            for sequence in range(workload.concurrency):
                put(latest[sequence], workload.prompt_tokens + step, sequence, True)
            decode([(sequence, sequence) for sequence in range(workload.concurrency)])
        return times


class _Transformers:
    def __init__(self, model: str, threads: int) -> None:
        import torch
        import transformers

        from bench._hf_model import load_causal_lm

        torch.set_num_threads(threads)
        self.version = f"transformers {transformers.__version__}"
        self._model = load_causal_lm(model, torch.bfloat16)
        self._vocab_size = int(self._model.config.vocab_size)


class TransformersGenerate(_Transformers):
    """`model.generate` on one padded-free batch, SDPA attention, bf16."""

    def run(self, workload: Workload) -> list[list[float]]:
        import torch
        from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

        step_times: list[float] = []
        started_s = time.perf_counter()

        class Stamp(StoppingCriteria):  # type: ignore[misc]
            def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
                step_times.append(time.perf_counter() - started_s)
                return torch.zeros(input_ids.shape[0], dtype=torch.bool)

        prompts = torch.tensor(workload.prompts(self._vocab_size))
        count = workload.output_tokens
        config = GenerationConfig(
            max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0, eos_token_id=None
        )
        with torch.inference_mode():
            self._model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                generation_config=config,
                stopping_criteria=StoppingCriteriaList([Stamp()]),
            )
        return [list(step_times) for _ in range(workload.concurrency)]


class TransformersContinuous(_Transformers):
    """transformers' continuous batching manager with its defaults, bf16."""

    def run(self, workload: Workload) -> list[list[float]]:
        from transformers import GenerationConfig

        config = GenerationConfig(
            max_new_tokens=workload.output_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
        )
        prompts = workload.prompts(self._vocab_size)
        with self._model.continuous_batching_context_manager(generation_config=config, warmup=True) as manager:
            started_s = time.perf_counter()
            manager.add_requests(inputs=prompts, max_new_tokens=workload.output_tokens, record_timestamps=True)
            finished: list[list[float]] = []
            while len(finished) < len(prompts):
                result = manager.get_result(timeout=1)
                if result is not None and result.is_finished():
                    finished.append([stamp - started_s for stamp in result.timestamps])
                elif result is None and not manager.is_running():
                    raise RuntimeError("transformers' generation thread ended")
        return finished


# Model, threads, and ranks that share them: the peers are threads of one process.
SYSTEMS: dict[str, Callable[[str, int, int], System]] = {
    "gridserve": lambda model, threads, ranks: Gridserve(model, threads, None, ranks),
    "gridserve-int8": lambda model, threads, ranks: Gridserve(model, threads, "int8", ranks),
    "gridserve-bf16": lambda model, threads, ranks: Gridserve(model, threads, "bf16", ranks),
    "llama.cpp": lambda model, threads, ranks: LlamaCpp(model, threads),
    "llama.cpp-plain": lambda model, threads, ranks: LlamaCpp(model, threads, plain=True),
    "transformers-generate": lambda model, threads, ranks: TransformersGenerate(model, threads),
    "transformers-continuous": lambda model, threads, ranks: TransformersContinuous(model, threads),
}


def peak_memory_bytes() -> int:
    """Of this process so far, and what the ranks it started hold now."""
    ranks = sum(int(child.memory_info().rss) for child in psutil.Process().children())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + ranks


def main(argv: list[str]) -> int:
    name, model, threads, ranks = argv[0], argv[1], int(argv[2]), int(argv[3])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the libraries print must not mix with the answers

    def answer(value: dict[str, Any]) -> None:
        print(json.dumps(value), file=answers, flush=True)

    try:
        system = SYSTEMS[name](model, threads, ranks)
    except ImportError as error:
        answer({"missing": str(error)})
        return 0
    answer({"version": system.version})
    for line in sys.stdin:
        gc.collect()
        times = system.run(Workload(**json.loads(line)))
        answer(asdict(Measurement(times, peak_memory_bytes())))
    if isinstance(system, Gridserve):
        system.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
