"""Prompts as hashed features: no vocabulary is kept, and a feature cannot be turned back into a word.

Columns 0 .. HASHED-1 are word unigrams and bigrams by hash, the last `len(SHAPE)` columns describe the text's shape.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from scipy import sparse

HASHED = 2**15
SHAPE = ("log_words", "digits", "question_mark", "lines", "capitals", "options")
FEATURES = HASHED + len(SHAPE)
MAX_CHARACTERS = 20_000
VERSION = 1

_OPTIONS = re.compile(r"(?:^|\n|\s)\(?[A-E][.):]\s")
_WORDS_AND_SIGNS = r"(?u)\b\w+\b|[?=+*/$]"


@cache
def _vectorizer() -> Any:
    # Imported when a prompt is first looked at: the library takes a second, by which a server would start later.
    from sklearn.feature_extraction.text import HashingVectorizer

    return HashingVectorizer(
        n_features=HASHED, ngram_range=(1, 2), alternate_sign=False, token_pattern=_WORDS_AND_SIGNS
    )


def load_learning() -> None:
    """Import what features and classifiers need, so that the first prompt does not wait for it."""
    import sklearn.linear_model  # noqa: F401

    _vectorizer()


def featurise(prompts: Sequence[str]) -> Any:
    """CSR matrix `[n, FEATURES]` of float64; rows of hashed columns have length 1. Only the first 20 000 characters
    of a prompt count, so that a long prompt costs no more than a bounded time."""
    texts = [prompt[:MAX_CHARACTERS] for prompt in prompts]
    words = _vectorizer().transform(texts)
    shape = sparse.csr_matrix(np.array([_shape(text) for text in texts]).reshape(len(texts), len(SHAPE)))
    return sparse.hstack([words, shape], format="csr")


def _shape(text: str) -> list[float]:
    length = max(1, len(text))
    return [
        0.2 * float(np.log1p(len(text.split()))),
        sum(map(str.isdigit, text)) / length,
        0.3 * ("?" in text),
        0.1 * min(10, text.count("\n")),
        sum(map(str.isupper, text)) / length,
        0.15 * min(5, len(_OPTIONS.findall(text))),
    ]
