"""Policies learned from training prompts only: what `classed` and `budgeted` know, and the mixes they choose."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench._carbon_data import LEVELS, TASKS, Array, Prompts
from carbon.forecast import FIT_HOURS, fading_weights, fit, predict
from carbon.optimizer.budgeted import Exposure, plan_quality_budget
from carbon.optimizer.classed import ClassedPolicy, LevelCosts, classed_hours, trailing_bounds
from carbon.optimizer.sprout import SPROUT_EMBODIED_G_PER_S, SPROUT_TOLERANCE, sprout_mix
from carbon.prompt_bands import BandModel, fit_bands
from carbon.prompt_classes import UNKNOWN, PromptClassifier
from carbon.quality import QualityEstimate, shrunk_choices

Index = NDArray[np.int64]

WINDOW_H = 720
HORIZON_H = 72
REFIT_H = 168
SHARE_STEPS = 50
TABLE_G_PER_KWH = 150.0
CLASS_NAMES = (*TASKS, UNKNOWN)


@dataclass(frozen=True, slots=True)
class Cell:
    """One band of one class as seen in training."""

    owner: int
    costs: LevelCosts
    quality: QualityEstimate
    share: float


@dataclass(frozen=True, slots=True)
class Knowledge:
    """`cells` in order of class and band; `cell_of` of each test prompt."""

    cells: tuple[Cell, ...]
    cell_of: Index

    @property
    def owners(self) -> Index:
        return np.array([cell.owner for cell in self.cells])

    def grams(self, g_per_kwh: Array) -> Array:
        """`[H, M, L]` of one request."""
        energy = np.array([cell.costs.energy_j for cell in self.cells]) / 3.6e6
        time = np.array([cell.costs.time_s for cell in self.cells])
        return g_per_kwh[:, None, None] * energy + SPROUT_EMBODIED_G_PER_S * time


def learn(
    prompts: Prompts, features: Any, train: Index, test: Index, *, bands: int, predict_class: bool, seed: int
) -> Knowledge:
    """Everything a policy may know, from `train` alone; `test` prompts are only looked up."""
    train_class, test_class = prompts.task[train], prompts.task[test]
    if predict_class:
        train_class, test_class = _predicted(prompts, train, test, seed)
    cells: list[Cell] = []
    cell_of = np.zeros(len(test), dtype=np.int64)
    for owner in range(len(CLASS_NAMES)):
        members = train[train_class == owner]
        arrivals = np.flatnonzero(test_class == owner)
        if len(members) == 0:
            cell_of[arrivals] = -1
            continue
        model, band = fit_bands(features[members], prompts.preferred[members] == 0, bands, seed)
        cell_of[arrivals] = len(cells) + model.band_of_features(features[test[arrivals]])
        cells.extend(_cells_of(prompts, owner, members, band, model))
    return Knowledge(tuple(cells), cell_of)


def _cells_of(prompts: Prompts, owner: int, members: Index, band: Index, model: BandModel) -> list[Cell]:
    counts = np.array(
        [np.bincount(prompts.preferred[members[band == number]], minlength=LEVELS) for number in range(model.bands)]
    )
    qualities = shrunk_choices(counts.astype(np.float64))
    made = []
    for number, quality in enumerate(qualities):
        inside = members[band == number]
        costs = LevelCosts(
            tuple(map(float, prompts.energy_j[inside].mean(axis=0))),
            tuple(map(float, prompts.time_s[inside].mean(axis=0))),
        )
        made.append(Cell(owner, costs, quality, len(inside) / len(members)))
    return made


def _predicted(prompts: Prompts, train: Index, test: Index, seed: int) -> tuple[Index, Index]:
    """Classes as the classifier sees them; training prompts are classified by models that had not seen them."""

    def classify(known: Index, asked: Index) -> Index:
        classifier = PromptClassifier(TASKS)
        order = np.random.default_rng(seed).permutation(known)
        classifier.learn([prompts.text[i] for i in order], [TASKS[prompts.task[i]] for i in order], passes=5)
        found = classifier.predict_many([prompts.text[i] for i in asked])
        return np.array([CLASS_NAMES.index(prediction.name) for prediction in found])

    fold = np.random.default_rng(seed + 1).permutation(len(train)) % 5
    own = np.zeros(len(train), dtype=np.int64)
    for number in range(5):
        own[fold == number] = classify(train[fold != number], train[fold == number])
    return own, classify(train, test)


def classed_table(knowledge: Knowledge, policy: ClassedPolicy) -> Array:
    """Mixes `[SHARE_STEPS + 1, M, L]` for every share to keep from `1 - tolerance` to 1 in equal steps.

    The mix depends on the hour through its share alone: grams of all levels scale with the intensity together, but
    for the embodied part, which is 1 % here and taken at `TABLE_G_PER_KWH`.
    """
    shares = np.linspace(1.0 - policy.tolerance, 1.0, SHARE_STEPS + 1)
    solution = classed_hours(
        knowledge.grams(np.full(len(shares), TABLE_G_PER_KWH)),
        [cell.share for cell in knowledge.cells],
        [cell.quality for cell in knowledge.cells],
        knowledge.owners.tolist(),
        [max(policy.quality_floor, float(share)) for share in shares],
        policy.confidence,
    )
    return solution.x.reshape(len(shares), len(knowledge.cells), LEVELS)


def classed_policy(table: Array, year: Array, first: int, hours: int, policy: ClassedPolicy) -> Array:
    """Mixes `[H, M, L]`, hour by hour, with the bounds of the trailing 30 days; a share is rounded up to the table."""
    steps = np.zeros(hours, dtype=np.int64)
    for hour in range(hours):
        now = first + hour
        lowest, highest = trailing_bounds(year[max(0, now - WINDOW_H + 1) : now + 1].tolist())
        kept = policy.share(float(year[now]), lowest, highest)
        steps[hour] = min(SHARE_STEPS, int(np.ceil((kept - 1.0 + policy.tolerance) / policy.tolerance * SHARE_STEPS)))
    return table[steps]


def sprout_policy(
    knowledge: Knowledge, mix: Array, intensity: Array, bounds: tuple[float, float], tolerance: float = SPROUT_TOLERANCE
) -> Array:
    """SPROUT's one mix for all classes, `[H, M, L]`, from the training prompts' means and its hindsight bounds."""
    shares = np.array([cell.share for cell in knowledge.cells])
    energy = np.array([cell.costs.energy_j for cell in knowledge.cells]) / 3.6e6
    time = np.array([cell.costs.time_s for cell in knowledge.cells])
    quality = np.array([cell.quality.mean for cell in knowledge.cells])
    x = np.zeros((len(mix), len(knowledge.cells), LEVELS))
    for hour, tasks in enumerate(mix):
        weights = tasks[knowledge.owners] * shares
        weights /= weights.sum()
        x[hour] = sprout_mix(
            (weights @ energy).tolist(),
            (weights @ time).tolist(),
            (weights @ quality).tolist(),
            g_per_kwh=float(intensity[hour]),
            lowest_g_per_kwh=bounds[0],
            highest_g_per_kwh=bounds[1],
            tolerance=tolerance,
        ).probabilities
    return x


def budgeted_policy(
    knowledge: Knowledge,
    year: Array,
    year_start: datetime,
    mix: Array,
    first: int,
    *,
    target: float,
    confidence: float,
    class_floor: float | None,
    fair: bool,
    replan_h: int = 2,
) -> Array:
    """Mixes `[H, M, L]` of a receding horizon of 72 h with the seasonal forecast and the mix of classes seen last.

    The horizon is planned hourly for 6 h and in blocks of 6 h beyond; every `replan_h` hours it is planned anew.
    """
    hours = len(mix)
    shares = np.array([cell.share for cell in knowledge.cells])
    owners = knowledge.owners
    estimates = [cell.quality for cell in knowledge.cells]
    books = Exposure.empty(len(owners), LEVELS)
    x = np.zeros((hours, len(owners), LEVELS))
    weights = fading_weights(HORIZON_H - 1)
    blocks = [slice(i, i + 1) for i in range(6)] + [slice(i, i + 6) for i in range(6, 72, 6)]
    for hour in range(0, hours, replan_h):
        now = first + hour
        if hour % REFIT_H == 0:
            weights = forecast_weights(year, year_start, now)
        ahead = np.concatenate([[year[now]], predict(year[: now + 1], year_start, weights)])
        intensity = np.array([ahead[block].mean() for block in blocks])
        length = np.array([block.stop - block.start for block in blocks], dtype=np.float64)
        volume = length[:, None] * (mix[hour][owners] * shares)[None, :]
        plan = plan_quality_budget(
            knowledge.grams(intensity),
            volume,
            estimates,
            owners.tolist(),
            target=target,
            class_floor=class_floor,
            fair=fair,
            past=books,
            confidence=confidence,
        )
        for step in range(min(replan_h, hours - hour)):
            x[hour + step] = plan.x[step]
            books.served += (mix[hour + step][owners] * shares)[:, None] * x[hour + step]
    return x


def forecast_weights(year: Array, year_start: datetime, now: int) -> Array:
    """The carry-over fitted on what lies before hour `now`; with less than 8 weeks of it, a plain fade."""
    if now < FIT_HOURS:
        return fading_weights(HORIZON_H - 1)
    return fit(year[:now], year_start, HORIZON_H - 1).weights
