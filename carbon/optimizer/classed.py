"""A mix for each prompt class, each class with its own floor of quality.

What SPROUT leaves on the table: tasks differ in what brevity costs them and in what it saves. Every class keeps
`1 - tolerance * position` of its own L0 quality, with confidence, where `position` tells how dirty the grid is between
the bounds of a trailing window or of the forecast (never the year's, which are known only in hindsight). A class may
be split into bands (see `carbon.prompt_bands`): the floor is the class's, the mix is the band's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from carbon.optimizer.mix import DirectiveMix, Vector, check_levels, mix_of
from carbon.optimizer.program import Cells, Floor, Solution, solve
from carbon.optimizer.sprout import quality_share
from carbon.quality import QualityEstimate, z_score

DEFAULT_CONFIDENCE = 0.75


@dataclass(frozen=True, slots=True)
class LevelCosts:
    """Mean of a request at each level: joules of the device (PUE and idle included where known) and seconds."""

    energy_j: tuple[float, ...]
    time_s: tuple[float, ...]

    def grams(self, g_per_kwh: float, embodied_g_per_s: float) -> Vector:
        energy = check_levels("energy_j", self.energy_j)
        time = check_levels("time_s", self.time_s, energy.size)
        return g_per_kwh * energy / 3.6e6 + embodied_g_per_s * time


@dataclass(frozen=True, slots=True)
class Band:
    """A part of a class: what its levels cost, what is known of their quality, and its share of the class."""

    costs: LevelCosts
    quality: QualityEstimate
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class ClassedPolicy:
    """`tolerance`: how much of L0's quality a class may give up at the dirtiest intensity. `quality_floor`: never
    less than this, whatever the intensity. `confidence`: of each floor's lower bound, 0.5 being the plain mean."""

    tolerance: float = 0.1
    quality_floor: float = 0.0
    confidence: float = DEFAULT_CONFIDENCE

    def share(self, g_per_kwh: float, lowest: float, highest: float) -> float:
        return max(self.quality_floor, quality_share(g_per_kwh, lowest, highest, self.tolerance))


def trailing_bounds(window: Sequence[float], low: float = 0.0, high: float = 1.0) -> tuple[float, float]:
    """Quantiles `low` and `high` of the intensities of a trailing window (or of a forecast): the online bounds.

    Quantiles inside 0..1 keep one odd hour from stretching the scale. Raises `ValueError` for an empty window.
    """
    if len(window) == 0:
        raise ValueError("the intensity window is empty; without bounds use a constant share")
    if not 0.0 <= low < high <= 1.0:
        raise ValueError(f"quantiles must satisfy 0 <= low < high <= 1, got {low:g} and {high:g}")
    lowest, highest = np.quantile(np.asarray(window, dtype=np.float64), [low, high])
    return float(lowest), float(highest)


def classed_mixes(
    classes: Mapping[str, Sequence[Band]],
    *,
    g_per_kwh: float,
    share: float,
    embodied_g_per_s: float = 0.0,
    confidence: float = DEFAULT_CONFIDENCE,
) -> dict[str, tuple[DirectiveMix, ...]]:
    """One mix a band for every class at one intensity. A class whose floor cannot be met is at L0 and says so."""
    bands = [(name, band) for name, parts in classes.items() for band in parts]
    if not bands:
        return {}
    grams = np.array([band.costs.grams(g_per_kwh, embodied_g_per_s) for _, band in bands])
    names = list(classes)
    owners = [names.index(name) for name, _ in bands]
    estimates = [band.quality for _, band in bands]
    weights = [band.share for _, band in bands]
    solution = classed_hours(grams[None], weights, estimates, owners, [share], confidence)
    unmet = {np.unique(owners)[number] for number in solution.unmet}
    mixes: dict[str, tuple[DirectiveMix, ...]] = {}
    for number, name in enumerate(names):
        note = None
        if number in unmet:
            note = f"no mix keeps {share:.3f} of L0's quality at confidence {confidence:g}; L0 is used"
        members = [i for i, owner in enumerate(owners) if owner == number]
        mixes[name] = tuple(mix_of(solution.x[i], grams[i], estimates[i].mean, note) for i in members)
    return mixes


def classed_hours(
    grams: Vector,
    weights: Sequence[float],
    estimates: Sequence[QualityEstimate],
    owners: Sequence[int],
    shares: Sequence[float],
    confidence: float,
) -> Solution:
    """The same for many hours in one program: `grams` `[H, M, L]`, `shares` `[H]`; `x` comes back `[H * M, L]`.

    `owners` `[M]`: the class of each band. Floors are numbered hour by hour, within an hour by ascending owner.
    """
    hours, count, levels = grams.shape
    if any(estimate.levels != levels for estimate in estimates):
        raise ValueError("every class and band needs a cost and a quality for the same levels")
    if not (len(weights) == len(estimates) == len(owners) == count and len(shares) == hours):
        raise ValueError(f"{count} bands and {hours} hours need as many weights, estimates, owners and shares")
    cells = Cells(
        grams.reshape(-1, levels),
        np.tile(np.asarray(weights, dtype=np.float64), hours),
        np.tile(np.arange(count), hours),
    )
    members = [np.flatnonzero(np.asarray(owners) == owner) for owner in np.unique(owners)]
    floors = [Floor(hour * count + member, share) for hour, share in enumerate(shares) for member in members]
    return solve(cells, estimates, floors, z_score(confidence))
