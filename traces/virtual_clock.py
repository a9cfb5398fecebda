"""Time that passes when the simulation says so."""

from __future__ import annotations


class VirtualClock:
    """Seconds since the start of a simulation. Callable, so that it stands wherever `time.monotonic` would."""

    __slots__ = ("now_s",)

    def __init__(self, now_s: float = 0.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s

    def move_to(self, moment_s: float) -> None:
        """Never backwards: earlier moments are ignored."""
        if moment_s > self.now_s:
            self.now_s = moment_s
