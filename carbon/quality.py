"""What is known of the quality of each directive level, with how well it is known.

Two measures, both turned into a mean and a covariance over levels:
- choices (SPROUT): the judge names the best of all levels' answers; quality of a level is its share of the choices;
- duels (win, tie, loss against L0, order swapped): quality is the score (wins + ties / 2) / n, and L0's is 1/2.
Quality relative to L0 is `mean[i] / mean[0]` in both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
PRIOR_OBSERVATIONS = 1.0


@dataclass(frozen=True, slots=True)
class QualityEstimate:
    """`mean` `[L]` and `covariance` `[L, L]` of the levels' quality; `observations`: judged prompts behind it."""

    mean: Vector
    covariance: Vector
    observations: float

    @property
    def levels(self) -> int:
        return len(self.mean)

    def relative(self, probabilities: Sequence[float]) -> float:
        """Expected quality of a mix relative to L0's."""
        return float(self.mean @ np.asarray(probabilities)) / float(self.mean[0])

    def lower_bound(self, probabilities: Sequence[float], share: float, confidence: float) -> float:
        """Lower confidence bound of `mix quality - share * L0 quality`, in the measure's own unit."""
        contrast = np.array(probabilities, dtype=np.float64)
        contrast[0] -= share
        deviation = math.sqrt(max(0.0, float(contrast @ self.covariance @ contrast)))
        return float(self.mean @ contrast) - z_score(confidence) * deviation


def z_score(confidence: float) -> float:
    """One-sided normal quantile: 0 at 0.5 (the mean itself), 1.28 at 0.9."""
    if not 0.5 <= confidence < 1.0:
        raise ValueError(f"confidence must be at least 0.5 and below 1, got {confidence:g}")
    return NormalDist().inv_cdf(confidence)


def from_choices(counts: Sequence[float], prior: Sequence[float] | None = None) -> QualityEstimate:
    """Estimate from how often each level was chosen as best.

    Dirichlet posterior; `prior` `[L]` are pseudo-counts and default to one observation spread evenly, so that few
    judged prompts leave a wide covariance and no level is ever certain. Counts may be fractional (decayed).
    """
    seen = _counts(counts)
    alpha = seen + (np.full(seen.size, PRIOR_OBSERVATIONS / seen.size) if prior is None else _counts(prior))
    total = float(alpha.sum())
    mean = alpha / total
    covariance = (np.diag(mean) - np.outer(mean, mean)) / (total + 1.0)
    return QualityEstimate(mean, covariance, float(seen.sum()))


def from_duels(wins: Sequence[float], ties: Sequence[float], losses: Sequence[float]) -> QualityEstimate:
    """Estimate from duels of levels 1..L-1 against L0; each argument has one entry a level, L0's left out.

    A level without duels has mean 1/2 and the widest possible deviation. One pseudo-duel, a tie in expectation, is
    added to each level for the same reason as the prior of `from_choices`.
    """
    won, tied, lost = _counts(wins), _counts(ties), _counts(losses)
    duels = won + tied + lost + PRIOR_OBSERVATIONS
    win, tie = (won + PRIOR_OBSERVATIONS / 2) / duels, tied / duels
    score = win + tie / 2
    variance = (win + tie / 4 - score**2) / duels
    mean = np.concatenate(([0.5], score))
    observed = won + tied + lost
    return QualityEstimate(mean, np.diag(np.concatenate(([0.0], variance))), float(observed.min(initial=np.inf)))


def shrunk_duels(counts: NDArray[np.float64]) -> list[QualityEstimate]:
    """Estimates of several groups of one class from duels, `counts` `[G, L - 1, 3]` of wins, ties and losses of each
    level against L0, drawn towards the class as `shrunk_choices` draws choices, level by level."""
    table = np.asarray(counts, dtype=np.float64)
    groups, levels = table.shape[:2]
    means, variances = np.full((groups, levels + 1), 0.5), np.zeros((groups, levels + 1))
    for level in range(levels):
        for group, outcome in enumerate(shrunk_choices(table[:, level])):
            win, tie = float(outcome.mean[0]), float(outcome.mean[1])
            value = np.array([1.0, 0.5, 0.0])
            means[group, level + 1] = win + tie / 2.0
            variances[group, level + 1] = float(value @ outcome.covariance @ value)
    observed = table.sum(axis=2)
    return [
        QualityEstimate(means[group], np.diag(variances[group]), float(observed[group].min(initial=np.inf)))
        for group in range(groups)
    ]


def shrunk_choices(counts: NDArray[np.float64]) -> list[QualityEstimate]:
    """Estimates of several groups of one class, `counts` `[G, L]`, drawn towards the class by empirical Bayes.

    The strength of the draw is the Dirichlet-multinomial moment estimate: groups that differ no more than sampling
    noise explains get the class's own mean, and picking the best-looking group then gains nothing (no winner's curse).
    """
    table = np.asarray(counts, dtype=np.float64)
    sizes = table.sum(axis=1)
    total = float(sizes.sum())
    used = sizes > 0.0
    if total == 0.0 or used.sum() < 2:
        return [from_choices(row) for row in table]
    common = (table.sum(axis=0) + PRIOR_OBSERVATIONS / table.shape[1]) / (total + PRIOR_OBSERVATIONS)
    shares = table[used] / sizes[used, None]
    spread = float((sizes[used, None] * (shares - common) ** 2 / common).sum())
    freedom = (used.sum() - 1) * (table.shape[1] - 1)
    # Pearson's statistic of homogeneous groups is about `freedom`; what exceeds it is real difference, of which one
    # unit of intra-class correlation would give about total * (L - 1).
    excess = max(0.0, spread - freedom)
    correlation = excess / max(excess, (total - float((sizes**2).sum()) / total) * (table.shape[1] - 1))
    strength = total if correlation <= 1.0 / (total + 1.0) else (1.0 - correlation) / correlation
    return [from_choices(row, prior=strength * common) for row in table]


def _counts(values: Sequence[float]) -> Vector:
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1 or vector.size == 0 or not np.all(np.isfinite(vector)) or np.any(vector < 0.0):
        raise ValueError(f"counts must be a list of finite numbers of at least 0, got {values!r}")
    return vector
