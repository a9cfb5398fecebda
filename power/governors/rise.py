"""The worst rise of row power over one actuation delay, from our own telemetry.

POLCA's upper threshold leaves room for what the row may gain before a cap takes hold: `T2 = 1 - worst rise`. Its
89 % stands for an out-of-band delay of 40 s; in-band control reacts in well under a second and may come closer.
"""

from __future__ import annotations

from collections import deque

DAY_S = 86_400.0
CONSERVATIVE_T2 = 0.89


class RiseEstimator:
    """Feed row power; ask for T2. Maxima are kept for `days` days, each day on its own.

    Only the traffic's rises count. When a cap of the row is released its power rises too, so after `released` nothing
    is compared with what was before, until the release has had `delay_s` to show in it.
    """

    def __init__(self, budget_w: float, delay_s: float, *, days: int = 7, min_history_s: float = 3600.0) -> None:
        if budget_w <= 0 or delay_s <= 0:
            raise ValueError("row budget and actuation delay must be positive")
        self.budget_w = budget_w
        self.delay_s = delay_s
        self._min_history_s = min_history_s
        self._window: deque[tuple[float, float]] = deque()
        self._daily: deque[tuple[int, float]] = deque(maxlen=days)
        self._first_s: float | None = None
        self._last_s = 0.0
        self._settled_s = float("-inf")

    def released(self, time_s: float, meter_s: float = 0.0) -> None:
        """A cap of the row was lifted, wholly or in part; `meter_s`: over how long the observed power is a mean."""
        self._settled_s = time_s + self.delay_s + meter_s
        self._window.clear()

    def observe(self, time_s: float, power_w: float) -> None:
        """Row power now; times must not decrease."""
        if self._first_s is None:
            self._first_s = time_s
        self._last_s = time_s
        if time_s < self._settled_s:
            return
        while self._window and self._window[0][0] < time_s - self.delay_s:
            self._window.popleft()
        lowest = min((watts for _, watts in self._window), default=power_w)
        self._window.append((time_s, power_w))
        rise = max(0.0, power_w - lowest) / self.budget_w
        day = int(time_s // DAY_S)
        if self._daily and self._daily[-1][0] == day:
            self._daily[-1] = (day, max(self._daily[-1][1], rise))
        else:
            self._daily.append((day, rise))

    @property
    def worst_rise(self) -> float | None:
        """Share of the budget; `None` before `min_history_s` of telemetry."""
        if self._first_s is None or self._last_s - self._first_s < self._min_history_s:
            return None
        return max((rise for _, rise in self._daily), default=None)

    def t2(self, t1: float, *, headroom: float = 0.01) -> float:
        """The upper threshold as a share of the budget, at least 2 points above `t1` and at most 98 %."""
        rise = self.worst_rise
        wanted = CONSERVATIVE_T2 if rise is None else 1.0 - rise - headroom
        return min(0.98, max(t1 + 0.02, wanted))
