"""From a policy to the carbon plane that carries it out: feeds, directives, tenants, and the grid as power sees it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType

from carbon import embodied
from carbon.band_evidence import BandEvidence
from carbon.budget_books import BudgetBooks
from carbon.directives import DirectiveLevel, LevelSet, TenantRules
from carbon.energy_model import EnergyModel
from carbon.feed_chain import FeedChain
from carbon.feeds.build import build_feed
from carbon.intensity import CarbonIntensity, Kind, Methodology, Tier
from carbon.plan_values import PlanSettings, Strategy
from carbon.plane import CarbonPlane
from carbon.plane_values import PlaneSettings
from carbon.plane_values import Tenant as CarbonTenant
from carbon.prompt_classes import PromptClassifier
from carbon.quality_book import QualityBook
from carbon.state import load_state
from carbon.tenant_budget import OnHard, TenantAccount, TenantBudget
from power.governors import GridSignal
from serving.policy.carbon_section import Carbon, IntensityRange
from serving.policy.directives_section import Directives, Tenant
from serving.policy.effective import Effective
from serving.policy.feeds import feed_settings
from serving.policy.model import Policy

WINDOW_REFRESH_S = 60.0
NO_FLOORS: Mapping[str, float | None] = MappingProxyType({})
_STRATEGIES = {
    "off": Strategy.OFF,
    "sprout": Strategy.SPROUT,
    "classed": Strategy.CLASSED,
    "quality_budget": Strategy.BUDGETED,
    "carbon_budget": Strategy.CARBON_BUDGET,
    "fixed": Strategy.FIXED,
}


def build_carbon(
    policy: Policy,
    *,
    folder: Path = Path(),
    learned: Path | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    enforce: bool | None = None,
    chain: FeedChain | None = None,
) -> SteeredCarbonPlane | None:
    """The carbon plane under the policy; None for a policy without `spec.carbon`.

    `folder`: what relative paths of feeds start from. `learned`: what earlier runs learned. `enforce`: instead of
    what the policy's mode says. `chain`: its feeds, where they are built already. Raises `ValueError`.
    """
    spec = policy.spec
    if spec.carbon is None:
        return None
    settings = carbon_settings(policy, enforce=spec.mode == "enforce" if enforce is None else enforce)
    state = load_state(learned, len(settings.levels)) if learned is not None else None
    return SteeredCarbonPlane(
        settings,
        chain or build_chain(spec.carbon, folder, now),
        classifier=state.classifier if state else None,
        bands=state.bands if state else None,
        energy_model=state.energy_model if state else None,
        quality=state.quality if state else None,
        evidence=state.evidence if state else None,
        books=state.books if state else None,
        now=now,
    )


def carbon_settings(
    policy: Policy, *, enforce: bool, now: Effective | None = None, floors: Mapping[str, float | None] = NO_FLOORS
) -> PlaneSettings:
    """What the policy asks of the carbon plane; `now`: with what its rules say at a moment, `floors`: and of the
    quality of single tenants. Raises `ValueError`."""
    spec = policy.spec
    assert spec.carbon is not None
    settings = PlaneSettings(
        plan=PlanSettings(strategy=Strategy.OFF),
        enforce=enforce,
        pue=spec.carbon.pue,
        embodied=_embodied(spec.carbon),
    )
    if spec.directives is None:
        return settings
    directives = spec.directives
    if now is not None and now.quality_floor is not None and now.tolerance is not None:
        directives = directives.model_copy(update={"quality_floor": now.quality_floor, "tolerance": now.tolerance})
    promised = {tenant.name: floors.get(tenant.name, tenant.quality_floor) for tenant in spec.tenants}
    return _with_directives(settings, directives, spec.tenants, spec.carbon.range, promised)


FEED_FIELDS = {"zone", "feeds", "basis", "boundary", "stale_after_s", "zone_mean_g_per_kwh"}


def same_feeds(old: Carbon | None, new: Carbon | None) -> bool:
    """Whether a chain built for one section serves the other."""
    if old is None or new is None:
        return old is new
    return old.model_dump(include=FEED_FIELDS) == new.model_dump(include=FEED_FIELDS)


class SteeredCarbonPlane(CarbonPlane):
    """The carbon plane, whose settings may change while it serves."""

    def reconfigure(self, settings: PlaneSettings, chain: FeedChain | None = None) -> None:
        """Take over new settings at once; what was learned and spent stays where it still applies.

        Evidence on another number of levels means nothing and begins anew. `chain`: other feeds; what was seen of the
        grid is then forgotten. The next `replan` makes the mixes. Raises `ValueError` and changes nothing.
        """
        count = len(settings.levels)
        accounts = {}
        for name, tenant in settings.tenants.items():
            if tenant.budget is None:
                continue
            kept = self._accounts.get(name)
            if kept is not None and kept.budget.window == tenant.budget.window:
                kept.budget = tenant.budget
            accounts[name] = kept or TenantAccount(tenant.budget)
        if settings.levels.ids != self.settings.levels.ids:
            self._plan, self._brief_plans, self._floor_plans = None, {}, {}
            self._planned_hours = ()
            self.books = BudgetBooks(self._now())
        if count != self.energy_model.levels:
            self.energy_model, self.quality = EnergyModel(count), QualityBook(count)
            self.evidence, self.bands = BandEvidence(count), {}
        if settings.classes != self.settings.classes:
            self.classifier = PromptClassifier(settings.classes) if settings.classes else None
        if chain is not None:
            self.chain = chain
            self._window.clear()
        self._accounts = accounts
        self.settings = settings


def build_chain(carbon: Carbon, folder: Path, now: Callable[[], datetime]) -> FeedChain:
    feeds, zones = [], {}
    for settings in feed_settings(carbon):
        zone = settings.pop("zone", None)
        feed = build_feed(settings, zone=zone or carbon.zone, folder=folder, now=now)
        if zone is not None:
            zones[feed.name] = zone
        feeds.append(feed)
    mean = None
    if carbon.zone_mean_g_per_kwh is not None:
        mean = _assumed(carbon, feeds[0].methodology, now())
    return FeedChain(
        carbon.zone, feeds, stale_after_s=carbon.stale_after_s, zone_mean=mean, zones_of_feeds=zones, now=now
    )


def _assumed(carbon: Carbon, counted: Methodology, at: datetime) -> CarbonIntensity:
    assert carbon.zone_mean_g_per_kwh is not None
    return CarbonIntensity(
        zone=carbon.zone,
        start=at - timedelta(days=366),
        end=at + timedelta(days=3660),
        g_per_kwh=carbon.zone_mean_g_per_kwh,
        methodology=counted,
        kind=Kind.ASSUMED,
        source="policy: carbon.zone_mean_g_per_kwh",
        fetched_at=at,
    )


def _embodied(carbon: Carbon) -> tuple[embodied.EmbodiedProfile, ...]:
    stated = carbon.embodied
    if stated is None:
        return ()
    return (embodied.declared(stated.kg, stated.lifetime_years, stated.source or "policy file"),)


def _with_directives(
    settings: PlaneSettings,
    directives: Directives,
    tenants: tuple[Tenant, ...],
    grid_range: IntensityRange,
    promised: Mapping[str, float | None],
) -> PlaneSettings:
    """`promised`: the floor of quality of each tenant; None where it is the policy's."""
    declared = (1.0, *(level.quality for level in directives.levels[1:]))
    plan = PlanSettings(
        strategy=_STRATEGIES[directives.chosen_optimizer],
        tolerance=directives.tolerance,
        quality_floor=directives.quality_floor,
        confidence=directives.confidence,
        class_floor=directives.quality_floor,
        min_judged=directives.min_judged,
        bound_quantiles=(grid_range.low_quantile, grid_range.high_quantile),
        floors={known.name: known.quality_floor for known in directives.classes if known.quality_floor is not None},
        declared=None if None in declared else tuple(float(quality or 0.0) for quality in declared),
        shares=_shares(directives),
        budget_g=directives.budget.grams if directives.budget is not None else None,
    )
    if directives.budget is not None:
        budget = directives.budget
        plan = replace(plan, target=budget.quality_target, fair=budget.fair, window_h=float(budget.window_h))
    levels = LevelSet(tuple(DirectiveLevel(level.id, level.text, level.max_tokens) for level in directives.levels))
    own = {name: floor for name, floor in promised.items() if floor != directives.quality_floor}
    return replace(
        settings,
        levels=levels,
        plan=plan,
        tenants={tenant.name: _tenant(tenant, own.get(tenant.name)) for tenant in tenants},
        classes=tuple(known.name for known in directives.classes),
    )


def _shares(directives: Directives) -> tuple[float, ...] | None:
    """Of `optimizer: fixed`, in the order of the levels; None for any other."""
    if directives.chosen_optimizer != "fixed":
        return None
    shares = {part.level: part.share for part in directives.mix}
    return tuple(shares.get(level.id, 0.0) for level in directives.levels)


def _tenant(tenant: Tenant, quality_floor: float | None) -> CarbonTenant:
    grams = tenant.carbon_budget_g_per_day
    budget = None
    if grams is not None and tenant.on_exceed in ("brief", "refuse"):
        on_hard = OnHard.REFUSE if tenant.on_exceed == "refuse" else OnHard.BRIEFEST
        budget = TenantBudget(
            hard_g=grams, soft_g=grams * tenant.soft_share, soft_share=tenant.soft_quality, on_hard=on_hard
        )
    rules = TenantRules(enabled=tenant.directive != "off")
    return CarbonTenant(rules=rules, budget=budget, quality_floor=quality_floor)


def undirected_classes(policy: Policy | None) -> frozenset[str]:
    """Prompt classes whose answers are never shortened."""
    directives = policy.spec.directives if policy is not None else None
    return frozenset(known.name for known in directives.classes if not known.directed) if directives else frozenset()


class GridView:
    """The grid as the power plane sees it, cheap enough to ask many times a second."""

    def __init__(self, carbon: CarbonPlane, policy: Policy, clock: Callable[[], float] = time.monotonic) -> None:
        self._carbon = carbon
        self._range = policy.spec.carbon.range if policy.spec.carbon is not None else IntensityRange()
        self._clock = clock
        self._window: tuple[float, float] | None = None
        self._due_s = clock()

    def __call__(self) -> GridSignal | None:
        """Intensity within the policy's range; None while either is unknown."""
        reading = self._carbon.reading()
        if self._clock() >= self._due_s:
            self._due_s = self._clock() + WINDOW_REFRESH_S
            window = self._carbon.snapshot().window
            self._window = (min(window), max(window)) if window else None
        low, high = self._range.low_g_per_kwh, self._range.high_g_per_kwh
        ends = (low, high) if low is not None and high is not None else self._window
        if reading.g_per_kwh is None or ends is None:
            return None
        return GridSignal(reading.g_per_kwh, *ends, stale=reading.tier is not Tier.LIVE)
