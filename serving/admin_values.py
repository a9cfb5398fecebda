"""From the units of clocks and rows to those of the admin API's bodies."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any


def unix_s(moment: datetime | None) -> float | None:
    return moment.timestamp() if moment is not None else None


def seconds(micros: int | None) -> float | None:
    return micros / 1e6 if micros is not None else None


def parsed(text: str | None) -> Any:
    """A row's JSON."""
    return None if text is None else json.loads(text)
