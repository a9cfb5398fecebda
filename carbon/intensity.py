"""Carbon intensity as a value that says where it came from, and the rules for what may be compared.

Average and marginal intensity answer different questions, direct and lifecycle intensity draw different boundaries:
no function here adds, averages or compares across them. A value holds for a half-open UTC interval.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

MAX_G_PER_KWH = 5000.0
GRAMS_PER_POUND = 453.59237


class Basis(enum.StrEnum):
    """AVERAGE: the whole mix divided by its output. MARGINAL: the plants that would answer one more kWh (MOER)."""

    AVERAGE = "average"
    MARGINAL = "marginal"


class Boundary(enum.StrEnum):
    """DIRECT: what leaves the stack. LIFECYCLE: plus building the plant and bringing the fuel."""

    DIRECT = "direct"
    LIFECYCLE = "lifecycle"


class Mix(enum.StrEnum):
    """CONSUMPTION: imports traced to their origin. PRODUCTION: the zone's own plants (and at most mean imports)."""

    CONSUMPTION = "consumption"
    PRODUCTION = "production"


class Kind(enum.StrEnum):
    """How a value was obtained. REPLAYED: recorded at another time; ASSUMED: a number an operator declared."""

    MEASURED = "measured"
    ESTIMATED = "estimated"
    FORECAST = "forecast"
    REPLAYED = "replayed"
    ASSUMED = "assumed"


class Tier(enum.StrEnum):
    """What stood behind a value when it was used; travels into every record.

    LIVE: its interval holds now. STALE: the last value known, its interval is over. ZONE_MEAN: the mean of the
    zone's recorded series. UNKNOWN: no value.
    """

    LIVE = "live"
    STALE = "stale"
    ZONE_MEAN = "zone_mean"
    UNKNOWN = "unknown"


class IncomparableError(ValueError):
    """Two values of different basis or boundary met where only like may be compared."""


@dataclass(frozen=True, slots=True)
class Methodology:
    """What a number counts. Values of different `basis` or `boundary` are never mixed; `mix` is carried and shown."""

    basis: Basis
    boundary: Boundary
    mix: Mix = Mix.CONSUMPTION

    def comparable(self, other: Methodology) -> bool:
        return self.basis is other.basis and self.boundary is other.boundary

    def __str__(self) -> str:
        return f"{self.basis} {self.boundary} ({self.mix})"


@dataclass(frozen=True, slots=True)
class CarbonIntensity:
    """Grams of CO2-equivalent per kWh in `zone` during `[start, end)` UTC.

    `issued_at`: when the provider made the value (None: it does not say). `fetched_at`: when we read it.
    `method`: the provider's word for an estimate, or a remark of ours. `low`, `high`: a stated band, if any.
    Raises `ValueError` for a value that is not finite, negative or above 5000 g/kWh, or for a naive or empty interval.
    """

    zone: str
    start: datetime
    end: datetime
    g_per_kwh: float
    methodology: Methodology
    kind: Kind
    source: str
    fetched_at: datetime
    issued_at: datetime | None = None
    method: str | None = None
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        for name in ("start", "end", "fetched_at", "issued_at"):
            moment = getattr(self, name)
            if moment is not None and moment.utcoffset() != timedelta(0):
                raise ValueError(f"{name} must be an aware UTC time, got {moment!r}; convert it with as_utc()")
        if self.end <= self.start:
            raise ValueError(f"interval [{self.start}, {self.end}) of zone {self.zone} is empty")
        check_g_per_kwh(self.g_per_kwh)

    def holds_at(self, moment: datetime) -> bool:
        return self.start <= moment < self.end

    @property
    def duration_s(self) -> float:
        return (self.end - self.start).total_seconds()

    def compare(self, other: CarbonIntensity) -> float:
        """`self - other` in g/kWh; raises `IncomparableError` across basis or boundary."""
        require_comparable(self.methodology, other.methodology)
        return self.g_per_kwh - other.g_per_kwh


@dataclass(frozen=True, slots=True)
class IntensityReading:
    """The intensity to use now, and how good it is. `intensity` is None exactly when `tier` is UNKNOWN.

    `age_s`: seconds since the value's interval ended, 0 while it holds; None when there is no interval to speak of.
    `reason`: why the tier is not LIVE, in words for an operator.
    """

    intensity: CarbonIntensity | None
    tier: Tier
    age_s: float | None = None
    reason: str | None = None

    def __post_init__(self) -> None:
        if (self.intensity is None) != (self.tier is Tier.UNKNOWN):
            raise ValueError("a reading without a value must have tier 'unknown', and only such a reading")

    @property
    def g_per_kwh(self) -> float | None:
        return None if self.intensity is None else self.intensity.g_per_kwh


def check_g_per_kwh(value: object) -> float:
    """Return `value`; raise `ValueError` outside 0..5000 g/kWh (coal alone stays below 1500)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"carbon intensity must be a finite number, got {value!r}")
    if not 0.0 <= value <= MAX_G_PER_KWH:
        raise ValueError(f"carbon intensity {value:g} g/kWh is outside 0..{MAX_G_PER_KWH:g}; check its unit")
    return float(value)


def require_comparable(first: Methodology, second: Methodology) -> None:
    if not first.comparable(second):
        raise IncomparableError(
            f"{first} and {second} cannot be mixed or compared; choose feeds of one basis and one boundary"
        )


_GRAMS_PER_KWH_OF_UNIT = {
    "g/kwh": 1.0,
    "gco2/kwh": 1.0,
    "gco2e/kwh": 1.0,
    "gco2eq/kwh": 1.0,
    "kg/mwh": 1.0,
    "kgco2/mwh": 1.0,
    "kgco2e/mwh": 1.0,
    "kg/kwh": 1000.0,
    "kgco2e/kwh": 1000.0,
    "lbs/mwh": GRAMS_PER_POUND / 1000.0,
    "lbs_co2_per_mwh": GRAMS_PER_POUND / 1000.0,
    "lbco2/mwh": GRAMS_PER_POUND / 1000.0,
}


def to_g_per_kwh(value: float, unit: str) -> float:
    """Convert `value` in `unit` to g/kWh. Raises `ValueError` for a unit not known to be mass per energy.

    WattTime's `percentile` index (0..100) is such a unit: it is a rank, and reading it as a mass is a silent error.
    """
    key = unit.strip().lower().replace("₂", "2").replace(" ", "")
    factor = _GRAMS_PER_KWH_OF_UNIT.get(key)
    if factor is None:
        known = ", ".join(sorted(_GRAMS_PER_KWH_OF_UNIT))
        raise ValueError(f"unit {unit!r} is not a known carbon intensity; known units: {known}")
    return check_g_per_kwh(value * factor)


def as_utc(moment: datetime) -> datetime:
    """An aware time in UTC; raises `ValueError` for a naive one, whose zone would be a guess."""
    if moment.tzinfo is None:
        raise ValueError(f"time {moment.isoformat()} has no zone; give it an offset or state the zone of the file")
    return moment.astimezone(UTC)
