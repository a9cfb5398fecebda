"""What the plane has learned, as files of one folder: JSON and plain arrays, nothing that can carry code."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from carbon.band_evidence import BandEvidence
from carbon.budget_books import BudgetBooks
from carbon.energy_model import EnergyModel
from carbon.prompt_bands import BandModel
from carbon.prompt_classes import PromptClassifier
from carbon.quality_book import QualityBook
from carbon.text_features import FEATURES, VERSION

ENERGY_FILE = "energy.json"
QUALITY_FILE = "quality.json"
CLASSIFIER_FILE = "classifier.zip"
BANDS_FILE = "bands.npz"
EVIDENCE_FILE = "judged.npz"
BOOKS_FILE = "budget.json"


@dataclass(slots=True)
class LearnedState:
    energy_model: EnergyModel
    quality: QualityBook
    classifier: PromptClassifier | None = None
    bands: dict[str, BandModel] = field(default_factory=dict)
    evidence: BandEvidence | None = None
    books: BudgetBooks | None = None

    def save(self, folder: Path) -> None:
        """Write every part, each in one step, so that a crash leaves the old one."""
        folder.mkdir(parents=True, exist_ok=True)
        _write_json(folder / ENERGY_FILE, self.energy_model.state())
        _write_json(folder / QUALITY_FILE, self.quality.state())
        if self.classifier is not None and self.classifier.examples:
            self.classifier.save(folder / CLASSIFIER_FILE)
        if self.bands:
            _write_bands(folder / BANDS_FILE, self.bands)
        else:
            (folder / BANDS_FILE).unlink(missing_ok=True)
        if self.evidence is not None and len(self.evidence):
            self.evidence.save(folder / EVIDENCE_FILE)
        if self.books is not None:
            _write_json(folder / BOOKS_FILE, self.books.state())


def load_state(folder: Path, levels: int) -> LearnedState:
    """Read what there is; missing files mean nothing learned yet. Raises `ValueError` naming a damaged file, or one
    that knows another number of levels."""
    energy = _read_json(folder / ENERGY_FILE)
    quality = _read_json(folder / QUALITY_FILE)
    state = LearnedState(
        EnergyModel.from_state(energy) if energy is not None else EnergyModel(levels),
        QualityBook.from_state(quality) if quality is not None else QualityBook(levels),
    )
    for name, known in ((ENERGY_FILE, state.energy_model.levels), (QUALITY_FILE, state.quality.levels)):
        if known != levels:
            raise ValueError(f"{folder / name} knows {known} directive levels, the policy {levels}; delete it")
    if (folder / CLASSIFIER_FILE).is_file():
        state.classifier = PromptClassifier.load(folder / CLASSIFIER_FILE)
    if (folder / BANDS_FILE).is_file():
        state.bands = _read_bands(folder / BANDS_FILE)
    if (folder / EVIDENCE_FILE).is_file():
        state.evidence = BandEvidence.load(folder / EVIDENCE_FILE)
        if state.evidence.levels != levels:
            raise ValueError(f"{folder / EVIDENCE_FILE} knows {state.evidence.levels} directive levels; delete it")
    books = _read_json(folder / BOOKS_FILE)
    if books is not None:
        state.books = BudgetBooks.from_state(books, levels)
    return state


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(value), encoding="utf-8")
    os.replace(temporary, path)


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}; delete it to start anew") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no object; delete it to start anew")
    return value


def _write_bands(path: Path, bands: Mapping[str, BandModel]) -> None:
    arrays: dict[str, Any] = {"names": np.array(list(bands), dtype=np.str_), "version": np.array(VERSION)}
    for number, model in enumerate(bands.values()):
        arrays[f"weights{number}"] = model.weights.astype(np.float32)
        arrays[f"cuts{number}"] = np.concatenate([[model.intercept], model.cuts])
    temporary = path.with_suffix(".part.npz")
    np.savez_compressed(temporary, **arrays)
    os.replace(temporary, path)


def _read_bands(path: Path) -> dict[str, BandModel]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            if int(archive["version"]) != VERSION:
                raise ValueError("it was written for another version")
            bands = {}
            for number, name in enumerate(archive["names"].tolist()):
                weights, cuts = archive[f"weights{number}"].astype(np.float64), archive[f"cuts{number}"]
                if weights.shape != (FEATURES,) or not np.all(np.isfinite(weights)) or not np.all(np.isfinite(cuts)):
                    raise ValueError(f"the weights of {name!r} cannot be used")
                bands[str(name)] = BandModel(weights, float(cuts[0]), cuts[1:])
    except (OSError, KeyError, ValueError, BadZipFile) as error:
        raise ValueError(f"{path} is not a band model: {error}; delete it to start anew") from None
    return bands
