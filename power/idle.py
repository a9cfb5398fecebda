"""The idle power of a board, learnt while nothing runs on it."""

from __future__ import annotations

from collections import deque
from statistics import median

SETTLING_S = 2.0
WINDOW = 200


class IdleBaseline:
    """Idle watts: the operator's figure if given, else the median of what was seen while no request was resident
    for `SETTLING_S`, else the fallback of a profile, else `None`.

    Dividing power by utilisation would say that a busy board has no idle power; a baseline seen at rest does not.
    """

    def __init__(self, *, configured_w: float | None = None, fallback_w: float | None = None) -> None:
        for watts in (configured_w, fallback_w):
            if watts is not None and watts < 0:
                raise ValueError(f"idle power must not be negative, got {watts:g} W")
        self._configured_w = configured_w
        self._fallback_w = fallback_w
        self._seen: deque[float] = deque(maxlen=WINDOW)
        self._busy_until_s = float("-inf")
        self._median: float | None = None

    @property
    def power_w(self) -> float | None:
        if self._configured_w is not None:
            return self._configured_w
        return self._median if self._median is not None else self._fallback_w

    @property
    def source(self) -> str | None:
        """`configured`, `observed`, `profile` or `None`."""
        if self._configured_w is not None:
            return "configured"
        if self._median is not None:
            return "observed"
        return "profile" if self._fallback_w is not None else None

    def busy(self, time_s: float) -> None:
        """Requests are resident now."""
        self._busy_until_s = time_s + SETTLING_S

    def observe(self, time_s: float, power_w: float) -> None:
        """Power with no request resident."""
        if time_s >= self._busy_until_s:
            self._seen.append(power_w)
            if len(self._seen) >= 10:
                self._median = median(self._seen)
