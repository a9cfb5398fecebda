"""Directive mixes in a simulation: learned from a training workload, planned hour by hour, judged on other prompts.

Lengths under a level come from the workload's `shaped` lengths (judged rows or a spec), never from a recorded length.
Quality is SPROUT's preference: the share of prompts served at the level a judge preferred, over the share that
prefers L0. Every figure that follows from it is simulated.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carbon.forecast import FIT_HOURS, fading_weights, fit, predict
from carbon.optimizer.budgeted import Exposure, plan_quality_budget
from carbon.optimizer.classed import ClassedPolicy, LevelCosts, classed_hours, trailing_bounds
from carbon.optimizer.sprout import sprout_mix
from carbon.quality import QualityEstimate, from_choices
from power.twin import Twin, decode_work, prefill_work
from traces.request import BASELINE_LEVEL, TraceRequest
from traces.simulate_grid import Grid
from traces.simulate_policy import DirectiveSettings

Array = NDArray[np.float64]
NOMINAL_BATCH = 16
HORIZON_H = 24
FLAT_G_PER_KWH = 100.0


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What a policy may know: for each task its costs, its quality and its share of the requests."""

    levels: tuple[str, ...]
    tasks: tuple[str, ...]
    costs: tuple[LevelCosts, ...]
    quality: tuple[QualityEstimate, ...]
    shares: tuple[float, ...]

    def grams(self, g_per_kwh: Sequence[float], embodied_g_per_s: float) -> Array:
        """`[H, M, L]` of one request."""
        hours = [[cost.grams(value, embodied_g_per_s) for cost in self.costs] for value in g_per_kwh]
        return np.array(hours)


def learn(workload: Iterable[TraceRequest], twin: Twin) -> Knowledge:
    """Mean lengths and preferred levels by task; a judged row that is drawn again is no new evidence. Joules are the
    twin's at the top clock and a batch of 16.

    Raises `ValueError` for a workload that says nothing about levels.
    """
    lengths: dict[str, list[list[int]]] = defaultdict(list)
    prompts: Counter[str] = Counter()
    requests: Counter[str] = Counter()
    preferred: dict[str, Counter[str]] = defaultdict(Counter)
    levels: tuple[str, ...] = ()
    seen: set[tuple[str, int]] = set()
    for request in workload:
        if not request.shaped or request.preferred_level is None:
            continue
        task = request.task or ""
        requests[task] += 1
        if request.judged_row is not None:
            if (task, request.judged_row) in seen:
                continue
            seen.add((task, request.judged_row))
        levels = levels or (BASELINE_LEVEL, *(shaped.level for shaped in request.shaped))
        lengths[task].append([request.length_at(level).output_tokens for level in levels])
        prompts[task] += request.input_tokens
        preferred[task][request.preferred_level] += 1
    if not lengths:
        raise ValueError("the training workload has no preferred levels and shaped lengths to learn directives from")
    clock = twin.gpu.clock_max_mhz
    decode = twin.predict(decode_work(NOMINAL_BATCH, 512), clock)
    prefill = twin.predict(prefill_work(1024), clock)
    total = requests.total()
    tasks = tuple(sorted(lengths))
    costs, quality = [], []
    for task in tasks:
        mean = np.array(lengths[task]).mean(axis=0)
        prompt_j = prompts[task] / len(lengths[task]) * prefill.energy_j / 1024
        joules = prompt_j + mean * decode.energy_j / NOMINAL_BATCH
        costs.append(LevelCosts(tuple(joules.tolist()), tuple((mean * decode.duration_s / NOMINAL_BATCH).tolist())))
        quality.append(from_choices([float(preferred[task][level]) for level in levels]))
    shares = tuple(requests[task] / total for task in tasks)
    return Knowledge(levels, tasks, tuple(costs), tuple(quality), shares)


class Directives:
    """Chooses a level for each request; mixes are made anew each hour from what is known at that moment."""

    def __init__(
        self,
        knowledge: Knowledge,
        settings: DirectiveSettings,
        grid: Grid | None,
        *,
        seed: int,
        embodied_g_per_s: float = 0.0,
    ) -> None:
        if grid is None and settings.kind != "static":
            raise ValueError(f"directives {settings.kind} follow the grid: give a carbon intensity series")
        if settings.mix is not None and len(settings.mix) != len(knowledge.levels):
            raise ValueError(f"the static mix needs {len(knowledge.levels)} probabilities, got {len(settings.mix)}")
        self.knowledge, self.settings, self.grid = knowledge, settings, grid
        self._seed = seed
        self._embodied = embodied_g_per_s
        self._hour = -1
        self._mixes: Mapping[str, Sequence[float]] = {}
        self._books = Exposure.empty(len(knowledge.tasks), len(knowledge.levels))
        self._weights: Array | None = None
        self._served = 0
        self._judged = self._matched = self._plain = 0
        self._expected = 0.0

    def choose(self, number: int, trace: TraceRequest, time_s: float) -> tuple[str, int, str]:
        hour = int(time_s // 3600)
        if hour != self._hour:
            self._hour = hour
            self._mixes = self._plan(time_s)
        levels = self.knowledge.levels
        mix = self._mixes.get(trace.task or "", (1.0,))
        place = _drawn(mix, random.Random(f"{self._seed}/{number}").random())
        level = levels[place]
        self._served += 1
        if trace.preferred_level is not None:
            self._judged += 1
            self._matched += level == trace.preferred_level
            self._plain += trace.preferred_level == BASELINE_LEVEL
            wanted = levels.index(trace.preferred_level)
            self._expected += mix[wanted] if wanted < len(mix) else 0.0
            self._books.add(self.knowledge.tasks.index(trace.task or ""), place)
        length = trace.length_at(level)
        return level, length.output_tokens, length.method

    def figures(self) -> dict[str, Any]:
        """`quality_relative`: expected preference of the mixes used over that of L0, on this run's own judged prompts;
        `quality_realised`: of the levels drawn."""
        plain = self._plain
        return {
            "quality_relative": self._expected / plain if plain else None,
            "quality_realised": self._matched / plain if plain else None,
            "judged_requests": self._judged,
        }

    def _plan(self, time_s: float) -> Mapping[str, Sequence[float]]:
        known, settings = self.knowledge, self.settings
        if settings.kind == "static":
            x = self._static() if settings.mix is None else np.tile(settings.mix, (len(known.tasks), 1))
        else:
            grid = self.grid
            assert grid is not None
            now = grid.g_per_kwh(time_s)
            if now is None:
                return {}
            window = grid.trailing(time_s)
            if settings.kind == "sprout":
                x = self._sprout(now, window)
            elif settings.kind == "classed":
                x = self._classed(now, window)
            else:
                x = self._budgeted(time_s, now)
        return {task: tuple(np.clip(row, 0.0, 1.0).tolist()) for task, row in zip(known.tasks, x)}

    def _static(self) -> Array:
        if self._mixes:
            return np.array([self._mixes[task] for task in self.knowledge.tasks])
        return self._planned([FLAT_G_PER_KWH], None)

    def _sprout(self, now: float, window: Sequence[float]) -> Array:
        known = self.knowledge
        shares = np.array(known.shares)
        energy = shares @ np.array([cost.energy_j for cost in known.costs]) / 3.6e6
        seconds = shares @ np.array([cost.time_s for cost in known.costs])
        quality = shares @ np.array([estimate.mean for estimate in known.quality])
        mix = sprout_mix(
            energy.tolist(),
            seconds.tolist(),
            quality.tolist(),
            g_per_kwh=now,
            lowest_g_per_kwh=min(window),
            highest_g_per_kwh=max(window),
            tolerance=self.settings.tolerance,
            embodied_g_per_s=self._embodied,
        )
        return np.tile(mix.probabilities, (len(known.tasks), 1))

    def _classed(self, now: float, window: Sequence[float]) -> Array:
        known, settings = self.knowledge, self.settings
        policy = ClassedPolicy(settings.tolerance, confidence=settings.confidence)
        share = policy.share(now, *trailing_bounds(window)) if len(window) > 1 else 1.0
        owners = range(len(known.tasks))
        grams = known.grams([now], self._embodied)
        return classed_hours(grams, known.shares, known.quality, list(owners), [share], settings.confidence).x

    def _budgeted(self, time_s: float, now: float) -> Array:
        grid = self.grid
        assert grid is not None
        history = np.array(grid.trailing(time_s, 24 * 365))
        moment = grid.started_at + timedelta(seconds=time_s)
        first = moment.replace(minute=0, second=0, microsecond=0) - timedelta(hours=len(history) - 1)
        if self._weights is None:
            enough = len(history) >= FIT_HOURS
            self._weights = fit(history, first, HORIZON_H - 1).weights if enough else fading_weights(HORIZON_H - 1)
        ahead = [now] * HORIZON_H
        if len(history) >= 24 * 7:
            ahead = [now, *predict(history, first, self._weights).tolist()]
        return self._planned(ahead, self._books)

    def _planned(self, g_per_kwh: Sequence[float], past: Exposure | None) -> Array:
        """The first hour of a plan that keeps `target` of L0's quality over all its hours and the past."""
        known, settings = self.knowledge, self.settings
        rate = max(self._served / max(self._hour, 1), 1.0)
        volumes = np.tile(np.array(known.shares) * rate, (len(g_per_kwh), 1))
        plan = plan_quality_budget(
            known.grams(g_per_kwh, self._embodied),
            volumes,
            known.quality,
            list(range(len(known.tasks))),
            target=settings.target,
            past=past,
            confidence=settings.confidence,
        )
        return np.asarray(plan.x[0])


def _drawn(shares: Sequence[float], point: float) -> int:
    total = 0.0
    for place, share in enumerate(shares):
        total += share
        if point < total:
            return place
    return max(place for place, share in enumerate(shares) if share > 0.0)
