"""Embodied carbon of the hardware: profiles with their source, and the rate at which it is charged.

Amortised over provisioned time, idle hours included: charged over busy time only, the books would never close.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS_PER_YEAR = 365.0 * 24 * 3600
DEFAULT_LIFETIME_YEARS = 4.0
PROFILES_FILE = Path(__file__).parent / "data" / "embodied.json"


@dataclass(frozen=True, slots=True)
class EmbodiedProfile:
    """Kilograms of CO2e of one device, what they include, how they were obtained, and over how long they are spread."""

    name: str
    kg: float
    lifetime_years: float
    boundary: str
    method: str
    source: str

    def __post_init__(self) -> None:
        if self.kg < 0.0 or self.lifetime_years <= 0.0:
            raise ValueError(f"embodied profile {self.name}: kg must be at least 0 and lifetime_years above 0")

    @property
    def g_per_s(self) -> float:
        """Grams a second of provisioned time."""
        return self.kg * 1000.0 / (self.lifetime_years * SECONDS_PER_YEAR)


def declared(kg: float, lifetime_years: float = DEFAULT_LIFETIME_YEARS, source: str = "policy file") -> EmbodiedProfile:
    """A figure an operator states."""
    return EmbodiedProfile("declared", kg, lifetime_years, "as declared", "declared", source)


def profile(name: str, lifetime_years: float = DEFAULT_LIFETIME_YEARS) -> EmbodiedProfile:
    """A shipped profile. Raises `ValueError` naming those there are."""
    known = _profiles()
    if name not in known:
        raise ValueError(f"no embodied profile {name!r}; there are {', '.join(sorted(known))}, or declare kg")
    entry = known[name]
    return EmbodiedProfile(
        name, float(entry["kg"]), lifetime_years, str(entry["boundary"]), str(entry["method"]), str(entry["source"])
    )


@functools.cache
def _profiles() -> dict[str, dict[str, Any]]:
    loaded: dict[str, dict[str, Any]] = json.loads(PROFILES_FILE.read_text(encoding="utf-8"))
    return loaded
