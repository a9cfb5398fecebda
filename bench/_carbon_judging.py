"""How often the evaluator must run: SPROUT's schedule and samples beside ours, at the same decision quality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from bench._carbon_data import LEVELS, TASKS, Array
from bench._carbon_policies import HORIZON_H, REFIT_H, forecast_weights
from carbon.evaluator.schedule import ForecastSchedule, SproutSchedule
from carbon.forecast import predict
from carbon.optimizer.sprout import SPROUT_EMBODIED_G_PER_S, quality_share, sprout_mix

SAMPLE = 1000


@dataclass(frozen=True, slots=True)
class JudgingResult:
    """`error`: root mean square of (quality delivered - quality demanded) / L0's over hours and draws, percent.
    `shortfall`: mean of its negative part, percent. `g_per_kwh`: mean intensity of the hours of the runs."""

    runs: int
    error: float
    shortfall: float
    saving: float
    g_per_kwh: float


def sprout_hours(intensity: Array) -> list[int]:
    """Hours of SPROUT's runs in the season, by its published rule with its hindsight mean."""
    schedule = SproutSchedule()
    mean, last = float(intensity.mean()), 0
    found = []
    for hour in range(len(intensity)):
        if schedule.decide(intensity[max(0, hour - 2) : hour + 1].tolist(), mean, hour - last).run:
            found.append(hour)
            last = hour
    return found


def forecast_hours(year: Array, year_start: datetime, first: int, hours: int) -> list[int]:
    """Hours of the forecast-aware schedule's runs; it sees nothing that lies ahead. The first run is at once."""
    schedule = ForecastSchedule()
    found, last = [0], 0
    weights = forecast_weights(year, year_start, first)
    for hour in range(1, hours):
        if hour % REFIT_H == 0:
            weights = forecast_weights(year, year_start, first + hour)
        now = first + hour
        ahead = predict(year[: now + 1], year_start, weights, HORIZON_H - 1)
        if schedule.decide(float(year[now]), ahead.tolist(), hour - last).run:
            found.append(hour)
            last = hour
    return found


def judge(
    runs: Sequence[int],
    *,
    by_class: bool,
    shares: Array,
    joules: Array,
    seconds: Array,
    mix: Array,
    intensity: Array,
    bounds: tuple[float, float],
    draws: int,
    seed: int,
) -> JudgingResult:
    """SPROUT's LP fed by samples of `SAMPLE` judged prompts a run; `shares` `[tasks, L]` is the truth.

    `by_class` False: as published, one pooled sample at the hour's mix replaces the last. True: the sample is spread
    evenly over the classes, adds to the earlier ones, and is weighed by the mix of each hour. Before the first run
    both know a sample drawn in hour 0.
    """
    random = np.random.default_rng(seed)
    gaps: list[float] = []
    savings: list[float] = []
    starts = [0, *(run for run in runs if run > 0)]
    for _ in range(draws):
        counts = np.full((len(TASKS), LEVELS), 1.0 / LEVELS)
        estimate = np.zeros(LEVELS)
        spent = base = 0.0
        for hour, weights in enumerate(mix):
            if hour in starts:
                if by_class:
                    per_class = SAMPLE // len(TASKS)
                    counts += np.array([random.multinomial(per_class, row / row.sum()) for row in shares])
                else:
                    estimate = random.multinomial(SAMPLE, weights @ shares / (weights @ shares).sum()) / SAMPLE
            q = weights @ (counts / counts.sum(axis=1, keepdims=True)) if by_class else estimate
            energy, time = weights @ joules, weights @ seconds
            k0 = float(intensity[hour])
            chosen = sprout_mix(
                (energy / 3.6e6).tolist(),
                time.tolist(),
                q.tolist(),
                g_per_kwh=k0,
                lowest_g_per_kwh=bounds[0],
                highest_g_per_kwh=bounds[1],
            )
            true = weights @ shares
            x = np.array(chosen.probabilities)
            gaps.append(float(true @ x) / true[0] - quality_share(k0, *bounds, 0.1))
            grams = k0 * energy / 3.6e6 + SPROUT_EMBODIED_G_PER_S * time
            spent += float(grams @ x)
            base += float(grams[0])
        savings.append(1.0 - spent / base)
    gap = np.array(gaps)
    # Quality above the floor that costs nothing is no error of the estimate; it is the same for both and small.
    return JudgingResult(
        runs=len(starts),
        error=100 * float(np.sqrt(np.mean(gap**2))),
        shortfall=100 * float(np.maximum(0.0, -gap).mean()),
        saving=100 * float(np.mean(savings)),
        g_per_kwh=float(np.mean(intensity[list(starts)])),
    )
