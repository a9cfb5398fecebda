"""The answer of every optimizer: probabilities of the directive levels, with what is expected of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Vector = NDArray[np.float64]
PROBABILITY_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class DirectiveMix:
    """Probabilities of levels 0..n-1; level 0 is the undirected answer (L0).

    `saving`: expected share of L0's grams that is saved. `quality`: expected quality relative to L0's (1 = equal);
    None when L0's own is zero or unknown. `note` says what the solver had to do otherwise than asked, if anything.
    """

    probabilities: tuple[float, ...]
    saving: float
    quality: float | None
    note: str | None = None

    def __post_init__(self) -> None:
        total = math.fsum(self.probabilities)
        if not self.probabilities or abs(total - 1.0) > PROBABILITY_TOLERANCE or min(self.probabilities) < 0.0:
            raise ValueError(f"probabilities must be at least 0 and sum to 1, got {self.probabilities}")


def mix_of(x: ArrayLike, grams: Vector, quality: Vector | None, note: str | None = None) -> DirectiveMix:
    """Wrap a solution: clip rounding of the solver, normalise, and work out what it is expected to do."""
    clipped = np.clip(np.asarray(x, dtype=np.float64), 0.0, 1.0)
    clipped[clipped < PROBABILITY_TOLERANCE * 1e-3] = 0.0
    clipped /= clipped.sum()
    saving = 1.0 - float(grams @ clipped) / float(grams[0]) if grams[0] > 0.0 else 0.0
    relative = float(quality @ clipped) / float(quality[0]) if quality is not None and quality[0] > 0.0 else None
    return DirectiveMix(tuple(map(float, clipped)), saving, relative, note)


def only_level(level: int, grams: Vector, quality: Vector | None, note: str | None = None) -> DirectiveMix:
    return mix_of(np.eye(len(grams))[level], grams, quality, note)


def check_levels(name: str, values: Sequence[float] | Vector, levels: int | None = None) -> Vector:
    """`values` as a vector of finite numbers of at least 0; raises `ValueError` naming the input otherwise."""
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1 or vector.size == 0 or (levels is not None and vector.size != levels):
        raise ValueError(f"{name} needs one number a level, got shape {vector.shape}")
    if not np.all(np.isfinite(vector)) or np.any(vector < 0.0):
        raise ValueError(f"{name} must be finite and at least 0, got {vector.tolist()}")
    return vector
