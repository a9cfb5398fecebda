"""What a policy asks for at a moment, in a zone, for a tenant: a pure function, so it can be tested and replayed.

For each setting the first rule that holds and sets it wins; what no rule sets is the tenant's own, else the policy's.
A tenant's own directive and quality floor are a promise: only rules that name the tenant change them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from serving.policy.carbon_section import Carbon
from serving.policy.directives_section import Tenant
from serving.policy.model import Mode, Policy
from serving.policy.rules import UNKNOWN_BAND, Rule

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class BandState:
    """The intensity band in force and since when."""

    name: str
    since: datetime


@dataclass(frozen=True, slots=True)
class Situation:
    """`g_per_kwh`: intensity now, `None` when there is none to trust. `band`: the one in force before, for hysteresis.
    `zone`: `None` for the policy's own."""

    moment: datetime
    zone: str | None = None
    tenant: str | None = None
    g_per_kwh: float | None = None
    band: BandState | None = None

    def __post_init__(self) -> None:
        if self.moment.tzinfo is None:
            raise ValueError(f"time {self.moment.isoformat()} has no zone; give it an offset such as +00:00")


@dataclass(frozen=True, slots=True)
class Effective:
    """Settings in force. `rules`: for each setting a rule decided, that rule's name."""

    mode: Mode
    governor: str
    clock_min_mhz: int | None
    clock_max_mhz: int | None
    power_limit_w: float | None
    row_budget_w: float | None
    admit_low_priority: bool
    zone: str | None
    band: str
    directive: str
    quality_floor: float | None
    tolerance: float | None
    tenant: str | None = None
    rules: dict[str, str] = field(default_factory=dict)


def effective(policy: Policy, situation: Situation) -> Effective:
    """Resolve every setting. `tolerance` and `quality_floor` are `None` in a policy without directives."""
    spec = policy.spec
    zone = situation.zone or (spec.carbon.zone if spec.carbon is not None else None)
    band = band_at(spec.carbon, situation).name
    tenant = next((known for known in spec.tenants if known.name == situation.tenant), None)
    holding = [rule for rule in spec.rules if rule.holds(situation.moment, zone, situation.tenant, band)]
    decided: dict[str, str] = {}

    def pick(setting: str, base: Any, own: Any = None) -> Any:
        for rule in _eligible(holding, own is not None):
            value = getattr(rule.set, setting)
            if value is not None:
                decided[setting] = rule.name
                return value
        return base if own is None else own

    directives = spec.directives
    clocks, limit = pick("clock_mhz", spec.power.clock_mhz), pick("power_limit_w", spec.power.power_limit_w)
    return Effective(
        mode=spec.mode,
        governor=pick("governor", spec.power.governor),
        clock_min_mhz=clocks.min,
        clock_max_mhz=clocks.max,
        power_limit_w=limit.max,
        row_budget_w=pick("row_budget_w", spec.power.row_budget.watts if spec.power.row_budget else None),
        admit_low_priority=pick("admit_low_priority", True),
        zone=zone,
        band=band,
        directive=pick("directive", AUTO, _own_directive(tenant)),
        quality_floor=pick(
            "quality_floor", directives.quality_floor if directives else None, tenant.quality_floor if tenant else None
        ),
        tolerance=pick("tolerance", directives.tolerance if directives else None),
        tenant=situation.tenant,
        rules=decided,
    )


def band_at(carbon: Carbon | None, situation: Situation) -> BandState:
    """The band in force: it changes only after its dwell, and only when the intensity leaves it by the hysteresis.

    Without an intensity, or in a gap between bands, the band is `unknown`, at once: no rule may act on a guess.
    """
    now, before, value = situation.moment, situation.band, situation.g_per_kwh
    if carbon is None or value is None:
        return _moved(before, UNKNOWN_BAND, now)
    known = {band.name: band for band in carbon.bands}
    if before is not None and before.name in known:
        rested = (now - before.since).total_seconds() >= carbon.band_min_dwell_s
        if not rested or known[before.name].holds(value, carbon.band_hysteresis_g_per_kwh):
            return before
    name = next((band.name for band in carbon.bands if band.holds(value)), UNKNOWN_BAND)
    return _moved(before, name, now)


def _moved(before: BandState | None, name: str, now: datetime) -> BandState:
    return before if before is not None and before.name == name else BandState(name, now)


def _own_directive(tenant: Tenant | None) -> str | None:
    return None if tenant is None or tenant.directive == AUTO else tenant.directive


def _eligible(rules: list[Rule], only_naming: bool) -> Iterator[Rule]:
    return (rule for rule in rules if not only_naming or rule.when.tenants is not None)
