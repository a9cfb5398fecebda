"""Experiment results: folders with a `result.json`, their figures, and which runs no other beats."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dashboard.views.formats import UNKNOWN, number

RESULT = "result.json"
MAX_DEPTH = 4
MAX_RUNS = 500
MAX_BYTES = 20_000_000


@dataclass(frozen=True)
class Run:
    """`figures`: scalars of the result file as written. `problem`: why it cannot be read."""

    name: str
    figures: dict[str, Any]
    problem: str | None = None

    def value(self, key: str) -> float | None:
        found = self.figures.get(key)
        return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None


AXES = {
    "Energy per request (J)": "attributed_j_per_request",
    "Energy of the device (J)": "energy_j",
    "CO2e of requests (g)": "attributed_co2e_g",
    "TTFT p99 (ms)": "p99_ttft_ms",
    "TPOT p99 (ms)": "p99_tpot_ms",
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
    name = str(path.parent.relative_to(below)) if path.parent != below else path.parent.name
    try:
        if path.stat().st_size > MAX_BYTES:
            return Run(name, {}, f"larger than {MAX_BYTES // 1_000_000} MB")
        document = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        return Run(name, {}, f"cannot be read: {error}")
    if not isinstance(document, dict):
        return Run(name, {}, "is no result")
    info = document.get("info", {})
    scalars = {k: v for k, v in {**info, **document}.items() if not isinstance(v, dict | list)}
    return Run(name, scalars)


def axes(runs: Sequence[Run]) -> dict[str, str]:
    """Those that at least one run has."""
    return {label: key for label, key in AXES.items() if any(run.value(key) is not None for run in runs)}


def pareto(runs: Sequence[Run], x: str, y: str) -> set[str]:
    """Names of runs no other beats in both figures (smaller is better)."""
    points = [(run.name, run.value(x), run.value(y)) for run in runs]
    known = [(name, a, b) for name, a, b in points if a is not None and b is not None]
    return {name for name, a, b in known if not any((c <= a and d <= b) and (c < a or d < b) for _, c, d in known)}


def rows(runs: Sequence[Run]) -> list[dict[str, str]]:
    return [
        {
            "Run": run.name,
            "Kind": str(run.figures.get("kind", UNKNOWN)),
            "Model": str(run.figures.get("model_id", UNKNOWN)),
            "Completed": number(run.value("completed"), digits=6),
            "Output tok/s": number(run.value("output_throughput"), digits=4),
            "TTFT p99 (ms)": number(run.value("p99_ttft_ms"), digits=4),
            "TPOT p99 (ms)": number(run.value("p99_tpot_ms"), digits=4),
            "J per request": number(run.value("attributed_j_per_request"), digits=4),
            "Energy": str(run.figures.get("energy_method") or "missing"),
            "Problem": run.problem or "",
        }
        for run in runs
    ]


def compare(first: Run, second: Run) -> list[dict[str, str]]:
    """Figures both have, and the second against the first."""
    made = []
    for key in first.figures:
        a, b = first.value(key), second.value(key)
        if a is None or b is None:
            continue
        change = UNKNOWN if a == 0 else f"{100 * (b / a - 1):+.1f} %"
        made.append(
            {"Figure": key, first.name: number(a, digits=5), second.name: number(b, digits=5), "Change": change}
        )
    return made
