"""The carbon plane: feeds, classes, mixes, directives and accounting behind five calls.

    await plane.start()                    seed the trailing window, fetch, plan
    decision = plane.select(...)           which directive this request gets, and why; never waits
    messages = plane.apply_directive(...)  the conversation with it
    footprint = plane.footprint(energy)    grams with provenance
    plane.observe(outcome)                 learn from the finished request

`run()` keeps feeds and plan fresh in the background. Everything `select` and `footprint` read is in memory.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from carbon.accounting import RequestEnergy, RequestFootprint, footprint
from carbon.band_evidence import BandEvidence
from carbon.budget_books import BudgetBooks
from carbon.directives import (
    Message,
    Reason,
    RequestTraits,
    allowed_probabilities,
    capped_tokens,
    insert_directive,
    permit,
)
from carbon.energy_model import EnergyModel
from carbon.evaluator.run import EvaluationResult
from carbon.evaluator.schedule import ForecastSchedule, ScheduleDecision, SproutSchedule
from carbon.feed_chain import FeedChain
from carbon.intensity import CarbonIntensity, IntensityReading, Tier
from carbon.plan_ahead import PlannedHour, plan_ahead
from carbon.plan_values import ClassState, MixPlan, Snapshot, Strategy
from carbon.plane_values import DirectiveDecision, Outcome, PlaneSettings, Tenant
from carbon.planner import class_states, make_plan
from carbon.prompt_bands import BandModel
from carbon.prompt_classes import UNKNOWN, PromptClassifier
from carbon.quality_book import QualityBook
from carbon.tenant_budget import BudgetState, OnHard, TenantAccount

WINDOW = timedelta(days=30)
HORIZON_H = 72
REPLAN_S = 300.0
LEARN_BATCH = 32
MAX_PENDING = 512
ARRIVAL_HALF_LIFE_S = 6 * 3600.0


class CarbonPlane:
    """`classifier`, `bands`, `energy_model`, `quality`, `evidence` are what was learned before, `books` what was spent
    of the budget's window (None: start without)."""

    def __init__(
        self,
        settings: PlaneSettings,
        chain: FeedChain,
        *,
        classifier: PromptClassifier | None = None,
        bands: Mapping[str, BandModel] | None = None,
        energy_model: EnergyModel | None = None,
        quality: QualityBook | None = None,
        evidence: BandEvidence | None = None,
        books: BudgetBooks | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        draw: Callable[[], float] = random.random,
    ) -> None:
        count = len(settings.levels)
        self.settings = settings
        self.chain = chain
        self.classifier = classifier or (PromptClassifier(settings.classes) if settings.classes else None)
        self.bands = dict(bands or {})
        self.energy_model = energy_model or EnergyModel(count)
        self.quality = quality or QualityBook(count)
        for name, levels in (("energy model", self.energy_model.levels), ("quality book", self.quality.levels)):
            if levels != count:
                raise ValueError(f"the {name} knows {levels} levels and the policy {count}; start without it")
        self.evidence = evidence or BandEvidence(count)
        self._now = now
        self._draw = draw
        self._plan: MixPlan | None = None
        self._planned_hours: tuple[PlannedHour, ...] = ()
        self._brief_plans: dict[float, MixPlan] = {}
        self._floor_plans: dict[float, MixPlan] = {}
        self._window: deque[tuple[datetime, float]] = deque()
        self._arrivals: dict[str, float] = {}
        self._arrivals_at = now()
        self._began = now()
        self.books = books or BudgetBooks(now())
        self._accounts = {
            name: TenantAccount(tenant.budget) for name, tenant in settings.tenants.items() if tenant.budget is not None
        }
        self._pending: list[tuple[str, str]] = []

    # Reading

    @property
    def plan(self) -> MixPlan | None:
        return self._plan

    @property
    def planned_hours(self) -> tuple[PlannedHour, ...]:
        """What the plan expects of the coming hours; nothing depends on it."""
        return self._planned_hours

    def reading(self) -> IntensityReading:
        return self.chain.reading()

    # Background

    async def start(self) -> None:
        """One round of everything; failing sources leave their tier, never an exception."""
        await self.chain.refresh()
        now = self._now()
        history = await self.chain.history(now - WINDOW, now)
        if history:
            for point in history.resampled(3600):
                self._remember(point.start, point.g_per_kwh)
        await self.chain.refresh_forecast(HORIZON_H)
        await self.replan()

    async def run(self) -> None:
        """Keep feeds, forecast and plan fresh until cancelled."""
        await self.start()
        while True:
            await asyncio.sleep(min(REPLAN_S, self.chain.seconds_to_next_refresh()))
            await self.chain.refresh()
            await self.chain.refresh_forecast(HORIZON_H)
            await self.replan()

    async def replan(self) -> None:
        """Solve for the present; the solving runs in a thread, the result is swapped in at once."""
        reading = self.chain.reading()
        if reading.tier is Tier.LIVE and reading.intensity is not None:
            hour = self._now().replace(minute=0, second=0, microsecond=0)
            self._remember(hour, reading.intensity.g_per_kwh)
        snapshot = self.snapshot()
        shares = {tenant.budget.soft_share for tenant in self.settings.tenants.values() if tenant.budget is not None}
        floors = {tenant.quality_floor for tenant in self.settings.tenants.values()} - {None}
        settings = self.settings.plan
        plan = await asyncio.to_thread(make_plan, snapshot, settings)
        brief = {share: await asyncio.to_thread(make_plan, snapshot, settings, share) for share in shares}
        floored = {}
        for floor in floors:
            assert floor is not None
            floored[floor] = await asyncio.to_thread(make_plan, snapshot, settings.with_floor(floor))
        self._plan, self._brief_plans, self._floor_plans = plan, brief, floored
        self._planned_hours = await asyncio.to_thread(plan_ahead, snapshot, settings, plan)

    def _remember(self, hour: datetime, g_per_kwh: float) -> None:
        if self._window and self._window[-1][0] >= hour:
            return
        self._window.append((hour, g_per_kwh))
        while hour - self._window[0][0] > WINDOW:
            self._window.popleft()

    def snapshot(self) -> Snapshot:
        """What a plan made now would depend on."""
        now = self._now()
        forecast = self.chain.forecast()
        coming: list[CarbonIntensity] = []
        if forecast is not None:
            coming = [point for point in forecast.series.resampled(3600) if point.start > now][:HORIZON_H]
        window = timedelta(hours=self.settings.plan.window_h)
        self.books.roll(now, window)
        return Snapshot(
            now=now,
            reading=self.chain.reading(),
            classes=self._classes(),
            window=tuple(value for _, value in self._window),
            ahead=tuple(point.g_per_kwh for point in coming),
            ahead_starts=tuple(point.start for point in coming),
            embodied_g_per_s=self.embodied_g_per_s or 0.0,
            served={key: served.copy() for key, served in self.books.served.items()},
            spent_g=self.books.grams,
            hours_left=(self.books.began + window - now) / timedelta(hours=1),
            requests_per_h_and_weight=self._hourly_rate(now),
        )

    def _hourly_rate(self, now: datetime) -> float:
        """Requests an hour behind one unit of arrival weight: weights fade, and are not full before some half-lives.
        What came within less than an hour is taken for an hour's."""
        elapsed_s = max((now - self._began).total_seconds(), 3600.0)
        filled = 1.0 - math.exp(-math.log(2.0) * elapsed_s / ARRIVAL_HALF_LIFE_S)
        return 3600.0 * math.log(2.0) / ARRIVAL_HALF_LIFE_S / filled

    def _classes(self) -> tuple[ClassState, ...]:
        """Every class there is evidence or traffic for, split into its bands where it has a band model."""
        names = {key.partition("/")[0] for key in (*self.quality.keys, *self._arrivals)} | {UNKNOWN}
        names |= set(self.classifier.classes if self.classifier else ())
        owners: dict[str, str] = {}
        for name in sorted(names):
            model = self.bands.get(name)
            keys = [name] if model is None or model.bands == 1 else [f"{name}/{n}" for n in range(model.bands)]
            owners.update(dict.fromkeys(keys, name))
        return class_states(owners, self._arrivals, self.quality, self.energy_model)

    # Requests

    def select(
        self,
        *,
        tenant: str = "",
        prompt_text: str | None = None,
        prompt_class: str | None = None,
        traits: RequestTraits | None = None,
    ) -> DirectiveDecision:
        """Decide for one request. `prompt_class`: declared by the client. Touches memory only.

        Raises `DirectiveRefusedError` (a `ValueError`) for a pin that is unknown or not allowed.
        """
        entry = self.settings.tenants.get(tenant, self.settings.default_tenant)
        permission = permit(self.settings.levels, entry.rules, traits or RequestTraits())
        name, source, probability = self._class_of(entry, prompt_text, prompt_class)
        key = self._key(name, prompt_text)
        account = self._accounts.get(tenant)
        verdict = account.verdict(self._now()) if account else None
        state = verdict.state if verdict else BudgetState.WITHIN
        plan, reason = self._plan_for(entry, state)
        if permission.fixed is not None:
            shares = tuple(float(n == permission.fixed) for n in range(len(self.settings.levels)))
            reason = permission.reason
        elif state is BudgetState.HARD and entry.budget is not None and entry.budget.on_hard is OnHard.BRIEFEST:
            briefest = max(n for n, allowed in enumerate(permission.allowed) if allowed)
            shares, reason = tuple(float(n == briefest) for n in range(len(self.settings.levels))), Reason.BUDGET
        else:
            mix = plan.mixes.get(key) or plan.mixes.get(name) if plan is not None else None
            wanted = mix.probabilities if mix is not None else (1.0, *[0.0] * (len(self.settings.levels) - 1))
            shares = allowed_probabilities(wanted, permission.allowed)
            if mix is None:
                reason = Reason.NO_PLAN
        chosen = self._drawn(shares)
        would_be = None
        if not self.settings.enforce and permission.reason is not Reason.PINNED:
            would_be, chosen, reason = self.settings.levels.ids[chosen], 0, Reason.OBSERVE_ONLY
        level = self.settings.levels.levels[chosen]
        refuse = state is BudgetState.HARD and entry.budget is not None and entry.budget.on_hard is OnHard.REFUSE
        return DirectiveDecision(
            level_id=level.id,
            level=chosen,
            text=level.text,
            max_tokens=level.max_tokens,
            reason=reason,
            probabilities=dict(zip(self.settings.levels.ids, shares)),
            prompt_class=name,
            class_source=source,
            class_probability=probability,
            key=key,
            tenant=tenant,
            budget=state,
            would_be=would_be,
            refused=refuse and self.settings.enforce,
            retry_after_s=verdict.retry_after_s if verdict else None,
        )

    def _plan_for(self, entry: Tenant, state: BudgetState) -> tuple[MixPlan | None, Reason]:
        if state is not BudgetState.WITHIN and entry.budget is not None:
            return self._brief_plans.get(entry.budget.soft_share, self._plan), Reason.BUDGET
        plan = self._plan
        if entry.quality_floor is not None:
            plan = self._floor_plans.get(entry.quality_floor)
        if plan is not None and plan.strategy is Strategy.OFF:
            return None, Reason.NO_PLAN
        unknown = plan is not None and plan.tier is Tier.UNKNOWN
        return plan, Reason.NO_INTENSITY if unknown else Reason.MIX

    def _class_of(self, entry: Tenant, prompt_text: str | None, declared: str | None) -> tuple[str, str, float | None]:
        named = declared or entry.prompt_class
        if named is not None:
            known = {state.partition("/")[0] for state in self.quality.keys} | set(self.settings.classes)
            # A name without evidence would only make a class of one request; it counts as unknown.
            return (named, "declared", None) if named in known else (UNKNOWN, "declared", None)
        if self.classifier is None or prompt_text is None:
            return UNKNOWN, "unknown", None
        found = self.classifier.predict(prompt_text)
        return found.name, "predicted" if found.name != UNKNOWN else "unknown", found.probability

    def _key(self, name: str, prompt_text: str | None) -> str:
        model = self.bands.get(name)
        if model is None or model.bands == 1:
            return name
        # Without text the middle band stands for the class.
        band = model.bands // 2 if prompt_text is None else int(model.band_of([prompt_text])[0])
        return f"{name}/{band}"

    def _drawn(self, shares: Sequence[float]) -> int:
        point, total = self._draw(), 0.0
        for number, share in enumerate(shares):
            total += share
            if point < total:
                return number
        return max(number for number, share in enumerate(shares) if share > 0.0)

    def apply_directive(self, messages: Sequence[Message], decision: DirectiveDecision) -> list[dict[str, Any]]:
        """A copy of the conversation with the decided directive in force."""
        return insert_directive(messages, self.settings.levels.levels[decision.level])

    def max_tokens(self, asked: int | None, decision: DirectiveDecision) -> int | None:
        return capped_tokens(asked, self.settings.levels.levels[decision.level])

    @property
    def embodied_g_per_s(self) -> float | None:
        profiles = self.settings.embodied
        return sum(entry.g_per_s for entry in profiles) if profiles else None

    def footprint(self, energy: RequestEnergy) -> RequestFootprint:
        """Grams of a finished request at the present reading, with everything the figure rests on."""
        sources = "; ".join(f"{entry.name}: {entry.source}" for entry in self.settings.embodied) or None
        return footprint(
            energy,
            self.chain.reading(),
            pue=self.settings.pue,
            embodied_g_per_s=self.embodied_g_per_s,
            embodied_source=sources,
            market=self.settings.market,
        )

    def observe(self, outcome: Outcome) -> None:
        """Learn from a finished request: lengths, joules, arrivals, budgets, and its class where one was declared."""
        decision = outcome.decision
        self._count_arrival(decision.key)
        self.books.book(decision.key, decision.level, len(self.settings.levels), outcome.total_g)
        account = self._accounts.get(decision.tenant)
        if account is not None:
            account.charge(outcome.total_g, self._now())
        for key in {decision.key, decision.prompt_class}:
            self.energy_model.observe(
                key,
                decision.level,
                prompt_tokens=outcome.prompt_tokens,
                output_tokens=outcome.output_tokens,
                energy_j=outcome.energy.energy_j,
                device_s=outcome.energy.device_s,
            )
        self._learn_class(outcome)

    def _count_arrival(self, key: str) -> None:
        now = self._now()
        decay = 0.5 ** ((now - self._arrivals_at).total_seconds() / ARRIVAL_HALF_LIFE_S)
        self._arrivals = {name: weight * decay for name, weight in self._arrivals.items() if weight * decay > 1e-3}
        self._arrivals[key] = self._arrivals.get(key, 0.0) + 1.0
        self._arrivals_at = now

    def _learn_class(self, outcome: Outcome) -> None:
        if self.classifier is None or outcome.prompt_text is None or len(self._pending) >= MAX_PENDING:
            return
        if outcome.declared_class in self.classifier.classes:
            self._pending.append((outcome.prompt_text, outcome.declared_class))
        if len(self._pending) >= LEARN_BATCH:
            texts, labels = zip(*self._pending)
            self._pending.clear()
            self.classifier.learn(texts, labels)

    # Judging

    def evaluation_due(self, schedule: ForecastSchedule | SproutSchedule | None = None) -> ScheduleDecision:
        """Whether the quality evaluator should run now; with nothing judged yet it should."""
        schedule = schedule or ForecastSchedule()
        now, judged_at = self._now(), self.quality.judged_at
        if judged_at is None:
            return ScheduleDecision(True, "nothing was judged yet")
        age_h = (now - judged_at).total_seconds() / 3600.0
        g_per_kwh = self.chain.reading().g_per_kwh
        if g_per_kwh is None:
            oldest_h = schedule.max_idle_h if isinstance(schedule, SproutSchedule) else schedule.max_age_h
            return ScheduleDecision(age_h >= oldest_h, "no carbon intensity: only age decides")
        if isinstance(schedule, SproutSchedule):
            recent = self.snapshot().window
            return schedule.decide(recent, sum(recent) / max(1, len(recent)), age_h)
        return schedule.decide(g_per_kwh, self.snapshot().ahead, age_h)

    async def learn_quality(self, result: EvaluationResult, fade: float = 0.97) -> None:
        """Take in a run of the evaluator: older judgements weigh `fade` of what they did, lengths are learned too, and
        the bands of each class are fitted anew (in a thread) and swapped in with their duels at once."""
        self.quality.fade(fade)
        self.quality.record(result.duels)
        self.quality.judged_at = self._now()
        for made in result.generations:
            self.energy_model.observe(
                made.key, made.level, prompt_tokens=made.prompt_tokens, output_tokens=made.output_tokens
            )
        if not result.judged:
            return
        self.evidence.add(result.judged)
        models, counts = await asyncio.to_thread(self.evidence.fit)
        for name in {*self.bands, *models}:
            self.quality.set_bands(name, counts.get(name, []))
        self.bands = models

    async def close(self) -> None:
        await self.chain.close()
