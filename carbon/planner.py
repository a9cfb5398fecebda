"""From what is known now to a mix for every prompt class: the step between the optimizers and the running service.

Pure: the plane calls it with a snapshot and swaps the result in. What a plan expects stands beside what a static mix of
equal quality would reach, so that the part owed to carbon awareness is always visible.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from carbon.energy_model import USUAL_RATIOS, EnergyModel
from carbon.optimizer.budgeted import Exposure, Plan, plan_carbon_budget, plan_quality_budget
from carbon.optimizer.classed import Band, LevelCosts, classed_mixes, trailing_bounds
from carbon.optimizer.mix import DirectiveMix, mix_of
from carbon.optimizer.sprout import sprout_mix
from carbon.optimizer.static import static_mixes
from carbon.plan_values import Array, ClassState, MixPlan, PlanSettings, Snapshot, Strategy
from carbon.quality import QualityEstimate
from carbon.quality_book import QualityBook

UNKNOWN_G_PER_KWH = 100.0
NOMINAL_TOKENS = 400.0
NOMINAL_WATTS = 250.0
_BUDGETS = (Strategy.BUDGETED, Strategy.CARBON_BUDGET)


def class_states(
    owners: Mapping[str, str], weights: Mapping[str, float], book: QualityBook, model: EnergyModel
) -> tuple[ClassState, ...]:
    """Join quality and cost for every key of `owners` (key -> class). A key without own costs takes its class's.

    Where no joules are known yet, levels are compared by their lengths, and where no answers are, by the usual ratios:
    enough to choose a mix by, and marked `lengths` and `assumed`.
    """
    states = []
    quality: dict[str, QualityEstimate] = {}
    for name in dict.fromkeys(owners.values()):
        keys = [key for key, owner in owners.items() if owner == name]
        quality.update(zip(keys, book.estimates(keys)))
    for key, owner in owners.items():
        estimate = model.costs(key) or model.costs(owner)
        lengths = model.lengths(key) or model.lengths(owner)
        if estimate is None and lengths is not None:
            costs, method = _nominal(lengths), "lengths"
        elif estimate is None:
            ratios = list(USUAL_RATIOS[: book.levels])
            ratios += [ratios[-1] * 0.8 ** (n + 1) for n in range(book.levels - len(ratios))]
            costs, method = _nominal([NOMINAL_TOKENS * ratio for ratio in ratios]), "assumed"
        else:
            costs = estimate.costs
            method = "measured" if set(estimate.method) == {"measured"} else "estimated"
        states.append(ClassState(key, owner, costs, quality[key], max(weights.get(key, 0.0), 1e-6), method))
    return tuple(states)


def _nominal(lengths: Sequence[float]) -> LevelCosts:
    """Costs in proportion to output tokens, at a nominal joule a token."""
    return LevelCosts(tuple(lengths), tuple(length / NOMINAL_WATTS for length in lengths))


def make_plan(snapshot: Snapshot, settings: PlanSettings, share: float | None = None) -> MixPlan:
    """The mixes for now. `share` overrides the share of quality to keep (a tenant beyond its soft limit).

    Without an intensity no quality is given up: only brevity that costs none is used.
    """
    g_per_kwh = snapshot.reading.g_per_kwh
    notes: list[str] = []
    if g_per_kwh is None:
        notes.append("no carbon intensity: only levels that keep L0's full quality are used")
    kept = share if share is not None else _share(snapshot, settings, notes)
    if settings.strategy is Strategy.FIXED and share is None:
        return _fixed(snapshot, settings, notes)
    snapshot = _with_evidence(snapshot, settings, notes)
    if settings.strategy is Strategy.OFF or not snapshot.classes:
        return MixPlan(
            snapshot.now, settings.strategy, {}, kept, g_per_kwh, snapshot.reading.tier, None, None, tuple(notes)
        )
    price = UNKNOWN_G_PER_KWH if g_per_kwh is None else g_per_kwh
    if settings.strategy is Strategy.SPROUT:
        mixes = _sprout(snapshot, kept, price)
    elif settings.strategy in _BUDGETS and share is None and g_per_kwh is not None:
        return _budgeted(snapshot, settings, price, notes)
    else:
        mixes = _classed(snapshot, settings, kept, price)
    notes += sorted({mix.note for mix in mixes.values() if mix.note})
    static = _static_share(snapshot, settings, kept)
    yardstick = _classed(snapshot, settings, static, price)
    return MixPlan(
        snapshot.now,
        settings.strategy,
        mixes,
        kept,
        g_per_kwh,
        snapshot.reading.tier,
        _saving(snapshot, mixes, price),
        _saving(snapshot, yardstick, price) if settings.strategy is Strategy.CLASSED else None,
        tuple(notes),
    )


def _share(snapshot: Snapshot, settings: PlanSettings, notes: list[str]) -> float:
    g_per_kwh = snapshot.reading.g_per_kwh
    if g_per_kwh is None:
        return 1.0
    seen = (*snapshot.window, g_per_kwh)
    if len(snapshot.window) < 24:
        seen = (*seen, *snapshot.ahead)
        if len(seen) < 24:
            notes.append("less than a day of intensities known: full quality is kept")
            return 1.0
    lowest, highest = trailing_bounds(seen, *settings.bound_quantiles)
    return settings.policy.share(g_per_kwh, lowest, highest)


def _static_share(snapshot: Snapshot, settings: PlanSettings, kept: float) -> float:
    """The mean share over the trailing window: what a mix that never looks at the grid keeps for equal quality."""
    if len(snapshot.window) < 24:
        return kept
    lowest, highest = trailing_bounds(snapshot.window, *settings.bound_quantiles)
    return float(np.mean([settings.policy.share(g, lowest, highest) for g in snapshot.window]))


def _with_evidence(snapshot: Snapshot, settings: PlanSettings, notes: list[str]) -> Snapshot:
    """The snapshot with the classes whose quality is known: judged often enough, else as declared, else left out."""
    thin = {state.key for state in snapshot.classes if state.quality.observations < settings.min_judged}
    if not thin:
        return snapshot
    names = ", ".join(sorted(thin))
    if settings.declared is None:
        notes.append(f"at L0 until {settings.min_judged:g} prompts a level are judged: {names}")
        return dataclasses.replace(snapshot, classes=tuple(s for s in snapshot.classes if s.key not in thin))
    notes.append(
        f"by the quality the policy declares, fewer than {settings.min_judged:g} prompts being judged: {names}"
    )
    quality = _declared(settings.declared)
    classes = tuple(dataclasses.replace(s, quality=quality) if s.key in thin else s for s in snapshot.classes)
    return dataclasses.replace(snapshot, classes=classes)


def _declared(relative: Sequence[float]) -> QualityEstimate:
    """What the operator vouches for, in the duels' measure (L0 is 1/2), taken as certain."""
    return QualityEstimate(np.array(relative) / 2.0, np.zeros((len(relative), len(relative))), 0.0)


def _fixed(snapshot: Snapshot, settings: PlanSettings, notes: list[str]) -> MixPlan:
    """The stated shares for every class, judged or not; what they are expected to do where that is known."""
    assert settings.shares is not None
    g_per_kwh = snapshot.reading.g_per_kwh
    price = UNKNOWN_G_PER_KWH if g_per_kwh is None else g_per_kwh
    mixes = {}
    for state in snapshot.classes:
        known = state.quality.observations >= settings.min_judged
        quality = state.quality.mean if known else None
        if quality is None and settings.declared is not None:
            quality = _declared(settings.declared).mean
        mixes[state.key] = mix_of(settings.shares, state.costs.grams(price, snapshot.embodied_g_per_s), quality)
    saving = _saving(snapshot, mixes, price) if mixes else None
    return MixPlan(
        snapshot.now,
        Strategy.FIXED,
        mixes,
        settings.quality_floor,
        g_per_kwh,
        snapshot.reading.tier,
        saving,
        # The mix never looks at the grid: it is its own yardstick.
        saving,
        tuple(notes),
    )


def _classed(snapshot: Snapshot, settings: PlanSettings, share: float, price: float) -> dict[str, DirectiveMix]:
    grouped: dict[str, list[ClassState]] = {}
    for state in snapshot.classes:
        grouped.setdefault(state.owner, []).append(state)
    mixes: dict[str, DirectiveMix] = {}
    for owner, states in grouped.items():
        solved = classed_mixes(
            {owner: [Band(s.costs, s.quality, s.weight) for s in states]},
            g_per_kwh=price,
            share=max(share, settings.floors.get(owner, 0.0)),
            embodied_g_per_s=snapshot.embodied_g_per_s,
            confidence=settings.confidence,
        )
        mixes.update((state.key, mix) for state, mix in zip(states, solved[owner]))
    return mixes


def _sprout(snapshot: Snapshot, share: float, price: float) -> dict[str, DirectiveMix]:
    weights = np.array([state.weight for state in snapshot.classes])
    weights /= weights.sum()

    def pooled(rows: Sequence[Sequence[float] | Array]) -> list[float]:
        return [float(value) for value in weights @ np.array(rows)]

    mix = sprout_mix(
        [j / 3.6e6 for j in pooled([state.costs.energy_j for state in snapshot.classes])],
        pooled([state.costs.time_s for state in snapshot.classes]),
        pooled([state.quality.mean for state in snapshot.classes]),
        g_per_kwh=price,
        # The share is already known: bounds of 0 and 1 around it make the published rule keep exactly that.
        lowest_g_per_kwh=price - 1.0,
        highest_g_per_kwh=price,
        tolerance=1.0 - share,
        embodied_g_per_s=snapshot.embodied_g_per_s,
    )
    return {state.key: mix for state in snapshot.classes}


def _budgeted(snapshot: Snapshot, settings: PlanSettings, price: float, notes: list[str]) -> MixPlan:
    intensity = np.array([price, *snapshot.ahead])
    costs = np.array([state.costs.energy_j for state in snapshot.classes]) / 3.6e6
    times = np.array([state.costs.time_s for state in snapshot.classes])
    grams = intensity[:, None, None] * costs + snapshot.embodied_g_per_s * times
    rates = np.array([state.weight for state in snapshot.classes]) * snapshot.requests_per_h_and_weight
    volumes = np.tile(rates, (len(intensity), 1))
    estimates = [state.quality for state in snapshot.classes]
    if settings.strategy is Strategy.CARBON_BUDGET:
        plan = _within_grams(snapshot, settings, grams, volumes, notes)
    else:
        plan = _within_quality(snapshot, settings, grams, volumes)
    if plan.note:
        notes.append(plan.note)
    if not snapshot.ahead:
        notes.append("no forecast: the budget is kept hour by hour")
    static = _static_saving(plan.x, grams, volumes, estimates)
    mixes = {
        state.key: mix_of(plan.x[0, i], grams[0, i], estimates[i].mean, plan.note)
        for i, state in enumerate(snapshot.classes)
    }
    base = float((volumes * grams[:, :, 0]).sum())
    kept = settings.target if settings.strategy is Strategy.BUDGETED else settings.class_floor or 0.0
    return MixPlan(
        snapshot.now,
        settings.strategy,
        mixes,
        kept,
        price,
        snapshot.reading.tier,
        1.0 - plan.grams / base if base > 0.0 else None,
        static,
        tuple(notes),
        _hourly_saving(plan.x, grams, volumes),
    )


def _owners(snapshot: Snapshot) -> tuple[list[str], list[int]]:
    """Names of the classes, and the number of each state's own."""
    names = sorted({state.owner for state in snapshot.classes})
    return names, [names.index(state.owner) for state in snapshot.classes]


def _class_floors(names: Sequence[str], settings: PlanSettings) -> list[float]:
    return [max(settings.class_floor or 0.0, settings.floors.get(name, 0.0)) for name in names]


def _within_quality(snapshot: Snapshot, settings: PlanSettings, grams: Array, volumes: Array) -> Plan:
    names, owners = _owners(snapshot)
    served = [snapshot.served.get(state.key, np.zeros(grams.shape[2])) for state in snapshot.classes]
    floored = settings.class_floor is not None or bool(settings.floors)
    return plan_quality_budget(
        grams,
        volumes,
        [state.quality for state in snapshot.classes],
        owners,
        target=settings.target,
        class_floor=_class_floors(names, settings) if floored else None,
        fair=settings.fair,
        past=Exposure(np.array(served)),
        confidence=settings.confidence,
    )


def _within_grams(snapshot: Snapshot, settings: PlanSettings, grams: Array, volumes: Array, notes: list[str]) -> Plan:
    """What is left of the budget is spread over what is left of the window, hour by hour; the horizon gets its part."""
    assert settings.budget_g is not None
    names, owners = _owners(snapshot)
    left_g = settings.budget_g - snapshot.spent_g
    left_h = max(settings.window_h if snapshot.hours_left is None else snapshot.hours_left, 1.0)
    allowed_g = max(0.0, left_g) * min(1.0, len(grams) / left_h)
    notes.append(f"{max(0.0, left_g):.4g} g of {settings.budget_g:.4g} g are left for {left_h:.0f} h")
    return plan_carbon_budget(
        grams,
        volumes,
        [state.quality for state in snapshot.classes],
        owners,
        budget_g=allowed_g,
        class_floor=_class_floors(names, settings),
    )


def _hourly_saving(x: Array, grams: Array, volumes: Array) -> tuple[float, ...]:
    """Share of L0's grams that each hour of `x` [H, M, L] saves; 0 in an hour without any."""
    base = (volumes * grams[:, :, 0]).sum(axis=1)
    spent = (volumes[..., None] * grams * x).sum(axis=(1, 2))
    return tuple(float(1.0 - part / whole) if whole > 0.0 else 0.0 for part, whole in zip(spent, base))


def _static_saving(x: Array, grams: Array, volumes: Array, estimates: Sequence[QualityEstimate]) -> float | None:
    """Saving over the horizon of the static mix that keeps what `x` keeps, pooled over the classes."""
    mean = np.array([estimate.mean for estimate in estimates])
    base_quality = float((volumes * mean[:, 0]).sum())
    base = float((volumes * grams[:, :, 0]).sum())
    if base <= 0.0 or base_quality <= 0.0:
        return None
    quality = float((volumes[..., None] * mean * x).sum()) / base_quality
    # A hair below, so that rounding does not make the yardstick infeasible.
    static, reached = static_mixes(grams, volumes, estimates, [range(len(estimates))], np.array([quality - 1e-6]))
    if not reached.all():
        return None
    return 1.0 - float((volumes[..., None] * grams * static).sum()) / base


def _saving(snapshot: Snapshot, mixes: Mapping[str, DirectiveMix], price: float) -> float | None:
    spent = base = 0.0
    for state in snapshot.classes:
        grams = state.costs.grams(price, snapshot.embodied_g_per_s)
        spent += state.weight * float(grams @ np.array(mixes[state.key].probabilities))
        base += state.weight * float(grams[0])
    return 1.0 - spent / base if base > 0.0 else None
