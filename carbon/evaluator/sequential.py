"""When a level of a class has been judged often enough: an always-valid confidence sequence for its score.

Scores lie in 0..1 (loss 0, tie 1/2, win 1), hence are 1/4-sub-Gaussian, and the normal-mixture bound of Howard et al.
("Time-uniform, nonparametric, nonasymptotic confidence sequences", Annals of Statistics 2021, eq. 14) holds at all
sample sizes at once: looking after every judgement costs nothing.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

SUB_GAUSSIAN = 0.25


class Verdict(enum.StrEnum):
    """KEEPS: the level keeps the floor. FAILS: it does not. OPEN: not known yet. EXHAUSTED: samples ran out."""

    KEEPS = "keeps"
    FAILS = "fails"
    OPEN = "open"
    EXHAUSTED = "exhausted"


def radius(samples: int, alpha: float, tuned_for: int = 200) -> float:
    """Half-width, valid for all `samples` at once with probability `1 - alpha`; tightest near `tuned_for`."""
    if samples < 1:
        return 1.0
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha must be between 0 and 1, got {alpha:g}")
    variance = samples * SUB_GAUSSIAN
    # The tuning that minimises the width at `tuned_for` samples, to first order.
    rho = tuned_for * SUB_GAUSSIAN / (2.0 * math.log(1.0 / alpha) + math.log(1.0 + 2.0 * math.log(1.0 / alpha)))
    return math.sqrt((variance + rho) * math.log((variance + rho) / (rho * alpha**2))) / samples


@dataclass(slots=True)
class LevelTest:
    """Is the level's score at least `floor` (0.5 times the share of L0's quality to keep)?"""

    floor: float
    alpha: float = 0.1
    max_samples: int = 500
    samples: int = 0
    total: float = 0.0

    def add(self, outcome: int) -> None:
        """`outcome`: 1 won, 0 tied, -1 lost."""
        self.samples += 1
        self.total += (outcome + 1) / 2.0

    @property
    def score(self) -> float | None:
        return self.total / self.samples if self.samples else None

    def verdict(self) -> Verdict:
        if self.samples:
            half = radius(self.samples, self.alpha)
            if self.total / self.samples - half >= self.floor:
                return Verdict.KEEPS
            if self.total / self.samples + half < self.floor:
                return Verdict.FAILS
        return Verdict.EXHAUSTED if self.samples >= self.max_samples else Verdict.OPEN
