"""What a budget's window has seen so far: requests by class and level, and grams. Kept over restarts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carbon.intensity import as_utc

Array = NDArray[np.float64]


@dataclass(slots=True)
class BudgetBooks:
    """`served` `[L]` by key (class, or class and band); `grams`: of all requests whose grams are known, `unknown`
    counts the others."""

    began: datetime
    served: dict[str, Array] = field(default_factory=dict)
    grams: float = 0.0
    unknown: int = 0

    def book(self, key: str, level: int, levels: int, grams: float | None) -> None:
        self.served.setdefault(key, np.zeros(levels))[level] += 1.0
        if grams is None:
            self.unknown += 1
        else:
            self.grams += grams

    def roll(self, now: datetime, window: timedelta) -> None:
        """Begin a new window where the last one is over."""
        if now - self.began >= window:
            self.began, self.served, self.grams, self.unknown = now, {}, 0.0, 0

    def state(self) -> dict[str, Any]:
        return {
            "began": self.began.isoformat(),
            "served": {key: counts.tolist() for key, counts in self.served.items()},
            "grams": self.grams,
            "unknown": self.unknown,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], levels: int) -> BudgetBooks:
        """Raises `ValueError` for a state that is not one, or one of another number of levels."""
        try:
            books = cls(as_utc(datetime.fromisoformat(state["began"])))
            books.grams, books.unknown = float(state["grams"]), int(state["unknown"])
            for key, counts in state["served"].items():
                books.served[str(key)] = np.array(counts, dtype=np.float64).reshape(levels)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"not the books of a budget: {error}; delete them to start anew") from None
        return books
