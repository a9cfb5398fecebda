"""Scores mixes on held-out prompts: saving and preference, with bootstrap intervals over prompts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench._carbon_data import LEVELS, TASKS, Array, Prompts
from carbon.optimizer.sprout import SPROUT_EMBODIED_G_PER_S

Index = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Score:
    """Percent of L0's grams saved, and percent of L0's preference kept (mean over hours, as SPROUT reports it).

    Intervals are 90 % bootstrap percentiles over prompts. `by_class`: preference of each task over the season.
    """

    saving: float
    saving_interval: tuple[float, float]
    preference: float
    preference_interval: tuple[float, float]
    by_class: dict[str, float]


@dataclass(frozen=True, slots=True)
class Tally:
    """Held-out prompts of each task and policy cell: `chosen`, `joules`, `seconds` `[tasks, cells, L]`; `base`
    likewise at L0 `[tasks]`."""

    chosen: Array
    joules: Array
    seconds: Array
    count: Array


def tally(prompts: Prompts, cell_of: Index, cells: int, weight: Array) -> Tally:
    """Sum prompts with multiplicity `weight` `[n]`; every prompt counts in the cell whose policy had not seen it."""
    flat = prompts.task * cells + cell_of
    size = len(TASKS) * cells

    def total(values: Array) -> Array:
        columns = [np.bincount(flat, weights=weight * values[:, level], minlength=size) for level in range(LEVELS)]
        return np.stack(columns, axis=1).astype(np.float64).reshape(len(TASKS), cells, LEVELS)

    chosen = np.eye(LEVELS)[prompts.preferred]
    count = np.bincount(prompts.task, weights=weight, minlength=len(TASKS)).astype(np.float64)
    return Tally(total(chosen), total(prompts.energy_j), total(prompts.time_s), count)


def hourly(table: Tally, x: Array, mix: Array, intensity: Array) -> tuple[Array, Array, Array, Array, Array]:
    """Hourly grams and preference of the mixes `x` `[H, cells, L]` and of L0; last, each task's preference."""
    hours, cells, levels = x.shape
    per_task = 1.0 / np.maximum(table.count, 1e-12)

    def spent(values: Array) -> tuple[Array, Array]:
        means = values * per_task[:, None, None]
        blended = (mix @ means.reshape(len(TASKS), -1)).reshape(hours, cells, levels)
        return np.asarray(np.einsum("hcl,hcl->h", blended, x)), blended[:, :, 0].sum(axis=1)

    joules, base_joules = spent(table.joules)
    seconds, base_seconds = spent(table.seconds)
    quality, base_quality = spent(table.chosen)
    grams = joules / 3.6e6 * intensity + SPROUT_EMBODIED_G_PER_S * seconds
    base_grams = base_joules / 3.6e6 * intensity + SPROUT_EMBODIED_G_PER_S * base_seconds
    weighted = np.einsum("ht,hcl->tcl", mix, x)
    by_task = (weighted * table.chosen).sum(axis=(1, 2)) / (mix.sum(axis=0) * table.chosen[:, :, 0].sum(axis=1))
    return grams, base_grams, quality, base_quality, by_task


def score(prompts: Prompts, cell_of: Index, x: Array, mix: Array, intensity: Array, *, draws: int, seed: int) -> Score:
    def measure(weight: Array) -> tuple[float, float, Array]:
        table = tally(prompts, cell_of, x.shape[1], weight)
        grams, base_grams, quality, base_quality, by_task = hourly(table, x, mix, intensity)
        return 100 * (1 - grams.sum() / base_grams.sum()), 100 * float(np.mean(quality / base_quality)), by_task

    saving, preference, by_task = measure(np.ones(len(prompts)))
    random = np.random.default_rng(seed)
    drawn = np.array([measure(_multiplicity(prompts, random))[:2] for _ in range(draws)]).reshape(draws, 2)
    low, high = np.quantile(drawn, [0.05, 0.95], axis=0) if draws else (np.full(2, np.nan), np.full(2, np.nan))
    return Score(
        saving,
        (float(low[0]), float(high[0])),
        preference,
        (float(low[1]), float(high[1])),
        {task: round(100 * float(value), 1) for task, value in zip(TASKS, by_task)},
    )


def _multiplicity(prompts: Prompts, random: np.random.Generator) -> Array:
    """How often each prompt is drawn in one bootstrap sample, drawn within its task."""
    weight = np.zeros(len(prompts))
    for task in range(len(TASKS)):
        members = np.flatnonzero(prompts.task == task)
        weight += np.bincount(random.choice(members, len(members)), minlength=len(prompts))
    return weight
