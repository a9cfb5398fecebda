"""From a policy to the planes that carry it out: the one place that knows both sides' names."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from carbon import embodied
from carbon.directives import DirectiveLevel, LevelSet, TenantRules
from carbon.energy_model import EnergyModel
from carbon.feed_chain import FeedChain
from carbon.feeds.build import build_feed
from carbon.intensity import CarbonIntensity, Kind, Methodology, Tier
from carbon.plane import CarbonPlane
from carbon.plane_values import PlaneSettings
from carbon.plane_values import Tenant as CarbonTenant
from carbon.planner import PlanSettings, Strategy
from carbon.prompt_classes import PromptClassifier
from carbon.quality_book import QualityBook
from carbon.state import load_state
from carbon.tenant_budget import OnHard, TenantAccount, TenantBudget
from engine.model_config import ModelConfig
from power.audit import AuditRecord
from power.client import ActuatorPort, PowerdClient
from power.controller import Mode
from power.device import PowerDevice
from power.governors import (
    Bounds,
    CarbonFollow,
    DefaultGovernor,
    Governor,
    GridSignal,
    PhaseAwareGovernor,
    RowBudget,
    Slo,
    SloSlackGovernor,
    Stability,
    StaticGovernor,
)
from power.model_shape import ModelShape
from power.open import open_devices
from power.plane import PowerPlane
from power.profile import load_engine, load_profile, profile_names
from power.row import RowControl
from power.simulated import SimulatedDevice
from power.twin import Twin
from serving.policy.carbon_section import Carbon, IntensityRange
from serving.policy.directives_section import Directives, Tenant
from serving.policy.effective import Effective
from serving.policy.feeds import feed_settings
from serving.policy.model import Policy
from serving.policy.power_section import ClockBand, Power, PowerLimit

WINDOW_REFRESH_S = 60.0
_STRATEGIES = {
    "off": Strategy.OFF,
    "sprout": Strategy.SPROUT,
    "classed": Strategy.CLASSED,
    "quality_budget": Strategy.BUDGETED,
}


def shape_of(config: ModelConfig, name: str, weight_bytes: float) -> ModelShape:
    """A served model as the twin sees it. `weight_bytes`: of one weight as stored."""
    return ModelShape(
        name,
        layers=config.num_layers,
        hidden=config.hidden_size,
        heads=config.num_heads,
        kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        intermediate=config.intermediate_size,
        vocab=config.vocab_size,
        weight_bytes=weight_bytes,
    )


def build_power(
    device: str,
    shape: ModelShape,
    policy: Policy | None,
    *,
    grid: Callable[[], GridSignal | None] = lambda: None,
    max_running: int,
    max_step_tokens: int,
    powerd_socket: Path | None = None,
    on_audit: Callable[[AuditRecord], None] | None = None,
    on_alarm: Callable[[str], None] | None = None,
    mode: Mode | None = None,
) -> PowerPlane | None:
    """The power plane on the named device, under the policy; None where nothing can be measured (`auto` only).

    `device`: see `power.open.open_devices`. `mode`: instead of the policy's own, where it may do less than it asks
    for. Raises `ValueError` or `power.device.DeviceError`.
    """
    devices = open_devices(device, shape)
    if not devices:
        return None
    spec = policy.spec if policy is not None else None
    power = spec.power if spec is not None else Power()
    follow = steered_governor(power, twin_of(devices[0], shape))
    actuator: ActuatorPort | None = PowerdClient(powerd_socket) if powerd_socket is not None else None
    return PowerPlane(
        devices,
        shape=shape,
        governor=follow,
        mode=mode or (Mode(spec.mode) if spec is not None else Mode.OBSERVE),
        actuator=actuator,
        slo=slo_of(policy),
        grid=grid,
        row=row_of(power, follow),
        # The engine is slowed by its own executor, so its steps already take as long as the simulated clock says.
        pace=False,
        max_running=max_running,
        max_step_tokens=max_step_tokens,
        policy_revision=policy.short_revision if policy is not None else "",
        on_audit=on_audit,
        on_alarm=on_alarm,
    )


def twin_of(device: PowerDevice, shape: ModelShape) -> Twin:
    """What predicts steps and power of a device: its own twin, or that of its product."""
    return device.twin if isinstance(device, SimulatedDevice) else _twin_for(device.info.name, shape)


def slo_of(policy: Policy | None) -> Slo | None:
    slo = policy.spec.slo if policy is not None else None
    return Slo(slo.ttft_p99_ms / 1e3, slo.tpot_p99_ms / 1e3) if slo is not None else None


def row_of(power: Power, governor: Governor) -> RowControl | None:
    """The row budget's control; `governor` shrinks the budget on a dirty grid where it follows the grid."""
    row = power.row_budget
    if row is None:
        return None
    return RowControl(
        row.watts,
        RowBudget(t1=row.t1, hysteresis=row.hysteresis, reaction_s=row.reaction_s, relax_dwell_s=row.relax_dwell_s),
        t2=None if row.t2 == "auto" else row.t2,
        carbon=governor if isinstance(governor, CarbonFollow) else None,
        min_history_s=row.min_history_s,
    )


def steered_governor(power: Power, twin: Twin) -> Governor:
    """The policy's governor, narrowed by the grid where the policy says so."""
    return _carbon_follow(power, governor_of(power, twin))


def power_in_force(power: Power, now: Effective) -> Power:
    """The power section with what the policy's rules say at a moment."""
    row = power.row_budget
    if row is not None and now.row_budget_w is not None:
        row = row.model_copy(update={"watts": now.row_budget_w})
    return power.model_copy(
        update={
            "governor": now.governor,
            "clock_mhz": ClockBand(min=now.clock_min_mhz, max=now.clock_max_mhz),
            "power_limit_w": PowerLimit(max=now.power_limit_w),
            "row_budget": row,
        }
    )


def governor_of(power: Power, twin: Twin) -> Governor:
    bounds = Bounds(power.clock_mhz.min, power.clock_mhz.max, power.power_limit_w.max)
    stability = Stability(**power.stability.model_dump())
    match power.governor:
        case "static":
            if power.static is None:
                raise ValueError("governor static needs spec.power.static.clock_mhz")
            return StaticGovernor(power.static.clock_mhz, bounds)
        case "slo_slack":
            slack = power.slo_slack
            given = slack.model_dump(exclude={"trusted_min", "trusted_max"})
            return SloSlackGovernor(twin, bounds, stability, trusted=(slack.trusted_min, slack.trusted_max), **given)
        case "phase_aware":
            phases = power.phase_aware
            return PhaseAwareGovernor(
                twin,
                prefill_mhz=phases.prefill_mhz,
                decode_mhz=phases.decode_mhz,
                switch_latency_s=phases.switch_latency_s,
                worth=phases.worth,
                bounds=bounds,
                stability=stability,
            )
        case _:
            return DefaultGovernor(bounds)


def _carbon_follow(power: Power, inner: Governor) -> Governor:
    follow = power.carbon_follow
    return inner if follow is None else CarbonFollow(inner, follow.floor_fraction, follow.budget_floor, follow.steps)


def _twin_for(product: str, shape: ModelShape) -> Twin:
    """The twin of a real card by its product name, the H100's where there is none; governors correct it online."""
    known = [load_profile(name) for name in profile_names()]
    profile = next((profile for profile in known if profile.product == product), load_profile("h100-sxm"))
    return Twin(profile, load_engine("vllm-0.11"), shape)


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
        now=now,
    )


def carbon_settings(policy: Policy, *, enforce: bool, now: Effective | None = None) -> PlaneSettings:
    """What the policy asks of the carbon plane; `now`: with what its rules say at a moment. Raises `ValueError`."""
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
    return _with_directives(settings, directives, spec.tenants, spec.carbon.range)


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
            self._plan, self._brief_plans, self._served = None, {}, {}
        if count != self.energy_model.levels:
            self.energy_model, self.quality = EnergyModel(count), QualityBook(count)
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
    settings: PlaneSettings, directives: Directives, tenants: tuple[Tenant, ...], grid_range: IntensityRange
) -> PlaneSettings:
    name = directives.chosen_optimizer
    if name not in _STRATEGIES:
        raise ValueError(
            f"spec.directives.optimizer {name} is not carried out by the server yet; use {', '.join(_STRATEGIES)}"
        )
    plan = PlanSettings(
        strategy=_STRATEGIES[name],
        tolerance=directives.tolerance,
        quality_floor=directives.quality_floor,
        confidence=directives.confidence,
        class_floor=directives.quality_floor,
        min_judged=directives.min_judged,
        bound_quantiles=(grid_range.low_quantile, grid_range.high_quantile),
    )
    if directives.budget is not None:
        budget = directives.budget
        plan = replace(plan, target=budget.quality_target, fair=budget.fair, window_h=float(budget.window_h))
    levels = LevelSet(tuple(DirectiveLevel(level.id, level.text, level.max_tokens) for level in directives.levels))
    return replace(
        settings,
        levels=levels,
        plan=plan,
        tenants={tenant.name: _tenant(tenant) for tenant in tenants},
        classes=tuple(known.name for known in directives.classes),
    )


def _tenant(tenant: Tenant) -> CarbonTenant:
    grams = tenant.carbon_budget_g_per_day
    budget = None
    if grams is not None and tenant.on_exceed in ("brief", "refuse"):
        on_hard = OnHard.REFUSE if tenant.on_exceed == "refuse" else OnHard.BRIEFEST
        budget = TenantBudget(
            hard_g=grams, soft_g=grams * tenant.soft_share, soft_share=tenant.soft_quality, on_hard=on_hard
        )
    return CarbonTenant(rules=TenantRules(enabled=tenant.directive != "off"), budget=budget)


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
