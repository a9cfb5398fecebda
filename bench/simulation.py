"""How fast the simulator is and how much memory a run and writing its results take. `gridserve bench simulation`.

One process on one core; requests a second of processor time beside wall time, because other work on the machine slows
the latter. Peers on the same trace, by their projects' code on a 2-core machine: Vidur about 1,250, splitwise-sim
about 2,200 requests a second, neither with power control.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench._machine import cpu_name
from traces.experiment import BUNDLED, data_folder
from traces.experiment_checks import problems_of
from traces.reader import TraceFile
from traces.request import TraceRequest
from traces.results_io import write_run
from traces.simulate import simulate
from traces.simulate_policy import SimulationPolicy
from traces.simulate_settings import SimulationSettings
from traces.workload import Workload

CONV = "traces/azure_2023/AzureLLMInferenceTrace_conv.csv"
POLICIES = ("default", "slo_slack", "phase_aware")


@dataclass(frozen=True, slots=True)
class Speed:
    """One simulated run, as measured."""

    policy: str
    trace: str
    requests: int
    simulated_s: float
    cpu_s: float
    wall_s: float
    steps: int
    jumped_share: float
    requests_per_cpu_s: float
    times_real_time: float
    peak_memory_mib: float


class _Many:
    """`count` short requests, without a file."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[TraceRequest]:
        for number in range(self.count):
            yield TraceRequest(number * 0.05, 64 + number % 200, 1 + number % 30)


def measure(policy: str, trace: Path | int, limit: int | None, control_s: float) -> Speed:
    """Run once in this process and check that the run adds up."""
    if isinstance(trace, int):
        workload = Workload(_Many(trace), f"{trace:,} short requests", "synthetic")
    else:
        workload = Workload.from_file(TraceFile(trace)).select(limit=limit)
    # The first call compiles; a run of any length pays for that once, and only until it is kept on disk.
    warm_up = Workload(_Many(50), "warm-up", "synthetic")
    simulate(warm_up, SimulationPolicy("warm-up", governor="phase_aware"), SimulationSettings(control_s=control_s))
    chosen = SimulationPolicy(policy, governor=policy)  # type: ignore[arg-type]
    settings = SimulationSettings(control_s=control_s)
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    outcome = simulate(workload, chosen, settings)
    cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
    if problems := problems_of(outcome):
        raise ValueError(f"the run does not add up: {problems[0]}")
    # Not timed, but part of what a user's run needs room for.
    with tempfile.TemporaryDirectory() as folder:
        write_run(outcome.result, Path(folder))
    figures = outcome.figures
    return Speed(
        policy=policy,
        trace=workload.name,
        requests=figures["submitted"],
        simulated_s=outcome.result.duration_s,
        cpu_s=cpu_s,
        wall_s=wall_s,
        steps=figures["steps"],
        jumped_share=figures["jumped_steps"] / figures["steps"],
        requests_per_cpu_s=figures["submitted"] / cpu_s,
        times_real_time=outcome.result.duration_s / cpu_s,
        peak_memory_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="gridserve bench simulation", description=__doc__)
    parser.add_argument("--data", metavar="DIR", help="folder of public data (default: $GRIDSERVE_SHARED_DATA)")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N requests of the trace")
    parser.add_argument("--memory-requests", type=int, default=0, metavar="N", help="also simulate N short requests")
    parser.add_argument("--control-period", type=float, default=0.2, metavar="S", help="default 0.2, as in production")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    arguments = parser.parse_args(argv)
    data = data_folder(arguments.data)
    trace = BUNDLED / "chat_hour.jsonl" if data is None else data / CONV
    runs: list[tuple[str, Path | int]] = [(policy, trace) for policy in POLICIES]
    if arguments.memory_requests:
        runs.append(("slo_slack", arguments.memory_requests))
    rows = []
    print("policy        requests   cpu s  wall s  req/cpu s  x real  jumped    MiB")
    for policy, source in runs:
        # A process of its own, so that peak memory is that of the run.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            row = pool.apply(measure, (policy, source, arguments.limit, arguments.control_period))
        rows.append(row)
        print(
            f"{row.policy:12} {row.requests:9,d} {row.cpu_s:7.1f} {row.wall_s:7.1f} {row.requests_per_cpu_s:10,.0f} "
            f"{row.times_real_time:7,.0f} {row.jumped_share:7.1%} {row.peak_memory_mib:6,.0f}",
            flush=True,
        )
    if arguments.json:
        report = {
            "benchmark": "simulation",
            "method": "measured",
            "python": platform.python_version(),
            "processor": cpu_name(),
            "control_s": arguments.control_period,
            "rows": [asdict(row) for row in rows],
        }
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0
