"""`gridserve simulate TRACE --policy P --gpu GPU --model M --out DIR`: a policy on a trace in virtual time."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from serving.commands import CommandError
from traces.options import add_read_options, add_shape_options, open_trace, shape

if TYPE_CHECKING:
    from pathlib import Path

    from serving.commands import Subparsers
    from traces.simulate import SimulationOutcome
    from traces.simulate_grid import Grid
    from traces.simulate_policy import SimulationPolicy, SloSettings
    from traces.simulate_settings import SimulationSettings
    from traces.workload import Workload

EXAMPLES = """examples:
  gridserve simulate conv.csv --policy slo_slack --gpu h100-sxm --model llama-3.1-8b --out runs/slack
  gridserve simulate conv.csv --policy policies/save-energy.yaml --out runs/save --intensity GB_2023_hourly.csv
  gridserve simulate conv.csv --policy static:1200 --model llama-3.1-70b --tensor-parallel 4 --gpus 8 --out runs/70b
"""
NAMES = ("default", "slo_slack", "phase_aware")


def register(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "simulate",
        help="what a policy would have cost on a trace",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("trace", metavar="TRACE", help="a trace file of any known format")
    parser.add_argument(
        "--policy", required=True, metavar="P", help=f"{', '.join(NAMES)}, static:MHZ, or a policy file (YAML)"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the results")
    parser.add_argument("--gpu", default="h100-sxm", metavar="PROFILE", help="default h100-sxm")
    parser.add_argument("--model", default="llama-3.1-8b", metavar="SHAPE", help="default llama-3.1-8b")
    parser.add_argument("--engine", default="vllm-0.11", metavar="PROFILE", help="engine overheads (default vllm-0.11)")
    parser.add_argument("--gpus", type=int, metavar="N", help="GPUs in all (default: those of one engine)")
    parser.add_argument("--tensor-parallel", type=int, default=1, metavar="N", help="GPUs of one engine (default 1)")
    parser.add_argument("--intensity", metavar="CSV", help="recorded carbon intensity, hourly")
    parser.add_argument("--intensity-start", metavar="TIME", help="moment of the series at the trace's zero (ISO 8601)")
    parser.add_argument("--pue", type=float, help="default: the policy's, else 1")
    parser.add_argument("--slo", type=float, nargs=2, metavar=("TTFT_MS", "TPOT_MS"), help="default: the policy's")
    parser.add_argument("--control-period", type=float, default=0.2, metavar="S", help="default 0.2, as in production")
    parser.add_argument("--max-model-len", type=int, default=16384, metavar="TOKENS", help="default 16384")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    add_read_options(parser)
    add_shape_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    import json
    import sys
    from datetime import datetime
    from pathlib import Path

    from traces.experiment_checks import check_outcome
    from traces.report import report_lines
    from traces.results_io import write_run
    from traces.simulate_grid import read_grid
    from traces.simulate_policy import SloSettings
    from traces.simulate_settings import SimulationSettings
    from traces.workload import Workload

    try:
        workload = shape(Workload.from_file(open_trace(arguments)), arguments)
        policy, slo, pue = _policy(arguments.policy)
        if arguments.slo is not None:
            slo = SloSettings(*arguments.slo)
        degree = arguments.tensor_parallel
        gpus = arguments.gpus if arguments.gpus is not None else degree
        if degree < 1 or gpus < degree or gpus % degree:
            raise CommandError(f"--gpus {gpus} must be a multiple of --tensor-parallel {degree}")
        settings = SimulationSettings(
            gpu=arguments.gpu,
            model=arguments.model,
            engine=arguments.engine,
            tensor_parallel=degree,
            servers=gpus // degree,
            max_model_len=arguments.max_model_len,
            control_s=arguments.control_period,
            pue=arguments.pue if arguments.pue is not None else pue,
            slo=slo,
        )
        grid = None
        if arguments.intensity is not None:
            start = datetime.fromisoformat(arguments.intensity_start) if arguments.intensity_start else None
            grid = read_grid(Path(arguments.intensity), start or workload.origin.started_at)
        out = Path(arguments.out)
        if out.exists() and not out.is_dir():
            raise CommandError(f"{out} is a file; --out must be a folder")
        outcome = _run(workload, policy, settings, grid, arguments.seed)
        check_outcome(outcome)
        write_run(outcome.result, out)
        outcome.timeline.write(out / "timeline.parquet")
        figures = {**outcome.result.summary(), "simulation": dict(outcome.figures)}
        (out / "simulation.json").write_text(json.dumps(dict(outcome.figures), indent=2) + "\n", encoding="utf-8")
    except (ValueError, OSError) as error:
        raise CommandError(str(error)) from None
    if arguments.json:
        print(json.dumps(figures))
    else:
        for line in report_lines(outcome.result):
            print(line)
    print(f"Simulated, not measured. Results are in {out}", file=sys.stderr)
    return 0


def _run(
    workload: Workload,
    policy: SimulationPolicy,
    settings: SimulationSettings,
    grid: Grid | None,
    seed: int,
) -> SimulationOutcome:
    """With a progress line on a terminal. Directive mixes are learned from the trace itself: hindsight."""
    import sys

    from tqdm import tqdm

    from traces.simulate import simulate
    from traces.simulate_directives import Directives, learn

    directing = None
    if policy.directives is not None:
        knowledge = learn(workload, settings.make_twin())
        directing = Directives(knowledge, policy.directives, grid, seed=seed)
    with tqdm(desc="simulated", unit="min", disable=not sys.stderr.isatty()) as bar:

        def show(time_s: float, requests: int) -> None:
            bar.update(time_s / 60.0 - bar.n)
            bar.set_postfix(requests=requests)

        return simulate(workload, policy, settings, grid=grid, directing=directing, seed=seed, on_progress=show)


def _policy(text: str) -> tuple[SimulationPolicy, SloSettings, float]:
    """The policy with the SLO and PUE it states; a name, `static:MHZ`, or a policy file."""
    from pathlib import Path

    from traces.simulate_policy import SimulationPolicy, SloSettings

    if text in NAMES:
        return SimulationPolicy(text, governor=text), SloSettings(), 1.0  # type: ignore[arg-type]
    name, separator, clock = text.partition(":")
    if name == "static" and separator:
        if not clock.isdecimal():
            raise CommandError(f"--policy static:MHZ takes a clock in MHz, got {text!r}")
        return SimulationPolicy(f"static {clock}", governor="static", clock_mhz=int(clock)), SloSettings(), 1.0
    if not Path(text).is_file():
        raise CommandError(f"--policy {text}: no such file, and none of {', '.join(NAMES)}, static:MHZ")
    return policy_from_file(Path(text))


def policy_from_file(path: Path) -> tuple[SimulationPolicy, SloSettings, float]:
    """Translate a policy file: governor with its parameters, bounds, row budget, carbon_follow, directives.

    What the simulator has no counterpart for (rules, tenants, the evaluator) is refused by name rather than dropped.
    """
    from serving.policy.load import load_policy
    from serving.policy.problems import PolicyError
    from serving.policy_simulation import translated

    try:
        loaded = load_policy(path)
    except PolicyError as error:
        raise CommandError(str(error)) from None
    spec = loaded.policy.spec
    if spec.rules or spec.tenants:
        raise CommandError(f"{path}: rules and tenants cannot be simulated yet; take them out for the simulation")
    try:
        found = translated(loaded.policy)
    except ValueError as error:
        raise CommandError(f"{path}: {error}") from None
    return found.policy, found.slo, found.pue
