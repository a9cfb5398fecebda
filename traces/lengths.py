"""Distributions of token counts: stated by two numbers, by a table, or drawn from the rows of a file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Protocol

import numpy as np

_Z99 = NormalDist().inv_cdf(0.99)


class LengthDistribution(Protocol):
    def draw(self, rng: np.random.Generator) -> int:
        """A number of tokens, at least 1."""
        ...


@dataclass(frozen=True, slots=True)
class Constant:
    tokens: int

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ValueError(f"constant length: tokens must be at least 1, got {self.tokens}")

    def draw(self, rng: np.random.Generator) -> int:
        return self.tokens


@dataclass(frozen=True, slots=True)
class Uniform:
    """Whole numbers from `low` to `high`, both included."""

    low: int
    high: int

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.high:
            raise ValueError(f"uniform length: 1 <= low <= high is needed, got {self.low} and {self.high}")

    def draw(self, rng: np.random.Generator) -> int:
        return int(rng.integers(self.low, self.high + 1))


@dataclass(frozen=True, slots=True)
class Lognormal:
    """Stated as traces are described: median and 99th percentile, cut to `low..high` (values beyond are redrawn)."""

    median: float
    p99: float
    low: int = 1
    high: int = 1_000_000

    def __post_init__(self) -> None:
        if not 1 <= self.median <= self.p99:
            raise ValueError(f"lognormal length: 1 <= median <= p99 is needed, got {self.median:g} and {self.p99:g}")
        if not 1 <= self.low <= self.median <= self.high:
            raise ValueError(
                f"lognormal length: low <= median <= high is needed, got {self.low}, {self.median:g}, {self.high}"
            )

    def draw(self, rng: np.random.Generator) -> int:
        sigma = math.log(self.p99 / self.median) / _Z99
        while True:
            tokens = round(self.median * math.exp(sigma * rng.standard_normal()))
            if self.low <= tokens <= self.high:
                return tokens


@dataclass(frozen=True, slots=True)
class Table:
    """Lengths with their probabilities (normalised here)."""

    tokens: Sequence[int]
    cumulative: Sequence[float]

    @staticmethod
    def of(probability: Mapping[int, float]) -> Table:
        if not probability or min(probability) < 1:
            raise ValueError("a table of lengths needs at least one length, and none below 1")
        if min(probability.values()) < 0 or not sum(probability.values()) > 0:
            raise ValueError("a table of lengths needs probabilities of at least 0 with a sum above 0")
        ordered = sorted(probability)
        cumulative = np.cumsum([probability[tokens] for tokens in ordered])
        return Table(ordered, (cumulative / cumulative[-1]).tolist())

    def draw(self, rng: np.random.Generator) -> int:
        index = int(np.searchsorted(self.cumulative, rng.random(), side="right"))
        return self.tokens[min(index, len(self.tokens) - 1)]


_KINDS: Mapping[str, tuple[type, tuple[str, ...], tuple[str, ...]]] = {
    "constant": (Constant, ("tokens",), ()),
    "uniform": (Uniform, ("low", "high"), ()),
    "lognormal": (Lognormal, ("median", "p99"), ("low", "high")),
}


def distribution_from(spec: Any, where: str) -> LengthDistribution:
    """From a number or `{kind: constant|uniform|lognormal|table, ...}`; errors name `where` in the spec."""
    if isinstance(spec, int) and not isinstance(spec, bool):
        spec = {"kind": "constant", "tokens": spec}
    if not isinstance(spec, Mapping) or "kind" not in spec:
        raise ValueError(f"{where}: give a number of tokens or {{kind: ...}} with kind {', '.join((*_KINDS, 'table'))}")
    kind, given = spec["kind"], {name: value for name, value in spec.items() if name != "kind"}
    try:
        if kind == "table":
            if set(given) != {"probabilities"}:
                raise ValueError("a table is given as probabilities: {tokens: probability, ...}")
            return Table.of({int(tokens): float(share) for tokens, share in given["probabilities"].items()})
        if kind not in _KINDS:
            raise ValueError(f"unknown kind {kind!r}; known: {', '.join((*_KINDS, 'table'))}")
        made, needed, optional = _KINDS[kind]
        if missing := [name for name in needed if name not in given]:
            raise ValueError(f"{kind} needs {', '.join(missing)}")
        if unknown := sorted(set(given) - {*needed, *optional}):
            raise ValueError(f"{kind} has no {', '.join(unknown)}")
        distribution: LengthDistribution = made(**given)
        return distribution
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None
