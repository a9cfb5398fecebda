"""Which class a prompt belongs to, learned online from prompts whose class a client or tenant declared.

Multinomial logistic regression on hashed features. Every fifth example is kept for calibration: a temperature makes
the probabilities honest, a threshold turns doubtful ones into `UNKNOWN`, and so does a prompt most of whose features
were never seen. Saved as plain arrays and JSON, never as pickle.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from carbon.text_features import FEATURES, HASHED, VERSION, featurise

Array = NDArray[np.float64]

UNKNOWN = "unknown"
HOLD_OUT = 5
MIN_EXAMPLES = 40
MIN_CALIBRATION = 20
MAX_CALIBRATION = 2000
# A prompt is foreign when the known share of its words is below half of what calibration prompts have at least.
NOVELTY = 0.5
MAX_FILE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ClassPrediction:
    """`name` is `UNKNOWN` when the best class was not sure enough; `probability`: calibrated, of the best class."""

    name: str
    probability: float
    best: str | None


class PromptClassifier:
    """Online classifier over a fixed list of classes. `accuracy`: what predictions other than unknown must reach on
    the calibration examples; the threshold follows from it."""

    def __init__(self, classes: Sequence[str], accuracy: float = 0.8) -> None:
        if len(set(classes)) != len(classes) or not classes or UNKNOWN in classes:
            raise ValueError(f"classes must be distinct names other than {UNKNOWN!r}, got {list(classes)}")
        if not 0.0 < accuracy < 1.0:
            raise ValueError(f"accuracy must be between 0 and 1, got {accuracy:g}")
        self.classes = tuple(classes)
        self.accuracy = accuracy
        self.examples = 0
        self.temperature = 1.0
        self.threshold = 1.0
        self.novelty_limit = 0.0
        self._seen = np.zeros(FEATURES, dtype=bool)
        self._kept: list[tuple[Array, int, float]] = []

    @cached_property
    def _model(self) -> Any:
        from sklearn.linear_model import SGDClassifier  # only once there is something to learn, as in text_features

        return SGDClassifier(loss="log_loss", alpha=1e-5, random_state=0, learning_rate="optimal")

    def learn(self, prompts: Sequence[str], labels: Sequence[str], passes: int = 1) -> None:
        """Take in declared examples. `passes` over the batch: several for a first bulk load, one when online.

        Raises `ValueError` for a label that is not one of the classes.
        """
        unknown = set(labels) - set(self.classes)
        if unknown:
            raise ValueError(f"label {sorted(unknown)[0]!r} is none of the classes {', '.join(self.classes)}")
        if not prompts:
            return
        matrix = featurise(prompts)
        targets = np.array([self.classes.index(label) for label in labels])
        order = np.arange(self.examples, self.examples + len(prompts))
        held = order % HOLD_OUT == HOLD_OUT - 1
        self.examples += len(prompts)
        train = np.flatnonzero(~held)
        shuffled = np.random.default_rng(self.examples)
        for _ in range(passes):
            rows = shuffled.permutation(train)
            if rows.size:
                self._model.partial_fit(matrix[rows], targets[rows], classes=np.arange(len(self.classes)))
        self._seen[matrix[train].indices] = True
        self._calibrate(matrix[np.flatnonzero(held)], targets[held])

    def predict(self, prompt: str) -> ClassPrediction:
        return self.predict_many([prompt])[0]

    def predict_many(self, prompts: Sequence[str]) -> list[ClassPrediction]:
        if self.examples < MIN_EXAMPLES or not hasattr(self._model, "coef_"):
            return [ClassPrediction(UNKNOWN, 1.0 / len(self.classes), None) for _ in prompts]
        matrix = featurise(prompts)
        probabilities = softmax(self._scores(matrix) / self.temperature, axis=1)
        known = self._known_share(matrix)
        found = []
        for row, share in zip(probabilities, known):
            best = int(row.argmax())
            sure = row[best] >= self.threshold and share >= self.novelty_limit
            name = self.classes[best]
            found.append(ClassPrediction(name if sure else UNKNOWN, float(row[best]), name))
        return found

    def _scores(self, matrix: Any) -> Array:
        scores = np.asarray(self._model.decision_function(matrix), dtype=np.float64)
        if scores.ndim == 1:
            scores = np.column_stack([-scores, scores]) if len(self.classes) == 2 else np.zeros((len(scores), 1))
        return scores

    def _known_share(self, matrix: Any) -> Array:
        words = matrix[:, :HASHED]
        known: Array = np.asarray(words @ self._seen[:HASHED].astype(np.float64), dtype=np.float64)
        total: Array = np.maximum(np.asarray(words.sum(axis=1), dtype=np.float64).ravel(), 1e-12)
        return known / total

    def _calibrate(self, matrix: Any, targets: NDArray[np.int64]) -> None:
        if not hasattr(self._model, "coef_"):
            return
        if matrix.shape[0]:
            for score, target, share in zip(self._scores(matrix), targets, self._known_share(matrix)):
                self._kept.append((score, int(target), float(share)))
            del self._kept[:-MAX_CALIBRATION]
        if len(self._kept) < MIN_CALIBRATION:
            return
        scores = np.array([score for score, _, _ in self._kept])
        labels = np.array([target for _, target, _ in self._kept])
        rows = np.arange(len(labels))
        result = minimize_scalar(
            lambda log_t: -float(log_softmax(scores / np.exp(log_t), axis=1)[rows, labels].mean()),
            bounds=(-3.0, 6.0),
            method="bounded",
        )
        self.temperature = float(np.exp(result.x))
        probabilities = softmax(scores / self.temperature, axis=1)
        self.threshold = _threshold(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels, self.accuracy)
        self.novelty_limit = NOVELTY * float(np.quantile([share for _, _, share in self._kept], 0.01))

    def save(self, path: Path) -> None:
        """Write weights and calibration as a zip of JSON and `.npy` arrays, replacing `path` in one step."""
        if not hasattr(self._model, "coef_"):
            raise ValueError("the classifier has seen no example; there is nothing to save")
        header = {
            "kind": "gridserve-prompt-classifier",
            "features": VERSION,
            "classes": self.classes,
            "accuracy": self.accuracy,
            "examples": self.examples,
            "steps": int(self._model.t_),
            "temperature": self.temperature,
            "threshold": self.threshold,
            "novelty_limit": self.novelty_limit,
        }
        arrays = {
            "coef": self._model.coef_.astype(np.float32),
            "intercept": np.asarray(self._model.intercept_, dtype=np.float64),
            "seen": np.packbits(self._seen),
            "kept_scores": np.array([s for s, _, _ in self._kept]).reshape(len(self._kept), len(self.classes)),
            "kept_labels": np.array([t for _, t, _ in self._kept], dtype=np.int64),
            "kept_shares": np.array([k for _, _, k in self._kept], dtype=np.float64),
        }
        temporary = path.with_suffix(path.suffix + ".part")
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("header.json", json.dumps(header))
            for name, array in arrays.items():
                buffer = io.BytesIO()
                np.lib.format.write_array(buffer, array, allow_pickle=False)
                archive.writestr(f"{name}.npy", buffer.getvalue())
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> PromptClassifier:
        """Read what `save` wrote. Raises `ValueError` for anything else; nothing in the file is executed."""
        try:
            with zipfile.ZipFile(path) as archive:
                if sum(member.file_size for member in archive.infolist()) > MAX_FILE_BYTES:
                    raise ValueError("it is larger than any classifier")
                header = json.loads(archive.read("header.json"))
                arrays = {
                    name.removesuffix(".npy"): np.lib.format.read_array(
                        io.BytesIO(archive.read(name)), allow_pickle=False
                    )
                    for name in archive.namelist()
                    if name.endswith(".npy")
                }
            if header["kind"] != "gridserve-prompt-classifier" or header["features"] != VERSION:
                raise ValueError("it was written for another version")
            loaded = cls(header["classes"], float(header["accuracy"]))
            loaded._restore(header, arrays)
        except (OSError, KeyError, TypeError, zipfile.BadZipFile, ValueError) as error:
            raise ValueError(f"{path} is not a prompt classifier: {error}; delete it to start anew") from None
        return loaded

    def _restore(self, header: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> None:
        rows = 1 if len(self.classes) == 2 else len(self.classes)
        if arrays["coef"].shape != (rows, FEATURES) or not np.all(np.isfinite(arrays["coef"])):
            raise ValueError("its weights have the wrong shape")
        model = self._model
        # One tiny fit makes the library allocate its state; the saved state then replaces it.
        model.partial_fit(featurise(["a", "b"]), [0, len(self.classes) - 1], classes=np.arange(len(self.classes)))
        model.coef_ = arrays["coef"].astype(np.float64, order="C")
        model.intercept_ = arrays["intercept"].astype(np.float64)
        model.t_ = float(header["steps"])
        self._seen = np.unpackbits(arrays["seen"], count=FEATURES).astype(bool)
        self.examples = int(header["examples"])
        self.temperature = float(header["temperature"])
        self.threshold = float(header["threshold"])
        self.novelty_limit = float(header["novelty_limit"])
        kept = zip(arrays["kept_scores"], arrays["kept_labels"], arrays["kept_shares"])
        self._kept = [(score, int(label), float(share)) for score, label, share in kept]


def _threshold(confidence: Array, correct: NDArray[np.bool_], accuracy: float) -> float:
    """The lowest threshold at which the accepted predictions reach `accuracy`; above 1 when none does.

    At most `accuracy` itself where all do: a calibrated probability that high is sure enough, even if every
    calibration example happened to be surer.
    """
    order = np.argsort(-confidence)
    running = np.cumsum(correct[order]) / np.arange(1, len(order) + 1)
    good = np.flatnonzero(running >= accuracy)
    return min(accuracy, float(confidence[order][good[-1]])) if good.size else 1.01
