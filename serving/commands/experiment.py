"""`gridserve experiment FILE`: a grid of policies, traces, loads, zones and seeds, simulated, with one report."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from serving.commands import CommandError

if TYPE_CHECKING:
    from collections.abc import Callable

    from serving.commands import Subparsers

EXAMPLES = """examples:
  gridserve experiment dvfs.yaml
  gridserve experiment traces/experiments/polca.yaml --data /data/public --out runs/polca --jobs 4
  gridserve experiment my.yaml --seeds 1 2 --check

A bare name is looked for among the shipped files: quick.yaml, dvfs.yaml, polca.yaml, sprout.yaml, together.yaml. An
interrupted experiment goes on where it stopped: runs that are there already are not made again.
"""


def register(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "experiment",
        help="simulate a grid of policies and traffic, and write a report",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE", help="an experiment file (YAML)")
    parser.add_argument("--out", metavar="DIR", help="folder for runs and report (default: experiments/NAME)")
    parser.add_argument(
        "--data",
        metavar="DIR",
        help="folder of public data with traces/ and carbon/ (default: $GRIDSERVE_SHARED_DATA; without it the bundled "
        "synthetic traces are used, and the report says so)",
    )
    parser.add_argument("--jobs", type=int, metavar="N", help="processes (default: one for each processor)")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N", help="instead of the file's")
    parser.add_argument("--check", action="store_true", help="only read the file and say how many runs it makes")
    parser.add_argument("--json", action="store_true", help="print where the results are as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    import json
    import sys
    from pathlib import Path

    import msgspec

    from traces.experiment import cells, data_folder, read_experiment

    try:
        experiment = read_experiment(Path(arguments.file))
        if arguments.seeds:
            experiment = msgspec.structs.replace(experiment, seeds=tuple(arguments.seeds))
        data = data_folder(arguments.data)
        count = sum(1 for _ in cells(experiment))
        if arguments.check:
            print(f"{experiment.name}: {count} runs; data: {data or 'bundled synthetic traces'}")
            return 0
        out = Path(arguments.out) if arguments.out else Path("experiments") / experiment.name
        if out.exists() and not out.is_dir():
            raise CommandError(f"{out} is a file; --out must be a folder")
        from traces.experiment_report import write_report
        from traces.experiment_run import run_experiment

        report, close = _bar(experiment.name)
        try:
            rows = run_experiment(experiment, out, data, jobs=arguments.jobs, on_progress=report)
        finally:
            close()
        written = write_report(experiment, rows, out)
    except ValueError as error:
        raise CommandError(str(error)) from None
    if arguments.json:
        paths = {"report": written.html, "json": written.json, "csv": written.csv}
        print(json.dumps({name: str(path) for name, path in paths.items()}))
    else:
        print(written.html)
    if data is None:
        print("gridserve: no public data was given: the bundled synthetic traces were used", file=sys.stderr)
    return 0


def _bar(name: str) -> tuple[Callable[[int, int], None], Callable[[], None]]:
    """A progress bar of runs on a terminal; nothing in a pipe."""
    import sys

    from tqdm import tqdm

    bar = tqdm(desc=name, unit="run", disable=not sys.stderr.isatty())

    def report(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    return report, bar.close
