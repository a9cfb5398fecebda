"""The benchmark's tables, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench._carbon_data import TASKS, Published
from bench._carbon_scoring import Score


@dataclass(frozen=True, slots=True)
class Row:
    """`static_saving`: of the static mix with the same preference on the same held-out prompts; None: none has it."""

    policy: str
    zone: str
    score: Score
    static_saving: float | None


def published_numbers(published: Published) -> dict[str, float]:
    return {
        "saving": 100 * float(1 - published.grams.sum() / published.base_grams.sum()),
        "preference": 100 * float(np.mean(published.preference / published.base_preference)),
    }


def print_tables(
    rows: Sequence[Row],
    published: Mapping[str, Published],
    judged: Mapping[str, Mapping[str, Any]],
    timed: Mapping[str, float],
) -> None:
    zones = list(published)
    print("Saving % @ preference % of L0 [90 % intervals]; static: saving of the static mix with that preference\n")
    print(f"| policy | {' | '.join(zones)} |")
    print("|---" * (len(zones) + 1) + "|")
    cells = [published_numbers(published[zone]) for zone in zones]
    print("| SPROUT, published | " + " | ".join(f"{c['saving']:.1f} @ {c['preference']:.1f}" for c in cells) + " |")
    for name in dict.fromkeys(row.policy for row in rows):
        print(f"| {name} | " + " | ".join(cell(row) for row in rows if row.policy == name) + " |")
    print("\nPreference by task, %\n")
    print(f"| policy, zone | {' | '.join(TASKS)} |")
    print("|---" * (len(TASKS) + 1) + "|")
    for row in rows:
        values = " | ".join(f"{row.score.by_class[task]:.0f}" for task in TASKS)
        print(f"| {row.policy}, {row.zone} | {values} |")
    print("\nJudge runs in 720 h, and error of the quality delivered (RMS, % of L0's)\n")
    print("| zone | SPROUT runs | error | shortfall | our runs | error | shortfall |\n|---|---|---|---|---|---|---|")
    for zone, found in judged.items():
        theirs, ours = found["sprout"], found["ours"]
        figures = [found["published_runs"], theirs["error"], theirs["shortfall"]]
        figures += [ours["runs"], ours["error"], ours["shortfall"]]
        print(f"| {zone} | " + " | ".join(f"{figure:.3g}" for figure in figures) + " |")
    print("\nSolving 50 classes x 5 levels x 168 h, ms: " + ", ".join(f"{k} {v:.0f}" for k, v in timed.items()))


def cell(row: Row) -> str:
    found = row.score
    static = "-" if row.static_saving is None else f"{row.static_saving:.1f}"
    return (
        f"{found.saving:.1f} [{found.saving_interval[0]:.1f}, {found.saving_interval[1]:.1f}] @ "
        f"{found.preference:.1f} [{found.preference_interval[0]:.1f}, {found.preference_interval[1]:.1f}], "
        f"static {static}"
    )
