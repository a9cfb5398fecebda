"""Carbon benchmark: directive optimizers on SPROUT's prompts, its task mix and five recorded grids.

Every prompt is scored by a policy that was learned without it: K-fold splits of the prompts, repeated with new seeds.
Intervals are 90 % bootstrap percentiles over prompts. Joules are SPROUT's (Llama-2-13B, batch 1, GPU only, PUE 1): what
is compared is the choice of directives, not a serving engine.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from bench._carbon_data import (
    FIRST_HOUR,
    HOURS,
    LEVELS,
    TASKS,
    ZONES,
    Array,
    Prompts,
    Published,
    read_prompts,
    read_published,
    read_year,
    task_mix,
)
from bench._carbon_judging import JudgingResult, forecast_hours, judge, sprout_hours
from bench._carbon_policies import (
    Index,
    Knowledge,
    budgeted_policy,
    classed_policy,
    classed_table,
    learn,
    sprout_policy,
)
from bench._carbon_scoring import Score, score
from bench._carbon_tables import Row, print_tables, published_numbers
from carbon.optimizer.budgeted import plan_quality_budget
from carbon.optimizer.classed import ClassedPolicy
from carbon.quality import from_choices
from carbon.text_features import featurise

YEAR_START = datetime(2023, 1, 1, tzinfo=UTC)
BANDS = 6
CLASSED_CONFIDENCE = 0.75
BUDGETED_CONFIDENCE = 0.9
CLASS_FLOOR = 0.8
REPLAN_H = 6
STATIC_STEPS = 21


@dataclass(frozen=True, slots=True)
class Inputs:
    prompts: Prompts
    features: Any
    mix: Array
    years: dict[str, Array]
    published: dict[str, Published]

    def season(self, zone: str) -> Array:
        return self.years[zone][FIRST_HOUR : FIRST_HOUR + HOURS]


@dataclass(frozen=True, slots=True)
class Split:
    """One partition of the prompts: what each fold's policy knows, and the cell of every prompt over all folds."""

    folds: tuple[Knowledge, ...]
    cell_of: Index

    def policies(self, make: Callable[[Knowledge], Array]) -> Array:
        """`make` of every fold side by side: `[H, cells of all folds, L]`."""
        return np.concatenate([make(knowledge) for knowledge in self.folds], axis=1)


def split(inputs: Inputs, folds: int, seed: int, *, bands: int, predict_class: bool) -> Split:
    count = len(inputs.prompts)
    fold = np.random.default_rng(seed).permutation(count) % folds
    known: list[Knowledge] = []
    cell_of = np.zeros(count, dtype=np.int64)
    for number in range(folds):
        train, test = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        knowledge = learn(
            inputs.prompts, inputs.features, train, test, bands=bands, predict_class=predict_class, seed=seed
        )
        cell_of[test] = knowledge.cell_of + sum(len(earlier.cells) for earlier in known)
        known.append(knowledge)
    return Split(tuple(known), cell_of)


def mean_score(scores: Sequence[Score]) -> Score:
    """Mean over repeated splits; interval ends are averaged, because the prompts are the same."""

    def mean(values: Sequence[float]) -> float:
        return float(np.mean(values))

    return Score(
        mean([s.saving for s in scores]),
        (mean([s.saving_interval[0] for s in scores]), mean([s.saving_interval[1] for s in scores])),
        mean([s.preference for s in scores]),
        (mean([s.preference_interval[0] for s in scores]), mean([s.preference_interval[1] for s in scores])),
        {task: round(mean([s.by_class[task] for s in scores]), 1) for task in TASKS},
    )


class Benchmark:
    def __init__(self, inputs: Inputs, arguments: argparse.Namespace) -> None:
        self.inputs = inputs
        self.folds: int = arguments.folds
        self.seeds = [arguments.seed + repeat for repeat in range(arguments.repeats)]
        self.draws: int = arguments.draws
        self.zones: list[str] = arguments.zones
        self.rows: list[Row] = []
        self.splits: dict[tuple[int, int, bool], Split] = {}

    def split(self, seed: int, bands: int, predict_class: bool) -> Split:
        """Policies that know the same share one partition: learning it costs more than all of them together."""
        key = (seed, bands, predict_class)
        if key not in self.splits:
            self.splits[key] = split(self.inputs, self.folds, seed, bands=bands, predict_class=predict_class)
        return self.splits[key]

    def score(self, parts: Split, x: Array, zone: str, *, draws: int | None = None) -> Score:
        inputs = self.inputs
        return score(
            inputs.prompts,
            parts.cell_of,
            x,
            inputs.mix,
            inputs.season(zone),
            draws=self.draws if draws is None else draws,
            seed=1,
        )

    def run(self, name: str, *, bands: int, predict_class: bool, make: MakePolicy) -> None:
        """Score a policy in every zone."""
        scores: dict[str, list[Score]] = {zone: [] for zone in self.zones}
        static: dict[str, list[float | None]] = {zone: [] for zone in self.zones}
        for seed in self.seeds:
            parts = self.split(seed, bands, predict_class)
            mixes_in = make(parts)
            for zone in self.zones:
                x, ladder = mixes_in(zone)
                scored = self.score(parts, x, zone)
                scores[zone].append(scored)
                static[zone].append(self.static_saving(parts, ladder, zone, scored.preference))
                progress(f"{name} {zone} seed {seed}: {scored.saving:.1f} % @ {scored.preference:.1f} %")
        for zone in self.zones:
            known = [value for value in static[zone] if value is not None]
            beside = float(np.mean(known)) if len(known) == len(self.seeds) else None
            self.rows.append(Row(name, zone, mean_score(scores[zone]), beside))

    def static_saving(self, parts: Split, ladder: Array, zone: str, preference: float) -> float | None:
        """Saving of the static mix with that preference, between the two neighbours on the ladder."""
        found = []
        for x in ladder:
            scored = self.score(parts, np.broadcast_to(x, (HOURS, *x.shape)), zone, draws=0)
            found.append((scored.preference, scored.saving))
        found.sort()
        preferences = [p for p, _ in found]
        if not preferences[0] <= preference <= preferences[-1]:
            return None
        return float(np.interp(preference, preferences, [s for _, s in found]))


# For one split: zone -> mixes `[H, cells, L]` and beside them a ladder of static ones `[steps, cells, L]`.
MakePolicy = Callable[[Split], Callable[[str], tuple[Array, Array]]]


def classed(inputs: Inputs, confidence: float) -> MakePolicy:
    policy = ClassedPolicy(confidence=confidence)

    def make(parts: Split) -> Callable[[str], tuple[Array, Array]]:
        table = np.concatenate([classed_table(knowledge, policy) for knowledge in parts.folds], axis=1)
        return lambda zone: (classed_policy(table, inputs.years[zone], FIRST_HOUR, HOURS, policy), table)

    return make


def budgeted(inputs: Inputs, confidence: float, class_floor: float | None) -> MakePolicy:
    def make(parts: Split) -> Callable[[str], tuple[Array, Array]]:
        def mixes_in(zone: str) -> tuple[Array, Array]:
            def moving(knowledge: Knowledge) -> Array:
                return budgeted_policy(
                    knowledge,
                    inputs.years[zone],
                    YEAR_START,
                    inputs.mix,
                    FIRST_HOUR,
                    target=1.0,
                    confidence=confidence,
                    class_floor=class_floor,
                    fair=False,
                    replan_h=REPLAN_H,
                )

            def static(knowledge: Knowledge) -> Array:
                targets = np.linspace(0.85, 1.15, STATIC_STEPS)
                return np.array([static_pool(knowledge, inputs, zone, target, class_floor) for target in targets])

            return parts.policies(moving), parts.policies(static)

        return mixes_in

    return make


def static_pool(knowledge: Knowledge, inputs: Inputs, zone: str, target: float, class_floor: float | None) -> Array:
    """The cheapest static mix, in hindsight of the season's mean intensity and mean mix of classes."""
    shares = np.array([cell.share for cell in knowledge.cells])
    plan = plan_quality_budget(
        knowledge.grams(np.array([inputs.season(zone).mean()])),
        (inputs.mix.mean(axis=0)[knowledge.owners] * shares)[None],
        [cell.quality for cell in knowledge.cells],
        knowledge.owners.tolist(),
        target=target,
        class_floor=class_floor,
    )
    return np.asarray(plan.x[0])


def sprout(inputs: Inputs) -> MakePolicy:
    def make(parts: Split) -> Callable[[str], tuple[Array, Array]]:
        def mixes_in(zone: str) -> tuple[Array, Array]:
            season, year = inputs.season(zone), inputs.years[zone]
            bounds = (float(year.min()), float(year.max()))
            steady, mix = season.mean(keepdims=True), inputs.mix.mean(axis=0, keepdims=True)

            def moving(knowledge: Knowledge) -> Array:
                return sprout_policy(knowledge, inputs.mix, season, bounds)

            def static(knowledge: Knowledge) -> Array:
                ends = (0.0, float(steady[0]))
                tolerances = np.linspace(0.0, 0.15, STATIC_STEPS)
                return np.array([sprout_policy(knowledge, mix, steady, ends, t)[0] for t in tolerances])

            return parts.policies(moving), parts.policies(static)

        return mixes_in

    return make


def judging(bench: Benchmark, draws: int) -> dict[str, dict[str, Any]]:
    """Runs of the evaluator a month, SPROUT's way and ours; both schedules feed the same LP."""
    prompts, mix = bench.inputs.prompts, bench.inputs.mix
    members = [prompts.task == number for number in range(len(TASKS))]
    truth = np.array([np.bincount(prompts.preferred[m], minlength=LEVELS) / m.sum() for m in members])
    joules = np.array([prompts.energy_j[m].mean(axis=0) for m in members])
    seconds = np.array([prompts.time_s[m].mean(axis=0) for m in members])
    results: dict[str, dict[str, Any]] = {}
    for zone in bench.zones:
        year, season = bench.inputs.years[zone], bench.inputs.season(zone)
        published = list(bench.inputs.published[zone].assessed_at)
        ours = forecast_hours(year, YEAR_START, FIRST_HOUR, HOURS)

        def measure(runs: Sequence[int], by_class: bool, season: Array = season, year: Array = year) -> JudgingResult:
            return judge(
                runs,
                by_class=by_class,
                shares=truth,
                joules=joules,
                seconds=seconds,
                mix=mix,
                intensity=season,
                bounds=(float(year.min()), float(year.max())),
                draws=draws,
                seed=0,
            )

        results[zone] = {
            "published_runs": len(published),
            "schedule_reproduced": sprout_hours(season) == published,
            "sprout": asdict(measure(published, by_class=False)),
            "ours": asdict(measure(ours, by_class=True)),
        }
        progress(f"judging {zone}: {len(published)} published, {len(ours)} ours")
    return results


def solve_time(repeats: int = 7) -> dict[str, float]:
    """Milliseconds for 50 classes x 5 levels x 168 h, per-class budgets; best and median of `repeats`."""
    random = np.random.default_rng(0)
    classes, levels, hours = 50, 5, 168
    joules = np.sort(random.uniform(50, 2000, (classes, levels)), axis=1)[:, ::-1]
    intensity = 200 + 120 * np.sin(np.arange(hours) * 2 * np.pi / 24) + random.normal(0, 20, hours)
    grams = intensity[:, None, None] * joules / 3.6e6
    volumes = random.uniform(0.5, 20.0, (hours, classes))
    estimates = [
        from_choices(random.multinomial(1000, random.dirichlet(np.full(levels, 8.0))).tolist()) for _ in range(classes)
    ]
    owners = list(range(classes))
    found: dict[str, float] = {}
    for name, fair, confidence in (("fair", True, 0.5), ("pooled", False, 0.5), ("pooled, confidence 0.9", False, 0.9)):
        taken = []
        for _ in range(repeats):
            began = time.perf_counter()
            plan_quality_budget(
                grams, volumes, estimates, owners, target=1.0, fair=fair, class_floor=None, confidence=confidence
            )
            taken.append(1000 * (time.perf_counter() - began))
        found[f"{name}: best"], found[f"{name}: median"] = min(taken), float(np.median(taken))
    return found


def progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
    elif text:
        print(text, file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="gridserve bench carbon", description=__doc__)
    made.add_argument("--data", type=Path, required=True, help="folder laid out like the shared carbon data")
    made.add_argument("--json", type=Path, help="write all figures here")
    made.add_argument("--zones", nargs="+", choices=list(ZONES), default=list(ZONES))
    made.add_argument("--folds", type=int, default=5, help="held-out parts of the prompts (default 5)")
    made.add_argument("--repeats", type=int, default=3, help="random partitions to average over (default 3)")
    made.add_argument("--seed", type=int, default=0, help="of the first partition (default 0)")
    made.add_argument("--draws", type=int, default=300, help="bootstrap samples (default 300)")
    made.add_argument("--judge-draws", type=int, default=5, help="simulated months of judging a zone (default 5)")
    return made


def main(argv: Sequence[str]) -> int:
    """Run everything and print the tables; returns the exit status."""
    arguments = parser().parse_args(argv)
    if not (arguments.data / "sprout" / "judged_prompts.csv.gz").is_file():
        print(f"gridserve bench carbon: {arguments.data} holds no sprout/judged_prompts.csv.gz", file=sys.stderr)
        return 1
    if arguments.folds < 2 or arguments.repeats < 1 or arguments.draws < 1:
        print("gridserve bench carbon: --folds must be at least 2, --repeats and --draws at least 1", file=sys.stderr)
        return 2
    prompts = read_prompts(arguments.data)
    inputs = Inputs(
        prompts,
        featurise(prompts.text),
        task_mix(arguments.data),
        {zone: read_year(arguments.data, zone).values() for zone in arguments.zones},
        {zone: read_published(arguments.data, zone) for zone in arguments.zones},
    )
    bench = Benchmark(inputs, arguments)
    bench.run("sprout", bands=1, predict_class=False, make=sprout(inputs))
    for confidence in (0.5, CLASSED_CONFIDENCE, 0.9):
        bench.run(f"classed {confidence:g}", bands=BANDS, predict_class=False, make=classed(inputs, confidence))
    bench.run(
        f"classed {CLASSED_CONFIDENCE:g}, no bands",
        bands=1,
        predict_class=False,
        make=classed(inputs, CLASSED_CONFIDENCE),
    )
    bench.run(
        f"classed {CLASSED_CONFIDENCE:g}, predicted",
        bands=BANDS,
        predict_class=True,
        make=classed(inputs, CLASSED_CONFIDENCE),
    )
    pooled = f"budgeted {BUDGETED_CONFIDENCE:g}"
    bench.run(f"{pooled}, pooled", bands=BANDS, predict_class=False, make=budgeted(inputs, BUDGETED_CONFIDENCE, None))
    bench.run(
        f"{pooled}, floor {CLASS_FLOOR:g} a class, no bands",
        bands=1,
        predict_class=False,
        make=budgeted(inputs, BUDGETED_CONFIDENCE, CLASS_FLOOR),
    )
    judged = judging(bench, arguments.judge_draws)
    timed = solve_time()
    progress("")
    print_tables(bench.rows, inputs.published, judged, timed)
    if arguments.json:
        report = {
            "settings": {key: str(value) for key, value in vars(arguments).items()},
            "published": {zone: published_numbers(inputs.published[zone]) for zone in arguments.zones},
            "rows": [asdict(row) for row in bench.rows],
            "judging": judged,
            "solve_ms": timed,
        }
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
