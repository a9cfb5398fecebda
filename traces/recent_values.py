"""Values of the recent past, kept in order so that a percentile costs no sorting."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque


class RecentValues:
    """Values seen within `window_s`; times must not decrease. `total`: their sum, exact for whole numbers."""

    def __init__(self, window_s: float) -> None:
        self.window_s = window_s
        self._seen: deque[tuple[float, float]] = deque()
        self._ordered: list[float] = []
        self.total = 0.0

    def __len__(self) -> int:
        return len(self._ordered)

    def add(self, time_s: float, value: float) -> None:
        self.forget(time_s)
        self._seen.append((time_s, value))
        insort(self._ordered, value)
        self.total += value

    def forget(self, now_s: float) -> None:
        """Drop what is older than the window."""
        seen, ordered, earliest_s = self._seen, self._ordered, now_s - self.window_s
        while seen and seen[0][0] < earliest_s:
            value = seen.popleft()[1]
            del ordered[bisect_left(ordered, value)]
            self.total -= value

    def percentile(self, share: float) -> float | None:
        """Nearest rank, as `power.engine_view.percentile`; None for no values."""
        ordered = self._ordered
        if not ordered:
            return None
        return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]
