"""Choose the confidence of an experiment's directive mixes by cross-validation within its training rows alone.

    python scripts/directives_confidence.py sprout.yaml --data DIR

Even judged rows are halved again and again: one half teaches the mixes, traffic drawn from the other half is judged.
Odd rows, which the experiment serves, are not looked at. Printed for each confidence: the share of L0's preference
kept, mean and worst, and the share of judged halves that keep all of it.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import msgspec

from traces.experiment import Experiment, TraceSource, data_folder, grid_of, read_experiment, workload_of
from traces.request import TraceRequest
from traces.simulate_directives import Directives, learn
from traces.simulate_grid import Grid
from traces.simulate_policy import DirectiveSettings
from traces.workload import Workload

CONFIDENCES = (0.6, 0.75, 0.9, 0.95, 0.975, 0.99, 0.999)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment")
    parser.add_argument("--data", help="folder that holds traces/ and carbon/ (or GRIDSERVE_SHARED_DATA)")
    parser.add_argument("--halvings", type=int, default=20)
    given = parser.parse_args()
    data = data_folder(given.data)
    experiment = read_experiment(Path(given.experiment))
    source = experiment.traces[0]
    training = workload_of(source, experiment.training_seed, 1.0, 0.0, data)
    grid = grid_of(experiment.zones[0], data)
    seen: set[tuple[str, float]] = set()
    for policy in experiment.policies:
        directives = policy.directives
        if directives is None or directives.kind not in ("static", "budgeted"):
            continue
        if (directives.kind, directives.target) in seen:
            continue
        seen.add((directives.kind, directives.target))
        print(f"{policy.name} (target {directives.target:.0%}, ships with confidence {directives.confidence:g})")
        for confidence in CONFIDENCES:
            settings = msgspec.structs.replace(directives, confidence=confidence)
            kept = sorted(judged(experiment, source, training, settings, grid, given.halvings))
            full = sum(share >= directives.target for share in kept) / len(kept)
            mean = sum(kept) / len(kept)
            print(
                f"  {confidence:5g}: mean {mean:.1%}, worst {kept[0]:.1%}, kept in {full:.0%} of {len(kept)}",
                flush=True,
            )


def judged(
    experiment: Experiment,
    source: TraceSource,
    training: Workload,
    settings: DirectiveSettings,
    grid: Grid,
    halvings: int,
) -> list[float]:
    """Preference kept on the half that did not teach, for each halving and both its directions."""
    twin = experiment.settings_of(experiment.all_variants[0], source).make_twin()
    kept = []
    for number in range(halvings):
        rng = random.Random(number)
        rows = sorted({row for request in training if (row := request.judged_row) is not None and row % 2 == 0})
        first = set(rng.sample(rows, len(rows) // 2))
        halves = split(training, first)
        for teaching, served in (halves, halves[::-1]):
            directing = Directives(learn(teaching, twin), settings, grid, seed=number)
            for place, request in enumerate(served):
                directing.choose(place, request, request.arrival_s)
            kept.append(directing.figures()["quality_relative"])
    return kept


def split(training: Workload, first: set[int]) -> tuple[list[TraceRequest], list[TraceRequest]]:
    """Requests of the rows in `first`, and those of the other even rows."""
    even = [request for request in training if request.judged_row is not None and request.judged_row % 2 == 0]
    return [r for r in even if r.judged_row in first], [r for r in even if r.judged_row not in first]


if __name__ == "__main__":
    main()
