"""Host cost of a step: schedule + update + record, with no model. `gridserve bench scheduler [--json FILE]`."""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench._machine import cpu_name
from engine.batch import Batch, SampledTokens, StepResult
from engine.block_pool import BlockPool
from engine.request import Request, SamplingParams
from engine.scheduler import Scheduler, SchedulerConfig

BLOCK_SIZE = 16
RUNNING = (1, 8, 64, 256)
DECODE_PROMPT_TOKENS = 128
CHURN_SHARED_TOKENS = 128
CHURN_PROMPT_TOKENS = 256
CHURN_OUTPUT_TOKENS = (32, 96)
WARM_UP_STEPS = 50


@dataclass(frozen=True, slots=True)
class StepCost:
    """Measured wall time of the scheduler's share of a step, in microseconds."""

    load: str
    running: int
    steps: int
    p50_us: float
    p99_us: float
    mean_us: float
    finished_requests: int
    preemptions: int


def measure(load: str, running: int, num_steps: int) -> StepCost:
    """Keep `running` requests in the engine for `num_steps`.

    `decode`: all of them decode all the time. `churn`: whoever finishes is replaced by a new prompt that shares its
    first half with all others, so that admission, prefix hits, eviction and freeing are in the figure.
    """
    churn = load == "churn"
    rng = random.Random(0)
    longest = CHURN_PROMPT_TOKENS + CHURN_OUTPUT_TOKENS[1]
    if not churn:
        longest = DECODE_PROMPT_TOKENS + num_steps + WARM_UP_STEPS + running
    num_blocks = (running + 1) * (longest // BLOCK_SIZE + 2)
    config = SchedulerConfig(max_num_seqs=running, max_num_batched_tokens=2048, max_model_len=longest + 1)
    scheduler = Scheduler(config, BlockPool(num_blocks, BLOCK_SIZE))
    shared = tuple(rng.randrange(50_000) for _ in range(CHURN_SHARED_TOKENS))

    def make(number: int) -> Request:
        if not churn:
            prompt = tuple(rng.randrange(50_000) for _ in range(DECODE_PROMPT_TOKENS))
            return Request(f"r{number}", prompt, SamplingParams(max_tokens=longest, ignore_eos=True), float(number))
        own = tuple(rng.randrange(50_000) for _ in range(CHURN_PROMPT_TOKENS - CHURN_SHARED_TOKENS))
        sampling = SamplingParams(max_tokens=rng.randint(*CHURN_OUTPUT_TOKENS), ignore_eos=True)
        return Request(f"r{number}", shared + own, sampling, float(number))

    num_added = 0
    durations_us: list[float] = []
    finished = 0
    while len(durations_us) < num_steps + WARM_UP_STEPS:
        while scheduler.num_running + scheduler.num_waiting < running:
            scheduler.add(make(num_added))
            num_added += 1
        started_ns = time.perf_counter_ns()
        batch = scheduler.schedule()
        scheduled_ns = time.perf_counter_ns()
        result = _draw(batch, rng)
        drawn_ns = time.perf_counter_ns()
        updates = scheduler.update(batch, result)
        scheduler.record(batch, result)
        ended_ns = time.perf_counter_ns()
        finished += sum(update.finish_reason is not None for update in updates)
        if not churn and len(batch.requests) < running:
            continue
        durations_us.append((ended_ns - drawn_ns + scheduled_ns - started_ns) / 1e3)
    durations_us = durations_us[WARM_UP_STEPS:]
    percentiles = statistics.quantiles(durations_us, n=100, method="inclusive")
    return StepCost(
        load=load,
        running=running,
        steps=num_steps,
        p50_us=percentiles[49],
        p99_us=percentiles[98],
        mean_us=statistics.fmean(durations_us),
        finished_requests=finished,
        preemptions=scheduler.stats().preemptions,
    )


def _draw(batch: Batch, rng: random.Random) -> StepResult:
    sampled = tuple(
        SampledTokens((rng.randrange(50_000),)) if scheduled.samples else SampledTokens()
        for scheduled in batch.requests
    )
    return StepResult(sampled, 0.0, 0.0)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="gridserve bench scheduler", description=__doc__)
    parser.add_argument("--steps", type=int, default=2000, help="steps measured for each row (default 2000)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    arguments = parser.parse_args(argv)
    if arguments.steps < 2:
        parser.error("--steps must be at least 2")
    rows = []
    print(f"{'load':8} {'running':>8} {'p50 us':>9} {'p99 us':>9} {'mean us':>9} {'us/request':>11}")
    for load in ("decode", "churn"):
        for running in RUNNING:
            cost = measure(load, running, arguments.steps)
            rows.append(cost)
            per_request_us = cost.p50_us / running
            print(
                f"{load:8} {running:8d} {cost.p50_us:9.1f} {cost.p99_us:9.1f} {cost.mean_us:9.1f} "
                f"{per_request_us:11.2f}",
                flush=True,
            )
    if arguments.json:
        report = {
            "benchmark": "scheduler",
            "method": "measured",
            "python": platform.python_version(),
            "machine": cpu_name(),
            "block_size": BLOCK_SIZE,
            "rows": [asdict(row) for row in rows],
        }
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0
