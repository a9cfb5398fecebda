"""The protocol of every intensity source, and how a source says that it has nothing."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from carbon.intensity import CarbonIntensity, Methodology
from carbon.series import IntensitySeries


class FeedError(Exception):
    """A source could not answer. `retry_after_s`: what it asked us to wait; `permanent`: asking again will not help."""

    def __init__(self, message: str, *, retry_after_s: float | None = None, permanent: bool = False) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.permanent = permanent


class NotOfferedError(FeedError):
    """The source has no such thing (a forecast from a history file, a history from a constant)."""

    def __init__(self, message: str) -> None:
        super().__init__(message, permanent=True)


class Feed(Protocol):
    """One source. Every method may raise `FeedError`, and nothing else, for whatever the source did wrong."""

    @property
    def name(self) -> str: ...

    @property
    def methodology(self) -> Methodology:
        """What every value of this feed counts."""
        ...

    async def current(self, zone: str) -> CarbonIntensity:
        """The newest value whose interval has begun; it may be over when the source is late."""
        ...

    async def forecast(self, zone: str, until: datetime) -> IntensitySeries:
        """Values from now to `until`, as far as the source goes; shorter than asked is not an error, empty is."""
        ...

    async def history(self, zone: str, start: datetime, end: datetime) -> IntensitySeries:
        """Values that touch `[start, end)`; gaps stay gaps."""
        ...

    async def close(self) -> None: ...
