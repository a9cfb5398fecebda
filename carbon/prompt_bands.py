"""Parts of a class by how likely brevity is to hurt: learned from judged prompts, applied before the mix is chosen.

Within one class some prompts want a long answer and some do not. A logistic model on the hashed text predicts the
chance that L0 is preferred; quantiles of it, cut on scores of prompts the model was not fitted on, divide the class
into bands. The optimizer then gives each band its own mix under the class's one floor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carbon.text_features import FEATURES, featurise

Array = NDArray[np.float64]

DEFAULT_BANDS = 6
MIN_EXAMPLES_A_BAND = 30
FOLDS = 5


@dataclass(frozen=True, slots=True)
class BandModel:
    """`weights` `[FEATURES]`, `intercept`: log-odds that L0 is preferred. `cuts` `[bands - 1]`, ascending."""

    weights: Array
    intercept: float
    cuts: Array

    @property
    def bands(self) -> int:
        return len(self.cuts) + 1

    def band_of(self, prompts: Sequence[str]) -> NDArray[np.int64]:
        """Band of each prompt: 0 is where brevity is least likely to hurt."""
        return self.band_of_features(featurise(prompts))

    def band_of_features(self, matrix: Any) -> NDArray[np.int64]:
        scores = np.asarray(matrix @ self.weights, dtype=np.float64) + self.intercept
        return np.asarray(np.searchsorted(self.cuts, scores), dtype=np.int64)


SINGLE_BAND = BandModel(np.zeros(FEATURES), 0.0, np.zeros(0))


def fit_bands(
    matrix: Any, prefers_l0: NDArray[np.bool_], bands: int = DEFAULT_BANDS, seed: int = 0
) -> tuple[BandModel, NDArray[np.int64]]:
    """Fit on the judged prompts of one class, a CSR `matrix` `[n, FEATURES]`; returns the model and the bands of them.

    The bands returned come from models that had not seen the prompt (cross-fitting), so that quality counted by band
    is not flattered by the fit. With too few prompts, or one outcome only, there is a single band.
    """
    count = matrix.shape[0]
    bands = min(bands, count // MIN_EXAMPLES_A_BAND)
    if bands < 2 or min(prefers_l0.sum(), count - prefers_l0.sum()) < FOLDS:
        return SINGLE_BAND, np.zeros(count, dtype=np.int64)
    # Columns that no prompt has would keep their weight of 0 through every step of the solver, at its full cost.
    present = np.unique(matrix.indices)
    narrow = matrix[:, present]
    fold = np.random.default_rng(seed).permutation(count) % FOLDS
    scores = np.zeros(count)
    for number in range(FOLDS):
        rest = fold != number
        if len(np.unique(prefers_l0[rest])) < 2:
            return SINGLE_BAND, np.zeros(count, dtype=np.int64)
        scores[~rest] = _fitted(narrow[rest], prefers_l0[rest]).decision_function(narrow[~rest])
    cuts = np.quantile(scores, np.linspace(0.0, 1.0, bands + 1)[1:-1])
    full = _fitted(narrow, prefers_l0)
    weights = np.zeros(matrix.shape[1])
    weights[present] = full.coef_[0]
    fitted = BandModel(weights, float(full.intercept_[0]), cuts)
    return fitted, np.asarray(np.searchsorted(cuts, scores), dtype=np.int64)


def _fitted(matrix: Any, prefers_l0: NDArray[np.bool_]) -> Any:
    from sklearn.linear_model import LogisticRegression  # only once there is something to fit, as in text_features
    from threadpoolctl import threadpool_limits

    # The solver's vectors are short: with more than one BLAS thread it waits for them, 15 times as long on 2 cores.
    with threadpool_limits(1, user_api="blas"):
        return LogisticRegression(C=1.0, max_iter=500).fit(matrix, prefers_l0)
