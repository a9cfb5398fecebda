"""What an answer at a level costs, learned from finished requests under the batching they really ran in.

Two parts that meet in a request's expected joules: how long answers of a class get at a level, and what a prompt token
and an output token cost the device at the load of the day. Lengths are kept for each class and level; where a level was
hardly tried, the class's own L0 length times the level's usual ratio stands in, and the estimate says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carbon.optimizer.classed import LevelCosts

Array = NDArray[np.float64]

PRIOR_WEIGHT = 10.0
HALF_LIFE_OBSERVATIONS = 2000.0
# Joules at L1 and L2 over L0, median of SPROUT's six tasks; each further level is taken a fifth shorter.
USUAL_RATIOS = (1.0, 0.28, 0.19)


@dataclass(slots=True)
class _Mean:
    """An exponentially forgetting mean; `weight` never exceeds the memory."""

    weight: float = 0.0
    mean: float = 0.0

    def add(self, value: float, decay: float) -> None:
        self.weight = self.weight * decay + 1.0
        self.mean += (value - self.mean) / self.weight

    def drawn_to(self, prior: float) -> float:
        return (self.weight * self.mean + PRIOR_WEIGHT * prior) / (self.weight + PRIOR_WEIGHT)


@dataclass(slots=True)
class _Linear:
    """y = b · (1, prompt tokens, output tokens) by ridge-regularised, forgetting least squares; b is at least 0."""

    gram: Array = field(default_factory=lambda: np.zeros((3, 3)))
    cross: Array = field(default_factory=lambda: np.zeros(3))
    weight: float = 0.0

    def add(self, prompt: float, output: float, value: float, decay: float) -> None:
        row = np.array([1.0, prompt, output])
        self.gram = self.gram * decay + np.outer(row, row)
        self.cross = self.cross * decay + row * value
        self.weight = self.weight * decay + 1.0

    def coefficients(self) -> Array:
        """Non-negative by dropping the most negative coefficient until none is left."""
        active = [0, 1, 2]
        found = np.zeros(3)
        while active:
            part = np.ix_(active, active)
            # The ridge is a millionth of the diagonal: it decides only between columns the data cannot tell apart.
            ridge = 1e-6 * np.diag(np.diag(self.gram)[active]) + 1e-12 * np.eye(len(active))
            solved = np.linalg.solve(self.gram[part] + ridge, self.cross[active])
            if solved.min() >= 0.0:
                found[active] = solved
                break
            active.pop(int(solved.argmin()))
        return found


@dataclass(frozen=True, slots=True)
class CostEstimate:
    """`costs` by level; `observations` of each level in this class; `method`: measured or estimated, by level."""

    costs: LevelCosts
    observations: tuple[float, ...]
    method: tuple[str, ...]


class EnergyModel:
    """Learns from `observe`, answers with `costs`. `levels`: how many; level 0 is L0."""

    def __init__(self, levels: int, half_life: float = HALF_LIFE_OBSERVATIONS) -> None:
        if levels < 1:
            raise ValueError(f"at least one level is needed, got {levels}")
        self.levels = levels
        self._decay = 0.5 ** (1.0 / half_life)
        self._length: dict[tuple[str, int], _Mean] = {}
        self._prompt: dict[str, _Mean] = {}
        self._ratio = [_Mean() for _ in range(levels)]
        self._joules = _Linear()
        self._seconds = _Linear()

    @property
    def observations(self) -> float:
        return self._joules.weight

    def observe(
        self,
        key: str,
        level: int,
        *,
        prompt_tokens: int,
        output_tokens: int,
        energy_j: float | None = None,
        device_s: float | None = None,
    ) -> None:
        """One finished request of class (or class and band) `key`. `device_s`: its share of the device's time.

        Without joules and seconds only the lengths are learned. Raises `ValueError` for figures below 0 or a level
        there is not.
        """
        if not 0 <= level < self.levels:
            raise ValueError(f"level {level} is outside 0..{self.levels - 1}")
        if min(prompt_tokens, output_tokens, energy_j or 0.0, device_s or 0.0) < 0:
            raise ValueError("tokens, joules and seconds must be at least 0")
        self._length.setdefault((key, level), _Mean()).add(output_tokens, self._decay)
        self._prompt.setdefault(key, _Mean()).add(prompt_tokens, self._decay)
        plain = self._length.get((key, 0))
        if level and plain is not None and plain.weight >= PRIOR_WEIGHT and plain.mean > 0:
            self._ratio[level].add(output_tokens / plain.mean, self._decay)
        if energy_j is not None and device_s is not None:
            self._joules.add(prompt_tokens, output_tokens, energy_j, self._decay)
            self._seconds.add(prompt_tokens, output_tokens, device_s, self._decay)

    def output_tokens(self, key: str, level: int) -> float | None:
        """Expected length; None while nothing of the class was seen at any level."""
        base = self._base_length(key)
        if base is None:
            return None
        seen = self._length.get((key, level), _Mean())
        if level == 0 and seen.weight > 0:
            return seen.mean
        return seen.drawn_to(base * self._level_ratio(level))

    def lengths(self, key: str) -> tuple[float, ...] | None:
        """Expected output tokens by level; None while nothing of the class was seen."""
        found = [self.output_tokens(key, level) for level in range(self.levels)]
        return None if None in found else tuple(float(length or 0.0) for length in found)

    def _level_ratio(self, level: int) -> float:
        usual = USUAL_RATIOS[level] if level < len(USUAL_RATIOS) else USUAL_RATIOS[-1] * 0.8 ** (level - 2)
        return 1.0 if level == 0 else self._ratio[level].drawn_to(usual)

    def _base_length(self, key: str) -> float | None:
        plain = self._length.get((key, 0))
        if plain is not None and plain.weight > 0:
            return plain.mean
        guesses = [
            (seen.weight, seen.mean / self._level_ratio(level))
            for (owner, level), seen in self._length.items()
            if owner == key and seen.weight > 0
        ]
        total = sum(weight for weight, _ in guesses)
        return sum(weight * guess for weight, guess in guesses) / total if total > 0 else None

    def costs(self, key: str) -> CostEstimate | None:
        """Expected joules and device seconds by level; None while the class, or any request at all, is unseen."""
        if self.observations < 1.0 or self._base_length(key) is None:
            return None
        prompt = self._prompt[key].mean
        per_joule, per_second = self._joules.coefficients(), self._seconds.coefficients()
        energy, time, seen, method = [], [], [], []
        for level in range(self.levels):
            row = np.array([1.0, prompt, self.output_tokens(key, level) or 0.0])
            energy.append(float(per_joule @ row))
            time.append(float(per_second @ row))
            count = self._length.get((key, level), _Mean()).weight
            seen.append(count)
            method.append("measured" if count >= PRIOR_WEIGHT else "estimated")
        return CostEstimate(LevelCosts(tuple(energy), tuple(time)), tuple(seen), tuple(method))

    def state(self) -> dict[str, Any]:
        """Everything learned as plain JSON values."""
        return {
            "levels": self.levels,
            "decay": self._decay,
            "length": [[key, level, seen.weight, seen.mean] for (key, level), seen in self._length.items()],
            "prompt": [[key, seen.weight, seen.mean] for key, seen in self._prompt.items()],
            "ratio": [[seen.weight, seen.mean] for seen in self._ratio],
            "joules": [self._joules.gram.tolist(), self._joules.cross.tolist(), self._joules.weight],
            "seconds": [self._seconds.gram.tolist(), self._seconds.cross.tolist(), self._seconds.weight],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> EnergyModel:
        """Raises `ValueError` for a state that is not one."""
        try:
            model = cls(int(state["levels"]))
            model._decay = float(state["decay"])
            model._length = {(str(k), int(n)): _Mean(float(w), float(m)) for k, n, w, m in state["length"]}
            model._prompt = {str(k): _Mean(float(w), float(m)) for k, w, m in state["prompt"]}
            model._ratio = [_Mean(float(w), float(m)) for w, m in state["ratio"]]
            for name in ("joules", "seconds"):
                gram, cross, weight = state[name]
                linear = _Linear(np.array(gram, dtype=float), np.array(cross, dtype=float), float(weight))
                if linear.gram.shape != (3, 3) or linear.cross.shape != (3,):
                    raise ValueError(f"{name} has the wrong shape")
                setattr(model, f"_{name}", linear)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not an energy model: {error}; start without one") from None
        return model
