"""Experiment results: folders with a `result.json`, their figures over all seeds, and which runs no other beats."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dashboard.views.formats import UNKNOWN, count, number, share

RESULT, CELL, REPORT = "result.json", "cell.json", "report.html"
ALONE = "single runs"
MAX_DEPTH = 4
MAX_RUNS = 500
MAX_BYTES = 20_000_000
PLACE = ("policy", "trace", "variant", "zone")
"""What tells the cells of an experiment apart, but for the seed."""


@dataclass(frozen=True)
class Run:
    """`figures`: scalars of the result file as written, or their means over `seeds` runs. `problem`: why it cannot be
    read. `experiment`: the folder of the experiment it is a cell of; None for a run of its own."""

    name: str
    figures: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None
    experiment: str | None = None
    seeds: int = 1

    def value(self, key: str) -> float | None:
        found = self.figures.get(key)
        return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None


AXES = {
    "Energy per output token (J)": "energy_j_per_output_token",
    "TPOT p99 (ms)": "p99_tpot_ms",
    "TTFT p99 (ms)": "p99_ttft_ms",
    "Energy per request (J)": "attributed_j_per_request",
    "Energy of the device (J)": "energy_j",
    "CO2e per request (g)": "co2e_g_per_request",
    "CO2e of requests (g)": "attributed_co2e_g",
    "Total time p99 (ms)": "p99_e2el_ms",
    "TTFT median (ms)": "median_ttft_ms",
    "TPOT median (ms)": "median_tpot_ms",
}
"""All are better when smaller."""


def find(folder: Path) -> list[Run]:
    """Runs below `folder`, by name. Links are not followed."""
    runs: list[Run] = []
    for depth in range(MAX_DEPTH):
        for path in sorted(folder.glob("*/" * depth + RESULT)):
            if len(runs) < MAX_RUNS and not path.is_symlink():
                runs.append(read(path, folder))
    return sorted(runs, key=lambda run: run.name)


def read(path: Path, below: Path) -> Run:
    """A run; one of an experiment has a `cell.json` beside it, which says which cell it is."""
    folder = path.parent
    name = str(folder.relative_to(below)) if folder != below else folder.name
    cell = folder / CELL
    experiment = None
    if cell.is_file() and not cell.is_symlink() and folder.parent.name == "runs":
        owner = folder.parent.parent
        experiment = str(owner.relative_to(below)) if owner != below and owner.is_relative_to(below) else owner.name
        path = cell
    try:
        if path.stat().st_size > MAX_BYTES:
            return Run(name, problem=f"larger than {MAX_BYTES // 1_000_000} MB", experiment=experiment)
        document = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        return Run(name, problem=f"cannot be read: {error}", experiment=experiment)
    if not isinstance(document, dict):
        return Run(name, problem="is no result", experiment=experiment)
    info = document.get("info")
    whole = {**(info if isinstance(info, dict) else {}), **document}
    return Run(name, {k: v for k, v in whole.items() if not isinstance(v, dict | list)}, None, experiment)


def experiments(runs: Sequence[Run]) -> list[str]:
    """Names of the experiments, then `ALONE` where there are runs of none."""
    named = sorted({run.experiment for run in runs if run.experiment is not None})
    return named + ([ALONE] if any(run.experiment is None for run in runs) else [])


def of(runs: Sequence[Run], experiment: str) -> list[Run]:
    return [run for run in runs if (run.experiment or ALONE) == experiment]


def report_of(folder: Path, experiment: str) -> Path | None:
    """The report that `gridserve experiment` wrote beside its runs."""
    for path in (folder / experiment / REPORT, folder / REPORT):
        if path.is_file() and not path.is_symlink() and path.stat().st_size <= MAX_BYTES:
            return path
    return None


def over_seeds(runs: Sequence[Run]) -> list[Run]:
    """Runs that differ in the seed alone made one, named by what tells it from the others. Runs of no experiment and
    those that cannot be read stay as they are."""
    places: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        alone = run.experiment is None or run.problem is not None
        key = (run.name,) if alone else tuple(str(run.figures.get(part)) for part in PLACE)
        places.setdefault(key, []).append(run)
    varied = [part for n, part in enumerate(PLACE) if len({key[n] for key in places if len(key) > 1}) > 1]
    made = []
    for key, same in places.items():
        if len(key) == 1:
            made += same
            continue
        words = [str(same[0].figures.get(part)) for part in varied or PLACE[:1]]
        made.append(Run(" · ".join(words), _means(same), None, same[0].experiment, len(same)))
    return made


def _means(runs: Sequence[Run]) -> dict[str, Any]:
    """A figure that one run lacks is unknown for all; a word on which they do not agree is left out."""
    figures: dict[str, Any] = {}
    for key in runs[0].figures:
        values = [run.value(key) for run in runs]
        known = [value for value in values if value is not None]
        if known and len(known) == len(values):
            figures[key] = sum(known) / len(known)
        elif not known and len({str(run.figures.get(key)) for run in runs}) == 1:
            figures[key] = runs[0].figures[key]
    return figures


def axes(runs: Sequence[Run]) -> dict[str, str]:
    """Those that at least one run has."""
    return {label: key for label, key in AXES.items() if any(run.value(key) is not None for run in runs)}


def pareto(runs: Sequence[Run], x: str, y: str) -> set[str]:
    """Names of runs no other beats in both figures (smaller is better)."""
    points = [(run.name, run.value(x), run.value(y)) for run in runs]
    known = [(name, a, b) for name, a, b in points if a is not None and b is not None]
    return {name for name, a, b in known if not any((c <= a and d <= b) and (c < a or d < b) for _, c, d in known)}


def methods(runs: Iterable[Run]) -> str:
    """How the joules of these runs were obtained."""
    return ", ".join(sorted({str(run.figures.get("energy_method") or "missing") for run in runs if not run.problem}))


def rows(runs: Sequence[Run]) -> list[dict[str, str]]:
    return [
        {
            "Run": run.name,
            "Seeds": count(run.seeds),
            "Kind": str(run.figures.get("kind", UNKNOWN)),
            "Model": str(run.figures.get("model_id", UNKNOWN)),
            "Completed": count(run.value("completed")),
            "Output tok/s": number(run.value("output_throughput"), digits=4),
            "TTFT p99 (ms)": number(run.value("p99_ttft_ms"), digits=4),
            "TPOT p99 (ms)": number(run.value("p99_tpot_ms"), digits=4),
            "In SLO": share(run.value("slo_attainment"), 1),
            "J per output token": number(run.value("energy_j_per_output_token"), digits=4),
            "J per request": number(run.value("attributed_j_per_request"), digits=4),
            "Energy": str(run.figures.get("energy_method") or "missing"),
            "Problem": run.problem or "",
        }
        for run in runs
    ]


def compare(first: Run, second: Run) -> list[dict[str, str]]:
    """Figures both have, and the second against the first. Those of the page's axes come first."""
    made = []
    keys = [*dict.fromkeys([key for key in AXES.values() if key in first.figures] + list(first.figures))]
    for key in keys:
        a, b = first.value(key), second.value(key)
        if a is None or b is None or key == "seed":
            continue
        change = UNKNOWN if a == 0 else f"{100 * (b / a - 1):+.1f} %"
        made.append(
            {"Figure": key, first.name: number(a, digits=5), second.name: number(b, digits=5), "Change": change}
        )
    return made
