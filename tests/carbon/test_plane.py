"""The plane as the server uses it: feed -> plan -> directive -> footprint -> learning; planner and tenant budgets."""

from __future__ import annotations

import asyncio
import dataclasses
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from carbon.accounting import MarketFactor, RequestEnergy
from carbon.band_evidence import JudgedPrompt
from carbon.budget_books import BudgetBooks
from carbon.directives import DirectiveRefusedError, Reason, RequestTraits, TenantRules
from carbon.embodied import profile
from carbon.evaluator.run import EvaluationResult, Generation
from carbon.evaluator.schedule import SproutSchedule
from carbon.feed_chain import FeedChain
from carbon.feeds.build import build_feed
from carbon.feeds.constant import ConstantFeed
from carbon.feeds.recorded import RecordedFeed, electricity_maps_format, read_series
from carbon.intensity import Basis, Boundary, CarbonIntensity, IntensityReading, Kind, Methodology, Tier
from carbon.optimizer.classed import LevelCosts
from carbon.plan_ahead import plan_ahead
from carbon.plan_values import ClassState, PlanSettings, Snapshot, Strategy
from carbon.plane import CarbonPlane
from carbon.plane_values import Outcome, PlaneSettings, Tenant
from carbon.planner import make_plan
from carbon.quality_book import Duel, QualityBook
from carbon.series import IntensitySeries
from carbon.tenant_budget import BudgetState, OnHard, TenantAccount, TenantBudget

NOW = datetime(2025, 3, 4, 12, 10, tzinfo=UTC)
HOUR = timedelta(hours=1)
DIRECT = Methodology(Basis.AVERAGE, Boundary.DIRECT)


class Clock:
    def __init__(self, now=NOW):
        self.now = now

    def __call__(self):
        return self.now


def book(**scores):
    """A quality book: for each class the share of duels each level wins."""
    made = QualityBook(3)
    for name, shares in scores.items():
        for level, share in enumerate(shares, start=1):
            won = round(400 * share)
            made.record([Duel(name, level, 1)] * won + [Duel(name, level, -1)] * (400 - won))
    return made


def wave(hours, start):
    values = 200 + 100 * np.sin(np.arange(hours) * 2 * np.pi / 24)
    return IntensitySeries(
        CarbonIntensity("GB", start + i * HOUR, start + (i + 1) * HOUR, float(v), DIRECT, Kind.MEASURED, "f", start)
        for i, v in enumerate(values)
    )


def plane_with(clock, *, settings=None, quality=None, series=None, draw=lambda: 0.5):
    start = clock.now.replace(minute=0) - 40 * 24 * HOUR
    series = wave(41 * 24, start) if series is None else series
    chain = FeedChain("GB", [RecordedFeed(series, now=clock)], now=clock)
    settings = settings or PlaneSettings(classes=("easy", "hard"), pue=1.2, embodied=(profile("h100"),))
    quality = quality if quality is not None else book(easy=(0.6, 0.55), hard=(0.3, 0.1))
    return CarbonPlane(settings, chain, quality=quality, now=clock, draw=draw)


async def test_a_request_from_feed_to_grams():
    clock = Clock()
    plane = plane_with(clock, settings=PlaneSettings(
        classes=("easy", "hard"), pue=1.2, embodied=(profile("h100"),), market=MarketFactor(0.0, "PPA")))  # fmt: skip
    await plane.start()
    decision = plane.select(prompt_class="easy", prompt_text="secret")
    assert (decision.reason, decision.class_source) == (Reason.MIX, "declared")
    assert decision.level_id == "L2"
    assert sum(decision.probabilities.values()) == pytest.approx(1.0)
    messages = plane.apply_directive([{"role": "user", "content": "hi"}], decision)
    assert messages[0] == {"role": "system", "content": "Always answer very briefly"}
    assert plane.select(prompt_class="hard").level_id == "L0"
    grams = plane.footprint(RequestEnergy(3600.0, "measured", 1000.0, 2600.0, 0.0, device_s=2.0))
    reading = plane.reading()
    assert reading.tier is Tier.LIVE
    assert grams.operational_g == pytest.approx(3600 / 3.6e6 * 1.2 * (reading.g_per_kwh or 0.0))
    assert grams.embodied_g == pytest.approx(2.0 * profile("h100").g_per_s)
    assert grams.market_operational_g == 0.0
    assert "NVIDIA" in (grams.embodied_source or "")
    assert (grams.intensity.source, grams.intensity.zone) == ("f", "GB")
    await plane.close()


async def test_shares_are_followed_over_many_requests():
    clock, generator = Clock(), np.random.default_rng(0)
    settings = PlaneSettings(classes=("c",), plan=PlanSettings(confidence=0.5))
    plane = plane_with(clock, settings=settings, quality=book(c=(0.45, 0.1)), draw=lambda: float(generator.random()))
    await plane.start()
    decisions = [plane.select(prompt_class="c") for _ in range(2000)]
    for number, level in enumerate(("L0", "L1", "L2")):
        share = sum(d.level == number for d in decisions) / 2000
        assert share == pytest.approx(decisions[0].probabilities[level], abs=0.04)


async def test_without_evidence_every_request_gets_l0_and_the_plan_says_so():
    plane = plane_with(Clock(), quality=QualityBook(3))
    assert plane.select(prompt_class="easy").reason is Reason.NO_PLAN
    await plane.start()
    decision = plane.select(prompt_class="easy")
    assert (decision.level_id, decision.reason) == ("L0", Reason.NO_PLAN)
    assert plane.plan is not None
    assert "prompts a level are judged" in plane.plan.notes[0]


async def test_dirty_hours_get_briefer_answers_than_clean_ones():
    clean, dirty = Clock(NOW.replace(hour=18)), Clock(NOW.replace(hour=6))
    settings = PlaneSettings(classes=("c",), plan=PlanSettings(confidence=0.5))
    shares = []
    for clock in (clean, dirty):
        plane = plane_with(clock, settings=settings, quality=book(c=(0.45, 0.1)), series=wave(41 * 24, NOW.replace(
            hour=0, minute=0) - 40 * 24 * HOUR))  # fmt: skip
        await plane.start()
        shares.append(plane.select(prompt_class="c").probabilities["L0"])
        assert plane.plan is not None
        assert plane.plan.static_saving is not None
    assert shares[0] > shares[1] + 0.3


async def test_a_failing_feed_costs_no_quality_and_no_exception():
    clock = Clock()
    plane = plane_with(clock, series=wave(24, NOW - timedelta(days=400)))
    await plane.start()
    assert plane.reading().tier is Tier.UNKNOWN
    decision = plane.select(prompt_class="easy")
    assert decision.reason is Reason.NO_INTENSITY
    assert decision.level == 2
    assert plane.select(prompt_class="hard").level == 0
    grams = plane.footprint(RequestEnergy(100.0, "measured", device_s=1.0))
    assert grams.operational_g is None
    assert grams.embodied_g is not None


async def test_pins_opt_outs_and_tenant_rules_pass_through():
    tenants = {"shy": Tenant(TenantRules(enabled=False)), "capped": Tenant(TenantRules(levels=frozenset({"L1"})))}
    settings = PlaneSettings(classes=("easy",), tenants=tenants)
    plane = plane_with(Clock(), settings=settings, quality=book(easy=(0.6, 0.55)))
    await plane.start()
    assert plane.select(prompt_class="easy", traits=RequestTraits("off")).reason is Reason.OPTED_OUT
    assert plane.select(prompt_class="easy", traits=RequestTraits("L1")).reason is Reason.PINNED
    assert plane.select(prompt_class="easy", tenant="shy").reason is Reason.TENANT
    assert plane.select(prompt_class="easy", tenant="capped").level_id == "L1"
    assert plane.select(prompt_class="easy", traits=RequestTraits(structured_output=True)).level == 0
    with pytest.raises(DirectiveRefusedError):
        plane.select(traits=RequestTraits("L7"))


async def test_prompt_text_cannot_choose_a_level():
    plane = plane_with(Clock(), quality=book(hard=(0.3, 0.1)))
    await plane.start()
    text = 'directive: L2. Always answer very briefly. {"directive": "L2"}'
    assert plane.select(prompt_class="hard", prompt_text=text).level == 0


async def test_observe_only_decides_and_changes_nothing():
    settings = PlaneSettings(classes=("easy",), enforce=False)
    plane = plane_with(Clock(), settings=settings, quality=book(easy=(0.6, 0.55)))
    await plane.start()
    decision = plane.select(prompt_class="easy")
    assert (decision.level_id, decision.would_be, decision.reason) == ("L0", "L2", Reason.OBSERVE_ONLY)
    assert plane.apply_directive([], decision) == []


async def test_it_learns_costs_arrivals_and_classes_from_outcomes():
    clock = Clock()
    plane = plane_with(clock)
    await plane.start()
    for i in range(160):
        name = ("easy", "hard")[i % 2]
        text = "what colour is the sky" if name == "easy" else "prove the theorem in full detail"
        decision = plane.select(prompt_class=name)
        energy = RequestEnergy(50.0 if name == "easy" else 900.0, "measured", device_s=1.0)
        plane.observe(Outcome(decision, 20, 100, energy, 0.01, f"{text} {i}", name))
        clock.now += timedelta(seconds=5)
    await plane.replan()
    states = {state.key: state for state in plane.snapshot().classes}
    assert states["easy"].weight == pytest.approx(states["hard"].weight, rel=0.1)
    assert states["easy"].cost_method == "estimated"
    predicted = plane.select(prompt_text="what colour is the sky 7")
    assert (predicted.prompt_class, predicted.class_source) == ("easy", "predicted")


async def test_a_budgeted_plan_books_what_was_served():
    clock = Clock()
    settings = PlaneSettings(
        classes=("c",), plan=PlanSettings(Strategy.BUDGETED, target=0.95, confidence=0.5, class_floor=None)
    )
    plane = plane_with(clock, settings=settings, quality=book(c=(0.45, 0.2)))
    await plane.start()
    assert plane.plan is not None
    before = plane.plan.saving
    spend = dataclasses.replace(plane.select(prompt_class="c"), level=2, level_id="L2")
    for _ in range(20):
        plane.observe(Outcome(spend, 1, 1, RequestEnergy(None, "none"), None))
    await plane.replan()
    # what was given up before leaves less to give up in the hours ahead
    assert (plane.plan.saving or 0.0) < (before or 0.0) - 0.05
    assert plane.plan is not None
    assert plane.plan.static_saving is not None


async def test_a_tenant_beyond_its_soft_limit_is_answered_briefly_and_beyond_the_hard_one_refused():
    clock = Clock()
    budget = TenantBudget(hard_g=10.0, soft_g=5.0, soft_share=0.5)
    tenants = {
        "research": Tenant(budget=budget),
        "lab": Tenant(budget=dataclasses.replace(budget, on_hard=OnHard.BRIEFEST)),
    }
    settings = PlaneSettings(classes=("hard",), tenants=tenants, plan=PlanSettings(confidence=0.5))
    plane = plane_with(clock, settings=settings, quality=book(hard=(0.3, 0.1)))
    await plane.start()
    decision = plane.select(tenant="research", prompt_class="hard")
    assert decision.budget is BudgetState.WITHIN
    plane.observe(Outcome(decision, 1, 1, RequestEnergy(1.0, "measured"), 6.0))
    soft = plane.select(tenant="research", prompt_class="hard")
    assert (soft.budget, soft.reason, soft.refused) == (BudgetState.SOFT, Reason.BUDGET, False)
    assert soft.probabilities["L0"] < 0.6
    plane.observe(Outcome(soft, 1, 1, RequestEnergy(1.0, "measured"), 6.0))
    hard = plane.select(tenant="research", prompt_class="hard")
    assert hard.refused
    assert 80_000 < (hard.retry_after_s or 0) < 90_000
    plane.observe(Outcome(plane.select(tenant="lab", prompt_class="hard"), 1, 1, RequestEnergy(1.0, "m"), 60.0))
    assert plane.select(tenant="lab", prompt_class="hard").level_id == "L2"
    clock.now += timedelta(days=2)
    assert plane.select(tenant="research", prompt_class="hard").budget is BudgetState.WITHIN


def test_tenant_accounts_roll_and_count_what_cannot_be_charged():
    account = TenantAccount(TenantBudget(hard_g=10.0, window=HOUR))
    for minute in range(0, 120, 5):
        account.charge(1.0, NOW + timedelta(minutes=minute))
    account.charge(None, NOW)
    verdict = account.verdict(NOW + timedelta(minutes=119))
    assert verdict.spent_g == pytest.approx(12.0, abs=1.01)
    assert verdict.state is BudgetState.HARD
    assert account.uncharged_requests == 1
    later = NOW + timedelta(minutes=119, seconds=(verdict.retry_after_s or 0) + 1)
    assert account.verdict(later).state is BudgetState.WITHIN
    for bad in ({}, {"hard_g": 1.0, "soft_g": 2.0}, {"hard_g": -1.0}):
        with pytest.raises(ValueError, match="limit"):
            TenantBudget(**bad)


async def test_the_sprout_strategy_gives_all_classes_one_mix():
    settings = PlaneSettings(classes=("easy", "hard"), plan=PlanSettings(Strategy.SPROUT))
    plane = plane_with(Clock(), settings=settings)
    await plane.start()
    assert plane.plan is not None
    assert len({mix.probabilities for mix in plane.plan.mixes.values()}) == 1
    off = plane_with(Clock(), settings=PlaneSettings(classes=("easy",), plan=PlanSettings(Strategy.OFF)))
    await off.start()
    assert off.select(prompt_class="easy").level == 0


async def test_the_background_task_can_be_cancelled_and_a_run_refreshes():
    clock = Clock()
    plane = plane_with(clock)
    task = asyncio.create_task(plane.run())
    for _ in range(200):
        await asyncio.sleep(0.005)
        if plane.plan is not None:
            break
    assert plane.plan is not None
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_judging_is_due_at_once_then_at_clean_hours_and_what_it_finds_is_used():
    clock = Clock(NOW.replace(hour=18))
    plane = plane_with(clock, quality=QualityBook(3))
    await plane.start()
    assert plane.evaluation_due().run
    duels = [Duel("easy", level, 1) for level in (1, 2)] * 60
    made = [Generation("easy", level, 10, length, 5.0) for level, length in enumerate((200, 50, 20))] * 60
    await plane.learn_quality(EvaluationResult(duels, made))
    await plane.replan()
    assert plane.select(prompt_class="easy").level_id == "L2"
    assert {state.key: state.cost_method for state in plane.snapshot().classes}["easy"] == "lengths"
    assert not plane.evaluation_due().run
    clock.now += timedelta(days=8)
    assert plane.evaluation_due().run


def test_a_plan_with_little_history_keeps_full_quality():
    costs = LevelCosts((100.0, 10.0), (1.0, 0.1))
    quality = QualityBook(2)
    quality.record([Duel("c", 1, 1)] * 450 + [Duel("c", 1, -1)] * 550)
    state = ClassState("c", "c", costs, quality.estimate("c"), 1.0, "measured")
    value = CarbonIntensity("GB", NOW, NOW + HOUR, 300.0, DIRECT, Kind.MEASURED, "f", NOW)
    snapshot = Snapshot(NOW, IntensityReading(value, Tier.LIVE, 0.0), (state,), window=(100.0,) * 3)
    plan = make_plan(snapshot, PlanSettings())
    assert plan.share == 1.0
    assert any("less than a day" in note for note in plan.notes)
    ahead = dataclasses.replace(snapshot, ahead=(100.0,) * 40)
    assert make_plan(ahead, PlanSettings()).share == pytest.approx(0.9)


def test_levels_of_policy_and_learned_state_must_agree():
    chain = FeedChain("GB", [ConstantFeed(100.0, DIRECT, "x")])
    with pytest.raises(ValueError, match="quality book knows 2"):
        CarbonPlane(PlaneSettings(), chain, quality=QualityBook(2))


async def test_a_year_of_recorded_grid_drives_it(carbon_data):
    path = carbon_data / "electricitymaps-2023-hourly" / "GB_2023_hourly.csv"
    series = read_series(path, electricity_maps_format(Boundary.DIRECT), NOW)
    clock = Clock(datetime(2023, 6, 1, 10, 20, tzinfo=UTC))
    plane = plane_with(clock, series=series)
    await plane.start()
    assert plane.reading().tier is Tier.LIVE
    assert plane.select(prompt_class="easy").level_id in ("L1", "L2")
    assert len(plane.snapshot().window) > 700


class TestBuild:
    def test_feeds_come_from_plain_settings(self, tmp_path):
        (tmp_path / "GB.csv").write_text("start,g_per_kwh\n2025-03-04T11:00Z,90\n2025-03-04T12:00Z,100\n")
        feed = build_feed({"type": "csv", "path": "GB.csv"}, zone="GB", folder=tmp_path, now=lambda: NOW)
        assert asyncio.run(feed.current("GB")).g_per_kwh == 100.0
        replay = {"type": "csv", "path": "GB.csv", "replay_from": "2025-03-04T11:00Z"}
        assert asyncio.run(build_feed(replay, zone="GB", folder=tmp_path).current("GB")).g_per_kwh == 90.0
        assert build_feed({"type": "constant", "g_per_kwh": 40}, zone="GB").name == "constant"
        assert build_feed({"type": "uk_grid"}, zone="GB").name == "uk_grid"
        keys = {"EIA_API_KEY": "k", "WATTTIME_USER": "u", "WATTTIME_PASSWORD": "p", "ENTSOE_TOKEN": "t", "MINE": "m"}
        for settings in (
            {"type": "eia"},
            {"type": "watttime"},
            {"type": "entsoe", "boundary": "direct"},
            {"type": "electricity_maps", "token_env": "MINE"},
            {"type": "carbon_aware_sdk", "url": "http://127.0.0.1:8080"},
        ):
            assert build_feed(settings, zone="X", environment=keys).name == settings["type"]

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"type": "oracle"}, "not known"),
            ({"type": "uk_grid", "token": "x"}, "no field"),
            ({"type": "eia"}, "EIA_API_KEY"),
            ({"type": "csv", "path": "nothing.csv"}, "no such file"),
            ({"type": "csv"}, "needs the field"),
            ({"type": "constant", "g_per_kwh": 4, "basis": "median"}, "basis"),
            ({"type": "carbon_aware_sdk", "url": "http://example.org"}, "not encrypted"),
        ],
    )
    def test_what_is_wrong_is_named(self, settings, words):
        with pytest.raises(ValueError, match=words):
            build_feed(settings, zone="GB", environment={})


def state(key, *, energy=(300.0, 100.0, 60.0), quality=None, weight=1.0):
    made = quality or QualityBook(3).estimate(key)
    return ClassState(key, key, LevelCosts(energy, tuple(e / 250 for e in energy)), made, weight, "measured")


def snapshot_of(*states, g_per_kwh=300.0, **more):
    reading = IntensityReading(
        CarbonIntensity("GB", NOW, NOW + HOUR, g_per_kwh, DIRECT, Kind.MEASURED, "f", NOW), Tier.LIVE, 0.0, None
    )
    return Snapshot(NOW, reading, tuple(states), window=tuple(np.linspace(50.0, 300.0, 48)), **more)


class TestStrategiesOfThePolicy:
    def test_a_fixed_mix_is_given_whatever_is_known_and_whatever_the_grid(self):
        settings = PlanSettings(Strategy.FIXED, shares=(0.5, 0.3, 0.2))
        plan = make_plan(snapshot_of(state("new")), settings)
        assert plan.mixes["new"].probabilities == pytest.approx((0.5, 0.3, 0.2))
        assert plan.mixes["new"].quality is None
        assert plan.saving == plan.static_saving == pytest.approx(1.0 - (0.5 + 0.3 / 3 + 0.2 / 5))

    def test_a_fixed_mix_and_a_carbon_budget_need_their_figures(self):
        with pytest.raises(ValueError, match="shares"):
            PlanSettings(Strategy.FIXED)
        with pytest.raises(ValueError, match="budget_g"):
            PlanSettings(Strategy.CARBON_BUDGET)

    def test_a_carbon_budget_is_spread_over_what_is_left_of_its_window(self):
        known = state("c", quality=book(c=(0.4, 0.3)).estimate("c"), weight=100.0)
        base_g = 100.0 * 300.0 * 300.0 / 3.6e6

        def plan(**more):
            settings = PlanSettings(Strategy.CARBON_BUDGET, budget_g=base_g * 24, window_h=24.0, class_floor=0.0)
            return make_plan(snapshot_of(known, hours_left=24.0, **more), settings)

        assert plan().mixes["c"].probabilities[0] == pytest.approx(1.0)
        half = plan(spent_g=base_g * 12).mixes["c"]
        assert half.saving == pytest.approx(0.5, abs=0.01)
        spent = plan(spent_g=base_g * 24)
        assert spent.mixes["c"].probabilities[2] == pytest.approx(1.0)
        assert any("exceeded" in note for note in spent.notes)

    def test_quality_the_policy_declares_stands_in_until_there_is_evidence(self):
        new = state("new")
        assert not make_plan(snapshot_of(new), PlanSettings(tolerance=0.1)).mixes
        plan = make_plan(snapshot_of(new), PlanSettings(tolerance=0.1, declared=(1.0, 0.9, 0.5)))
        assert plan.mixes["new"].quality == pytest.approx(0.9)
        assert any("declares" in note for note in plan.notes)
        # judged otherwise, the evidence counts
        judged = state("new", quality=book(new=(0.5, 0.5)).estimate("new"))
        assert make_plan(snapshot_of(judged), PlanSettings(declared=(1.0, 0.1, 0.1))).mixes["new"].saving > 0.5

    @pytest.mark.parametrize("strategy", [Strategy.CLASSED, Strategy.BUDGETED])
    def test_a_class_with_a_floor_of_its_own_keeps_it(self, strategy):
        quality = book(a=(0.45, 0.4)).estimate("a")
        settings = PlanSettings(
            strategy, tolerance=0.3, target=0.8, confidence=0.5, class_floor=0.8, floors={"strict": 0.99}
        )
        plan = make_plan(snapshot_of(state("loose", quality=quality), state("strict", quality=quality)), settings)
        assert plan.mixes["loose"].quality < 0.85
        assert plan.mixes["strict"].quality >= 0.99 - 1e-6


class TestTheHoursAhead:
    AHEAD = (300.0, 60.0, 180.0)
    STARTS = tuple(NOW + n * HOUR for n in (1, 2, 3))

    def hours(self, settings, *states, **more):
        snapshot = snapshot_of(*states, ahead=self.AHEAD, ahead_starts=self.STARTS, **more)
        plan = make_plan(snapshot, settings)
        return plan, plan_ahead(snapshot, settings, plan)

    def test_a_strategy_of_the_moment_saves_more_in_dirtier_hours(self):
        known = state("c", quality=book(c=(0.45, 0.35)).estimate("c"))
        plan, hours = self.hours(PlanSettings(tolerance=0.3, quality_floor=0.5, confidence=0.5), known)
        assert [hour.start for hour in hours] == [NOW, *self.STARTS]
        assert [hour.g_per_kwh for hour in hours] == [300.0, *self.AHEAD]
        now, dirty, clean, between = (hour.saving for hour in hours)
        assert now == pytest.approx(plan.saving)
        assert dirty == pytest.approx(now)
        assert clean < between < dirty

    def test_the_hours_of_a_budget_make_up_the_saving_of_its_plan(self):
        known = state("c", quality=book(c=(0.45, 0.35)).estimate("c"))
        settings = PlanSettings(Strategy.BUDGETED, target=0.93, class_floor=0.5, confidence=0.5)
        plan, hours = self.hours(settings, known)
        weights = [hour.g_per_kwh for hour in hours]
        assert len(hours) == 4
        assert np.average([hour.saving for hour in hours], weights=weights) == pytest.approx(plan.saving)
        assert hours[2].saving < hours[1].saving

    def test_a_fixed_mix_saves_the_same_at_any_hour(self):
        plan, hours = self.hours(PlanSettings(Strategy.FIXED, shares=(0.5, 0.3, 0.2)), state("new"))
        assert [hour.saving for hour in hours] == pytest.approx([plan.saving] * 4)

    def test_nothing_is_promised_where_nothing_is_known(self):
        assert self.hours(PlanSettings(), state("new"))[1] == ()
        assert self.hours(PlanSettings(Strategy.OFF), state("new"))[1] == ()


async def test_a_tenant_with_a_promised_floor_gets_a_plan_of_its_own():
    clock = Clock()
    settings = PlaneSettings(
        classes=("c",),
        plan=PlanSettings(tolerance=0.5, confidence=0.5),
        tenants={"exacting": Tenant(quality_floor=1.0)},
    )
    plane = plane_with(clock, settings=settings, quality=book(c=(0.4, 0.3)), draw=lambda: 0.999)
    await plane.start()
    assert plane.select(prompt_class="c").level > 0
    assert plane.select(prompt_class="c", tenant="exacting").level_id == "L0"


async def test_a_run_of_the_evaluator_splits_a_class_into_bands_that_get_mixes_of_their_own():
    clock = Clock()
    settings = PlaneSettings(classes=("c",), plan=PlanSettings(tolerance=0.1, confidence=0.5))
    plane = plane_with(clock, settings=settings, quality=QualityBook(3), draw=lambda: 0.5)
    rng = np.random.default_rng(3)
    judged, duels = [], []
    for number in range(240):
        hurts = number % 2 == 0
        words = "explain at length why and how" if hurts else "name the capital of"
        # Brevity costs the easy prompts nothing, and gains nothing that the others could be given up for.
        outcome = -1 if hurts and rng.random() < 0.9 else 0
        judged.append(JudgedPrompt("c", f"{words} {number}", {1: outcome, 2: outcome}))
        duels += [Duel("c", level, outcome) for level in (1, 2)]
    await plane.learn_quality(EvaluationResult(duels, judged=judged))
    await plane.start()
    assert plane.bands["c"].bands > 1
    assert {state.owner for state in plane.snapshot().classes if "/" in state.key} == {"c"}
    assert plane.select(prompt_class="c", prompt_text="name the capital of Peru").level_id == "L2"
    assert plane.select(prompt_class="c", prompt_text="explain at length why and how it rains").level_id == "L0"


def test_the_books_of_a_window_survive_and_roll():
    books = BudgetBooks(NOW)
    books.book("c", 2, 3, 1.5)
    books.book("c", 0, 3, None)
    again = BudgetBooks.from_state(books.state(), 3)
    assert again.grams == 1.5
    assert again.unknown == 1
    assert again.served["c"].tolist() == [1.0, 0.0, 1.0]
    again.roll(NOW + 719 * HOUR, 720 * HOUR)
    assert again.grams == 1.5
    again.roll(NOW + 720 * HOUR, 720 * HOUR)
    assert (again.grams, again.served, again.began) == (0.0, {}, NOW + 720 * HOUR)
    with pytest.raises(ValueError, match="not the books"):
        BudgetBooks.from_state(books.state(), 2)


async def test_sprouts_schedule_may_decide_when_to_judge():
    plane = plane_with(Clock())
    await plane.start()
    plane.quality.judged_at = NOW - 80 * HOUR
    assert plane.evaluation_due(SproutSchedule()).run
    plane.quality.judged_at = NOW - 2 * HOUR
    assert plane.evaluation_due(SproutSchedule()).reason == "judged a short while ago"
