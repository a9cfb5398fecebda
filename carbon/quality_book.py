"""What the evaluator has found, by class and band: duels of each level against L0, forgetting slowly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carbon.intensity import as_utc
from carbon.quality import QualityEstimate, from_duels, shrunk_duels

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Duel:
    """One prompt judged at `level` against L0: `outcome` 1 won, 0 tied, -1 lost."""

    key: str
    level: int
    outcome: int

    def __post_init__(self) -> None:
        if self.outcome not in (-1, 0, 1) or self.level < 1:
            raise ValueError(f"a duel has a level of at least 1 and an outcome of -1, 0 or 1, got {self}")


class QualityBook:
    """Counts `[L - 1, 3]` of wins, ties and losses for every key (class, or class and band). `judged_at`: the last
    run of the evaluator."""

    def __init__(self, levels: int) -> None:
        if levels < 1:
            raise ValueError(f"at least one level is needed, got {levels}")
        self.levels = levels
        self.judged_at: datetime | None = None
        self._counts: dict[str, Array] = {}

    def record(self, duels: Iterable[Duel]) -> None:
        for duel in duels:
            if duel.level >= self.levels:
                raise ValueError(f"level {duel.level} is outside 1..{self.levels - 1}")
            self._counts.setdefault(duel.key, self._empty())[duel.level - 1, 1 - duel.outcome] += 1.0

    def _empty(self) -> Array:
        return np.zeros((self.levels - 1, 3))

    def fade(self, factor: float) -> None:
        """Weigh what is known by `factor` (0..1): called once a run, so that old judgements give way to new ones."""
        if not 0.0 < factor <= 1.0:
            raise ValueError(f"the factor must be above 0 and at most 1, got {factor:g}")
        for counts in self._counts.values():
            counts *= factor

    def estimate(self, key: str) -> QualityEstimate:
        """An unknown key gives the estimate without evidence, which no floor with confidence trusts."""
        counts = self._counts.get(key, self._empty())
        return from_duels(counts[:, 0].tolist(), counts[:, 1].tolist(), counts[:, 2].tolist())

    def estimates(self, keys: Sequence[str]) -> list[QualityEstimate]:
        """Of the bands of one class together, drawn towards the class; of a single key as it is."""
        if len(keys) == 1:
            return [self.estimate(keys[0])]
        return shrunk_duels(np.array([self._counts.get(key, self._empty()) for key in keys]))

    def set_bands(self, name: str, counts: Sequence[Array]) -> None:
        """Put the duels of a class's bands, `[L - 1, 3]` each, in the place of those counted for earlier bands."""
        for key in [key for key in self._counts if key.startswith(f"{name}/")]:
            del self._counts[key]
        for number, table in enumerate(counts):
            if table.shape != (self.levels - 1, 3):
                raise ValueError(f"counts of {name!r} must be [{self.levels - 1}, 3], got {table.shape}")
            self._counts[f"{name}/{number}"] = table.copy()

    def duels(self, key: str) -> float:
        """Judged prompts behind the least judged level of a key."""
        counts = self._counts.get(key)
        return 0.0 if counts is None or not counts.size else float(counts.sum(axis=1).min())

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(self._counts)

    def state(self) -> dict[str, Any]:
        return {
            "levels": self.levels,
            "judged_at": self.judged_at.isoformat() if self.judged_at else None,
            "duels": {key: counts.tolist() for key, counts in self._counts.items()},
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> QualityBook:
        """Raises `ValueError` for a state that is not one."""
        try:
            book = cls(int(state["levels"]))
            judged_at = state.get("judged_at")
            book.judged_at = as_utc(datetime.fromisoformat(judged_at)) if judged_at else None
            for key, counts in state["duels"].items():
                table = np.array(counts, dtype=np.float64).reshape(book.levels - 1, 3)
                if not np.all(np.isfinite(table)) or table.min(initial=0.0) < 0.0:
                    raise ValueError(f"counts of {key!r} must be at least 0")
                book._counts[str(key)] = table
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"not a quality book: {error}; run `gridserve carbon evaluate` to make one") from None
        return book
