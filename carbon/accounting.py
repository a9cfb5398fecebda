"""Grams of a request and of a period, with everything needed to judge the figure.

    operational = joules / 3.6e6 * PUE * intensity          embodied = device seconds * rate of the hardware

Location-based and market-based operational grams stand side by side and are never netted. A figure that depends on an
unknown is None with a reason. The boundary is that of a consumer in the sense of SCI for AI: running the service, idle
time and embodied hardware included, training and end of life not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from carbon.intensity import IntensityReading

JOULES_PER_KWH = 3.6e6
BOUNDARY = "consumer: runtime energy x PUE, idle, embodied hardware; without training, network and end of life"


@dataclass(frozen=True, slots=True)
class MarketFactor:
    """A supplier's or contract's grams per kWh (GHG Protocol Scope 2, market-based), and where it is from."""

    g_per_kwh: float
    source: str

    def __post_init__(self) -> None:
        if not (math.isfinite(self.g_per_kwh) and self.g_per_kwh >= 0.0):
            raise ValueError(f"the market-based factor must be at least 0 g/kWh, got {self.g_per_kwh}")


@dataclass(frozen=True, slots=True)
class IntensityProvenance:
    """The intensity a figure was made with, flattened for records: every field None when the tier is `unknown`."""

    tier: str
    g_per_kwh: float | None = None
    zone: str | None = None
    source: str | None = None
    kind: str | None = None
    basis: str | None = None
    boundary: str | None = None
    mix: str | None = None
    start: datetime | None = None
    end: datetime | None = None
    issued_at: datetime | None = None
    fetched_at: datetime | None = None
    age_s: float | None = None
    method: str | None = None
    reason: str | None = None


def provenance(reading: IntensityReading) -> IntensityProvenance:
    value = reading.intensity
    if value is None:
        return IntensityProvenance(str(reading.tier), reason=reading.reason)
    return IntensityProvenance(
        tier=str(reading.tier),
        g_per_kwh=value.g_per_kwh,
        zone=value.zone,
        source=value.source,
        kind=str(value.kind),
        basis=str(value.methodology.basis),
        boundary=str(value.methodology.boundary),
        mix=str(value.methodology.mix),
        start=value.start,
        end=value.end,
        issued_at=value.issued_at,
        fetched_at=value.fetched_at,
        age_s=reading.age_s,
        method=value.method,
        reason=reading.reason,
    )


@dataclass(frozen=True, slots=True)
class RequestEnergy:
    """Joules attributed to a request, before PUE. `prefill_j`, `decode_j`: its active parts where they are known
    apart; `idle_j`: idle energy charged to it, inside `energy_j`. `energy_j` None: not known, with `method` why."""

    energy_j: float | None
    method: str
    prefill_j: float | None = None
    decode_j: float | None = None
    idle_j: float | None = None
    device_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("energy_j", "prefill_j", "decode_j", "idle_j", "device_s"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0.0):
                raise ValueError(f"{name} must be a finite number of at least 0, got {value}")


@dataclass(frozen=True, slots=True)
class RequestFootprint:
    """Grams of CO2e of one request. `total_g` is location-based operational plus embodied, None if either is."""

    energy: RequestEnergy
    pue: float
    intensity: IntensityProvenance
    operational_g: float | None
    market_operational_g: float | None
    market_source: str | None
    embodied_g: float | None
    embodied_source: str | None
    total_g: float | None
    reason: str | None
    boundary: str = BOUNDARY


def operational_grams(energy_j: float, pue: float, g_per_kwh: float) -> float:
    return energy_j / JOULES_PER_KWH * pue * g_per_kwh


def check_pue(pue: float) -> float:
    """Power usage effectiveness: facility energy over IT energy, so at least 1."""
    if not (math.isfinite(pue) and 1.0 <= pue <= 5.0):
        raise ValueError(f"PUE must be between 1 and 5, got {pue}")
    return pue


def footprint(
    energy: RequestEnergy,
    reading: IntensityReading,
    *,
    pue: float = 1.0,
    embodied_g_per_s: float | None = None,
    embodied_source: str | None = None,
    market: MarketFactor | None = None,
) -> RequestFootprint:
    """Grams of one request. `embodied_g_per_s` is per device second, charged on `energy.device_s`."""
    check_pue(pue)
    missing: list[str] = []
    operational = market_based = embodied = None
    if energy.energy_j is None:
        missing.append(f"energy unknown ({energy.method})")
    else:
        if market is not None:
            market_based = operational_grams(energy.energy_j, pue, market.g_per_kwh)
        if reading.g_per_kwh is None:
            missing.append(f"carbon intensity unknown ({reading.reason})")
        else:
            operational = operational_grams(energy.energy_j, pue, reading.g_per_kwh)
    if embodied_g_per_s is None:
        missing.append("no embodied profile")
    elif energy.device_s is None:
        missing.append("device time unknown")
    else:
        embodied = energy.device_s * embodied_g_per_s
    return RequestFootprint(
        energy=energy,
        pue=pue,
        intensity=provenance(reading),
        operational_g=operational,
        market_operational_g=market_based,
        market_source=market.source if market else None,
        embodied_g=embodied,
        embodied_source=embodied_source if embodied_g_per_s is not None else None,
        total_g=operational + embodied if operational is not None and embodied is not None else None,
        reason="; ".join(missing) or None,
    )


@dataclass(frozen=True, slots=True)
class Interval:
    """What a device did in a stretch with one intensity: all joules it drew, and who they were charged to.

    `requests_j` includes no idle. `evaluator_j` is the quality evaluator's own. What is left of `total_j` is not
    attributable and stays visible. `busy_s` of `provisioned_s` were charged to requests.
    """

    start: datetime
    provisioned_s: float
    busy_s: float
    total_j: float
    requests_j: float
    idle_j: float
    evaluator_j: float = 0.0
    g_per_kwh: float | None = None

    def __post_init__(self) -> None:
        parts = self.requests_j + self.idle_j + self.evaluator_j
        if min(self.total_j, self.requests_j, self.idle_j, self.evaluator_j, self.busy_s) < 0.0:
            raise ValueError("joules and seconds of an interval must be at least 0")
        if parts > self.total_j * (1.0 + 1e-9) + 1e-9:
            raise ValueError(f"{parts:g} J were charged but the device drew {self.total_j:g} J; attribution overlaps")
        if self.busy_s > self.provisioned_s * (1.0 + 1e-9):
            raise ValueError(f"{self.busy_s:g} s busy of {self.provisioned_s:g} s provisioned")

    @property
    def unattributed_j(self) -> float:
        return max(0.0, self.total_j - self.requests_j - self.idle_j - self.evaluator_j)


@dataclass(frozen=True, slots=True)
class Shares:
    """Grams of a period by who caused them."""

    requests_g: float
    idle_g: float
    evaluator_g: float
    unattributed_g: float

    @property
    def total_g(self) -> float:
        return math.fsum((self.requests_g, self.idle_g, self.evaluator_g, self.unattributed_g))


@dataclass(frozen=True, slots=True)
class Books:
    """A period's account. `operational` covers the joules of known intensity; `unknown_j` are the others."""

    energy_j: float
    operational: Shares
    embodied_requests_g: float
    embodied_idle_g: float
    unknown_j: float
    market_g: float | None

    @property
    def total_g(self) -> float:
        return math.fsum((self.operational.total_g, self.embodied_requests_g, self.embodied_idle_g))


def close_books(
    intervals: Iterable[Interval], *, pue: float, embodied_g_per_s: float, market: MarketFactor | None = None
) -> Books:
    """Sum a period so that requests + idle + evaluator + unattributed + embodied is the whole, whatever the load."""
    check_pue(pue)
    grams = {"requests": [0.0], "idle": [0.0], "evaluator": [0.0], "unattributed": [0.0]}
    energy, unknown, busy, waiting = [0.0], [0.0], [0.0], [0.0]
    for interval in intervals:
        energy.append(interval.total_j)
        busy.append(interval.busy_s)
        waiting.append(interval.provisioned_s - interval.busy_s)
        if interval.g_per_kwh is None:
            unknown.append(interval.total_j)
            continue
        parts = {
            "requests": interval.requests_j,
            "idle": interval.idle_j,
            "evaluator": interval.evaluator_j,
            "unattributed": interval.unattributed_j,
        }
        for name, joules in parts.items():
            grams[name].append(operational_grams(joules, pue, interval.g_per_kwh))
    shares = Shares(*(math.fsum(grams[name]) for name in ("requests", "idle", "evaluator", "unattributed")))
    total_j = math.fsum(energy)
    return Books(
        energy_j=total_j,
        operational=shares,
        embodied_requests_g=math.fsum(busy) * embodied_g_per_s,
        embodied_idle_g=math.fsum(waiting) * embodied_g_per_s,
        unknown_j=math.fsum(unknown),
        market_g=operational_grams(total_j, pue, market.g_per_kwh) if market else None,
    )


@dataclass(frozen=True, slots=True)
class SciScore:
    """Software Carbon Intensity, (E * I + M) per R (ISO/IEC 21031), for two functional units.

    Tokens: grams per million, prompt and output apart (SCI for AI, consumer boundary). Grams that belong to neither,
    idle and unattributed ones, are spread over both in proportion. None where the unit did not occur or the phases
    are not known apart.
    """

    g_per_request: float | None
    g_per_million_prompt_tokens: float | None
    g_per_million_output_tokens: float | None
    g_per_million_tokens: float | None


@dataclass(frozen=True, slots=True)
class PhaseUse:
    """Tokens and joules of finished requests by phase; joules None where the phases were not told apart."""

    prompt_tokens: int
    output_tokens: int
    prefill_j: float | None
    decode_j: float | None


def sci(total_g: float, requests: int, phases: Sequence[PhaseUse]) -> SciScore:
    """`total_g`: everything of the period, idle and embodied included."""
    prompt = sum(use.prompt_tokens for use in phases)
    output = sum(use.output_tokens for use in phases)
    prefill = [use.prefill_j for use in phases if use.prefill_j is not None]
    decode = [use.decode_j for use in phases if use.decode_j is not None]
    apart = len(prefill) == len(phases) == len(decode) and math.fsum(prefill + decode) > 0.0
    prompt_share = math.fsum(prefill) / math.fsum(prefill + decode) if apart else None

    def per_million(grams: float | None, tokens: int) -> float | None:
        return None if grams is None or tokens == 0 else grams / tokens * 1e6

    return SciScore(
        g_per_request=total_g / requests if requests else None,
        g_per_million_prompt_tokens=per_million(None if prompt_share is None else total_g * prompt_share, prompt),
        g_per_million_output_tokens=per_million(
            None if prompt_share is None else total_g * (1.0 - prompt_share), output
        ),
        g_per_million_tokens=per_million(total_g, prompt + output),
    )
