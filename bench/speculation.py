"""Guessing tokens switched off and on: acceptance, tokens per second, joules per token, and whether texts are equal.

`gridserve bench speculation [--model M] [--concurrency N ...] [--json FILE]`. Tokens per second are measured on this
CPU. Joules per token are simulated: the same steps on the digital twin of a GPU with the shape of `--twin-model`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench._machine import cpu_name

if TYPE_CHECKING:
    from engine.build import BuiltEngine
    from power.twin import Twin

_ROWS = "".join(
    f"{number}. {word}, price {number * 7} euros\n"
    for number, word in enumerate(("lamp", "table", "chair", "mirror", "carpet", "shelf"), start=1)
)
# Greedy text of a small model soon repeats itself: the ordinary text is drawn at a temperature of 0.8.
WORKLOADS = {
    "repetitive": (_ROWS * 3, 0.0),
    "ordinary": ("Explain to a curious child why the sky is blue and why sunsets are red.", 0.8),
}


@dataclass(frozen=True, slots=True)
class SpeculationResult:
    """One workload with guessing off or on; `simulated_j_per_token` is the twin's, all else measured here."""

    workload: str
    speculate: str
    concurrency: int
    output_tokens: int
    steps: int
    drafted_tokens: int
    accepted_tokens: int
    acceptance: float | None
    tokens_per_s: float
    simulated_j_per_token: float
    same_text: bool


def measure(
    built: BuiltEngine, prompt: tuple[int, ...], temperature: float, concurrency: int, output_tokens: int, twin: Twin
) -> tuple[SpeculationResult, list[list[int]]]:
    """Serve `concurrency` requests over suffixes of `prompt`; returns the figures and the texts."""
    from engine.request import Request, SamplingParams
    from power.work import step_work

    engine = built.engine
    before = engine.scheduler.stats()
    engine.scheduler.reset_prefix_cache()
    params = SamplingParams(max_tokens=output_tokens, temperature=temperature, seed=0, ignore_eos=True)
    # Each starts a little further into the prompt, so that the texts part.
    requests = [Request(f"r{time.monotonic_ns()}-{i}", prompt[i:], params, float(i)) for i in range(concurrency)]
    for each in requests:
        engine.add(each)
    joules, steps = 0.0, 0
    started_s = time.perf_counter()
    while engine.has_work:
        outcome = engine.step()
        if outcome.fault is not None:
            raise RuntimeError(outcome.fault)
        if outcome.record is not None:
            step = twin.predict(step_work(outcome.record.work), twin.gpu.clock_max_mhz)
            joules += step.power_w * step.duration_s
            steps += 1
    elapsed_s = time.perf_counter() - started_s
    after = engine.scheduler.stats()
    drafted, accepted = after.drafted_tokens - before.drafted_tokens, after.accepted_tokens - before.accepted_tokens
    total = concurrency * output_tokens
    result = SpeculationResult(
        workload="",
        speculate="",
        concurrency=concurrency,
        output_tokens=total,
        steps=steps,
        drafted_tokens=drafted,
        accepted_tokens=accepted,
        acceptance=accepted / drafted if drafted else None,
        tokens_per_s=total / elapsed_s,
        simulated_j_per_token=joules / total,
        same_text=True,
    )
    return result, [each.token_ids[each.num_prompt_tokens :] for each in requests]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="gridserve bench speculation", description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct", help="(default: %(default)s)")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8], help="(default: 1 8)")
    parser.add_argument("--output-tokens", type=int, default=160, help="of each request (default: %(default)s)")
    parser.add_argument("--max-draft", type=int, default=4, help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, help="default: the physical cores")
    parser.add_argument("--gpu", default="h100-sxm", help="profile of the twin (default: %(default)s)")
    parser.add_argument("--twin-model", default="llama-3.1-8b", help="shape on the twin (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)

    from engine.build import build_engine
    from engine.checkpoint import open_checkpoint
    from engine.config import EngineConfig
    from engine.model_store import resolve_model
    from power.simulated import simulated_twin

    path = resolve_model(arguments.model)
    tokenizer = open_checkpoint(Path(path)).load_tokenizer()
    twin = simulated_twin(arguments.gpu, arguments.twin_model)
    config = EngineConfig(
        str(path),
        "bench",
        device="cpu",
        max_model_len=2048,
        num_threads=arguments.threads,
        max_draft=arguments.max_draft,
    )
    switches = ("off", "ngram")
    engines = {each: build_engine(replace(config, speculate=each), lambda *_: None) for each in switches}
    results: list[SpeculationResult] = []
    print(
        f"{'workload':12}{'guessing':>9}{'conc':>5}{'steps':>7}{'accepted':>10}{'tok/s':>9}{'J/token (simulated)':>21}"
    )
    for workload, (text, temperature) in WORKLOADS.items():
        prompt = tuple(tokenizer.encode(text))
        for concurrency in arguments.concurrency:
            plain: list[list[int]] = []
            for switch in switches:
                measure(engines[switch], prompt, temperature, concurrency, 8, twin)
                result, texts = measure(
                    engines[switch], prompt, temperature, concurrency, arguments.output_tokens, twin
                )
                plain = plain or texts
                results.append(replace(result, workload=workload, speculate=switch, same_text=texts == plain))
                shown = "-" if result.acceptance is None else f"{result.acceptance:.0%}"
                print(
                    f"{workload:12}{switch:>9}{concurrency:5}{result.steps:7}{shown:>10}{result.tokens_per_s:9.1f}"
                    f"{result.simulated_j_per_token:21.4f}{'' if texts == plain else '  TEXT DIFFERS'}"
                )
    if arguments.json is not None:
        report = {"machine": cpu_name(), "results": [asdict(each) for each in results]}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0 if all(each.same_text for each in results) else 1


if __name__ == "__main__":
    sys.exit(main())
