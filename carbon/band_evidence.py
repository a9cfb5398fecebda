"""Judged prompts as the bands are learned from: hashed features and outcomes, never the text, bounded a class.

After each run of the evaluator the bands of every class are fitted anew on what is kept here, and the duels are counted
by band: a band's number means something only for the model that made it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from carbon.prompt_bands import DEFAULT_BANDS, BandModel, fit_bands
from carbon.text_features import FEATURES, VERSION, featurise

Array = NDArray[np.float64]

MAX_PROMPTS_A_CLASS = 2000
UNJUDGED = 2
"""In place of an outcome (-1, 0, 1), for a level the prompt was not judged at."""


@dataclass(frozen=True, slots=True)
class JudgedPrompt:
    """`outcomes` by level (1 ..): 1 won against L0, 0 tied, -1 lost; levels that were not judged are left out."""

    prompt_class: str
    text: str
    outcomes: Mapping[int, int]


@dataclass(slots=True)
class _Kept:
    features: Any
    outcomes: NDArray[np.int8]


class BandEvidence:
    """The newest judged prompts of each class; `levels`: how many the policy has, L0 included."""

    def __init__(self, levels: int) -> None:
        self.levels = levels
        self._kept: dict[str, _Kept] = {}

    def __len__(self) -> int:
        return sum(len(kept.outcomes) for kept in self._kept.values())

    def add(self, judged: Iterable[JudgedPrompt]) -> None:
        """Take prompts in, oldest first; beyond the bound the oldest of their class go."""
        by_class: dict[str, list[JudgedPrompt]] = {}
        for one in judged:
            by_class.setdefault(one.prompt_class, []).append(one)
        for name, prompts in by_class.items():
            features = featurise([one.text for one in prompts])
            outcomes = np.full((len(prompts), max(0, self.levels - 1)), UNJUDGED, dtype=np.int8)
            for row, one in enumerate(prompts):
                for level, outcome in one.outcomes.items():
                    outcomes[row, level - 1] = outcome
            before = self._kept.get(name)
            if before is not None:
                features = sparse.vstack([before.features, features], format="csr")
                outcomes = np.concatenate([before.outcomes, outcomes])
            self._kept[name] = _Kept(features[-MAX_PROMPTS_A_CLASS:], outcomes[-MAX_PROMPTS_A_CLASS:])

    def fit(self, bands: int = DEFAULT_BANDS) -> tuple[dict[str, BandModel], dict[str, list[Array]]]:
        """Bands of each class that has enough prompts for more than one, and the duels `[L - 1, 3]` (wins, ties,
        losses) of each band. Brevity hurts a prompt whose briefer answers lost to L0 more often than they won."""
        models: dict[str, BandModel] = {}
        counts: dict[str, list[Array]] = {}
        for name, kept in self._kept.items():
            judged = kept.outcomes != UNJUDGED
            score = np.where(judged, kept.outcomes, 0).sum(axis=1)
            model, band = fit_bands(kept.features, score < 0, bands)
            if model.bands < 2:
                continue
            models[name] = model
            counts[name] = [_counted(kept.outcomes[band == number]) for number in range(model.bands)]
        return models, counts

    def save(self, path: Path) -> None:
        """Write in one step, so that a crash leaves the old file."""
        arrays: dict[str, Any] = {
            "version": np.array(VERSION),
            "levels": np.array(self.levels),
            "names": np.array(list(self._kept), dtype=np.str_),
        }
        for number, kept in enumerate(self._kept.values()):
            matrix = kept.features.tocsr()
            arrays[f"data{number}"] = matrix.data.astype(np.float32)
            arrays[f"indices{number}"] = matrix.indices
            arrays[f"indptr{number}"] = matrix.indptr
            arrays[f"outcomes{number}"] = kept.outcomes
        temporary = path.with_suffix(".part.npz")
        np.savez_compressed(temporary, **arrays)
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: Path) -> BandEvidence:
        """Raises `ValueError` for a file that is damaged or of another version."""
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                if int(archive["version"]) != VERSION:
                    raise ValueError("it was written for another version")
                evidence = cls(int(archive["levels"]))
                for number, name in enumerate(archive["names"].tolist()):
                    outcomes = archive[f"outcomes{number}"]
                    parts = (archive[f"data{number}"].astype(np.float64), archive[f"indices{number}"])
                    matrix = sparse.csr_matrix((*parts, archive[f"indptr{number}"]), shape=(len(outcomes), FEATURES))
                    matrix.check_format(full_check=True)
                    if outcomes.shape != (matrix.shape[0], evidence.levels - 1) or not np.all(np.isfinite(matrix.data)):
                        raise ValueError(f"the judgements of {name!r} cannot be used")
                    evidence._kept[str(name)] = _Kept(matrix, outcomes.astype(np.int8))
        except (OSError, KeyError, ValueError, TypeError, BadZipFile) as error:
            raise ValueError(f"{path} holds no judged prompts: {error}; delete it to start anew") from None
        return evidence


def _counted(outcomes: NDArray[np.int8]) -> Array:
    return np.stack([(outcomes == value).sum(axis=0) for value in (1, 0, -1)], axis=1).astype(np.float64)
