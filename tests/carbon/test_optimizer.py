"""`classed`, `budgeted` and `static`: feasible, floors kept, never worse than a static mix, degenerate inputs named."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from carbon.optimizer.budgeted import Exposure, plan_carbon_budget, plan_quality_budget
from carbon.optimizer.classed import Band, ClassedPolicy, LevelCosts, classed_mixes, trailing_bounds
from carbon.optimizer.hull import solve_certain
from carbon.optimizer.program import Cells, Floor, solve
from carbon.optimizer.static import static_mixes
from carbon.quality import QualityEstimate, from_choices, from_duels, shrunk_choices, z_score

EXACT = 1e-4


def certain(*mean):
    return QualityEstimate(np.array(mean, float), np.zeros((len(mean), len(mean))), 1e9)


def costs(*joules):
    return LevelCosts(tuple(map(float, joules)), tuple(j / 250.0 for j in joules))


@st.composite
def worlds(draw):
    """Grams, volumes, estimates and owners of a few classes over a few hours."""
    levels, count, hours = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 5))
    random = np.random.default_rng(draw(st.integers(0, 10_000)))
    joules = np.sort(random.uniform(50, 2000, (count, levels)))[:, ::-1]
    intensity = random.uniform(20, 500, hours) if draw(st.booleans()) else np.full(hours, 100.0)
    grams = intensity[:, None, None] * joules / 3.6e6
    volumes = random.uniform(0.0, 10.0, (hours, count))
    counts = random.integers(0, draw(st.sampled_from([3, 50, 2000])), (count, levels))
    estimates = [from_choices(row) for row in counts]
    owners = random.integers(0, 2, count).tolist()
    return grams, volumes, estimates, owners, levels


def totals(plan_x, grams, volumes, estimates):
    mean = np.array([estimate.mean for estimate in estimates])
    spent = float((volumes[..., None] * grams * plan_x).sum())
    quality = float((volumes[..., None] * mean * plan_x).sum())
    return spent, quality, float((volumes * mean[:, 0]).sum())


@settings(max_examples=60, deadline=None)
@given(worlds(), st.floats(0.5, 1.1), st.sampled_from([0.5, 0.75, 0.95]), st.booleans())
def test_a_plan_is_feasible_keeps_its_budget_or_stays_at_l0(world, target, confidence, fair):
    grams, volumes, estimates, owners, _ = world
    plan = plan_quality_budget(grams, volumes, estimates, owners, target=target, confidence=confidence, fair=fair)
    assert plan.x.min() >= 0.0
    np.testing.assert_allclose(plan.x.sum(axis=2), 1.0, atol=1e-9)
    owners_array = np.array(owners)
    groups = [owners_array == owner for owner in set(owners)] if fair else [np.ones(len(owners), bool)]
    for group in groups:
        contrast = (volumes[:, group, None] * plan.x[:, group]).sum(axis=0)
        contrast[:, 0] -= target * volumes[:, group].sum(axis=0)
        chosen = [estimate for estimate, member in zip(estimates, group) if member]
        mean = sum(float(c @ e.mean) for c, e in zip(contrast, chosen))
        variance = sum(float(c @ e.covariance @ c) for c, e in zip(contrast, chosen))
        scale = max(1e-9, sum(float(v * e.mean[0]) for v, e in zip(volumes[:, group].sum(axis=0), chosen)))
        kept = (mean - z_score(confidence) * variance**0.5) / scale >= -EXACT
        at_l0 = bool(np.all(plan.x[:, group, 0] == 1.0))
        assert kept or (at_l0 and plan.note is not None)


@settings(max_examples=60, deadline=None)
@given(worlds(), st.floats(0.6, 1.0))
def test_with_the_intensity_known_a_budget_is_never_worse_than_static_at_equal_quality(world, target):
    grams, volumes, estimates, owners, _ = world
    plan = plan_quality_budget(grams, volumes, estimates, owners, target=target)
    _, quality, base = totals(plan.x, grams, volumes, estimates)
    if base <= 1e-9:
        return
    everything = [list(range(len(estimates)))]
    x, reached = static_mixes(grams, volumes, estimates, everything, np.array([min(quality / base, target)]))
    assert reached.all()
    static, _, _ = totals(np.broadcast_to(x, plan.x.shape), grams, volumes, estimates)
    assert plan.grams <= static * (1 + EXACT) + 1e-12


@settings(max_examples=60, deadline=None)
@given(worlds(), st.floats(0.6, 1.0), st.sampled_from([0.5, 0.9]))
def test_every_class_keeps_its_floor_with_confidence(world, share, confidence):
    grams, volumes, estimates, owners, levels = world
    weights = np.maximum(volumes[0], 0.1)
    classes: dict[str, list[Band]] = {}
    for index, (estimate, owner) in enumerate(zip(estimates, owners)):
        joules = grams[0, index] * 3.6e6 / 100.0
        band = Band(LevelCosts(tuple(joules), tuple(joules / 250)), estimate, float(weights[index]))
        classes.setdefault(f"class {owner}", []).append(band)
    mixes = classed_mixes(classes, g_per_kwh=100.0, share=share, confidence=confidence)
    assert set(mixes) == set(classes)
    for name, bands in classes.items():
        contrast = [band.share * (np.array(mix.probabilities) - share * np.eye(levels)[0])
                    for band, mix in zip(bands, mixes[name])]  # fmt: skip
        mean = sum(float(c @ band.quality.mean) for c, band in zip(contrast, bands))
        variance = sum(float(c @ band.quality.covariance @ c) for c, band in zip(contrast, bands))
        scale = sum(band.share * band.quality.mean[0] for band in bands)
        kept = (mean - z_score(confidence) * variance**0.5) / scale >= -EXACT
        assert kept or all(mix.probabilities[0] == 1.0 and mix.note for mix in mixes[name])


def test_an_infeasible_floor_is_l0_and_says_so():
    classes = {"hard": [Band(costs(100, 10), certain(0.6, 0.4))], "easy": [Band(costs(100, 10), certain(0.3, 0.7))]}
    mixes = classed_mixes(classes, g_per_kwh=100, share=1.2, confidence=0.5)
    assert mixes["hard"][0].probabilities == (1.0, 0.0)
    assert "no mix keeps 1.200" in (mixes["hard"][0].note or "")
    assert mixes["easy"][0].probabilities == pytest.approx((0.0, 1.0))
    assert mixes["easy"][0].note is None


@given(st.integers(5, 400), st.integers(5, 400), st.floats(0.7, 1.0), st.sampled_from([0.75, 0.95]))
def test_with_two_levels_exactly_as_much_brevity_is_used_as_the_bound_allows(long, brief, share, confidence):
    estimate = from_choices([long, brief])
    mix = classed_mixes({"c": [Band(costs(100, 10), estimate)]}, g_per_kwh=100, share=share, confidence=confidence)[
        "c"
    ][0]
    steps = np.linspace(0.0, 1.0, 2001)
    kept = [x for x in steps if estimate.lower_bound([1.0 - x, x], share, confidence) >= 0.0]
    assert mix.probabilities[1] == pytest.approx(max(kept, default=0.0), abs=2e-3)


def test_little_evidence_means_little_brevity():
    few, many = from_choices([5, 6, 0]), from_choices([5000, 6000, 0])
    both = {"few": [Band(costs(100, 20, 10), few)], "many": [Band(costs(100, 20, 10), many)]}
    bold = classed_mixes(both, g_per_kwh=100, share=1.0, confidence=0.5)
    careful = classed_mixes(both, g_per_kwh=100, share=1.0, confidence=0.95)
    assert bold["few"][0].probabilities[0] == pytest.approx(0.0, abs=1e-6)
    assert careful["few"][0].probabilities[0] == pytest.approx(1.0, abs=1e-4)
    assert careful["many"][0].probabilities[0] < 0.01


def test_zero_variance_and_one_level():
    one = classed_mixes({"c": [Band(costs(100), certain(0.5))]}, g_per_kwh=100, share=1.0, confidence=0.9)
    assert one["c"][0].probabilities == (1.0,)
    assert one["c"][0].saving == 0.0
    sure = classed_mixes({"c": [Band(costs(100, 10), certain(0.5, 0.5))]}, g_per_kwh=100, share=1.0, confidence=0.9)
    assert sure["c"][0].probabilities == pytest.approx((0.0, 1.0))
    assert classed_mixes({}, g_per_kwh=100, share=1.0) == {}


def test_a_class_without_a_judged_prompt_stays_at_l0():
    classes = {"new": [Band(costs(100, 10, 5), from_choices([0, 0, 0]))]}
    mixes = classed_mixes(classes, g_per_kwh=300, share=0.95, confidence=0.75)
    assert mixes["new"][0].probabilities[0] > 0.85


def test_bands_share_one_floor_and_brevity_goes_where_it_hurts_least():
    bands = [
        Band(costs(100, 10), certain(0.3, 0.5), 0.5),
        Band(costs(100, 10), certain(0.8, 0.4), 0.5),
    ]
    mixes = classed_mixes({"c": bands}, g_per_kwh=100, share=1.0, confidence=0.5)["c"]
    assert mixes[0].probabilities == pytest.approx((0.0, 1.0), abs=1e-6)
    # what the first band gains, (0.5 - 0.3), the second may spend at (0.8 - 0.4) a unit
    assert mixes[1].probabilities[1] == pytest.approx(0.5, abs=1e-4)


def test_equal_intensities_spread_a_budget_like_a_static_mix():
    grams = np.full((4, 1, 1), 100.0) * np.array([1000.0, 200.0]) / 3.6e6
    volumes = np.ones((4, 1))
    plan = plan_quality_budget(grams, volumes, [certain(0.6, 0.4)], [0], target=0.9)
    x, _ = static_mixes(grams, volumes, [certain(0.6, 0.4)], [[0]], np.array([0.9]))
    assert plan.grams == pytest.approx(totals(np.broadcast_to(x, plan.x.shape), grams, volumes, [certain(0.6, 0.4)])[0])


def test_a_budget_is_spent_in_the_dirty_hour():
    grams = np.array([[[1.0, 0.2]], [[5.0, 1.0]]])
    plan = plan_quality_budget(grams, np.ones((2, 1)), [certain(0.5, 0.4)], [0], target=0.9)
    assert plan.x[1, 0, 1] == pytest.approx(1.0)
    assert plan.x[0, 0, 0] == pytest.approx(1.0)


def test_what_was_spent_before_is_booked_and_earned_back():
    estimates = [certain(0.5, 0.4)]
    grams = np.array([[[1.0, 0.2]]])
    books = Exposure.empty(1, 2)
    books.add(0, 1, 10.0)
    assert books.quality(estimates) == pytest.approx(0.8)
    broke = plan_quality_budget(grams, np.array([[10.0]]), estimates, [0], target=0.9, past=books)
    assert broke.x[0, 0, 0] == pytest.approx(1.0)
    rich = Exposure.empty(1, 2)
    rich.add(0, 0, 10.0)
    ample = plan_quality_budget(grams, np.array([[10.0]]), estimates, [0], target=0.9, past=rich)
    assert ample.x[0, 0, 1] == pytest.approx(1.0)
    assert Exposure.empty(1, 2).quality(estimates) is None


def test_fair_budgets_do_not_let_one_class_pay_for_another():
    estimates = [certain(0.6, 0.3), certain(0.3, 0.6)]
    grams = np.array([[[1.0, 0.1], [1.0, 0.1]]])
    pooled = plan_quality_budget(grams, np.ones((1, 2)), estimates, [0, 1], target=1.0)
    fair = plan_quality_budget(grams, np.ones((1, 2)), estimates, [0, 1], target=1.0, fair=True)
    floored = plan_quality_budget(grams, np.ones((1, 2)), estimates, [0, 1], target=1.0, class_floor=0.9)
    assert pooled.x[0, 0, 1] == pytest.approx(1.0)
    assert fair.x[0, 0, 0] == pytest.approx(1.0)
    assert floored.x[0, 0, 1] == pytest.approx(0.2, abs=1e-4)
    assert pooled.grams < floored.grams < fair.grams


def test_a_carbon_budget_buys_the_best_quality_and_says_when_it_cannot_hold():
    estimates = [certain(0.5, 0.4)]
    grams = np.array([[[1.0, 0.2]], [[5.0, 1.0]]])
    plan = plan_carbon_budget(grams, np.ones((2, 1)), estimates, [0], budget_g=3.0)
    assert plan.grams == pytest.approx(3.0)
    assert plan.note is None
    generous = plan_carbon_budget(grams, np.ones((2, 1)), estimates, [0], budget_g=100.0)
    assert generous.quality == pytest.approx(1.0)
    hopeless = plan_carbon_budget(grams, np.ones((2, 1)), estimates, [0], budget_g=0.5, class_floor=0.9)
    assert "exceeded" in (hopeless.note or "")
    assert hopeless.quality == pytest.approx(0.9, abs=1e-3)


def test_overlapping_floors_that_cannot_be_met_together_leave_l0():
    cells = Cells(np.array([[1.0, 0.1], [1.0, 0.1]]), np.ones(2), np.array([0, 1]))
    estimates = [certain(0.5, 0.1), certain(0.5, 0.1)]
    solution = solve(cells, estimates, [Floor(np.array([0, 1]), 1.5), Floor(np.array([0]), 0.5)], joint=True)
    assert solution.unmet == (0, 1)
    np.testing.assert_array_equal(solution.x[:, 0], 1.0)


def test_bounds_and_shares():
    assert trailing_bounds([100.0, 300.0, 200.0]) == (100.0, 300.0)
    assert trailing_bounds(list(range(101)), 0.05, 0.95) == (5.0, 95.0)
    with pytest.raises(ValueError, match="empty"):
        trailing_bounds([])
    policy = ClassedPolicy(tolerance=0.1, quality_floor=0.95)
    assert policy.share(100.0, 100.0, 300.0) == 1.0
    assert policy.share(300.0, 100.0, 300.0) == 0.95
    assert policy.share(900.0, 100.0, 300.0) == 0.95


def test_costs_and_estimates_must_agree_on_levels():
    with pytest.raises(ValueError, match="same levels"):
        classed_mixes({"c": [Band(costs(3, 2, 1), certain(0.5, 0.5))]}, g_per_kwh=100, share=1.0)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 6))
def test_the_hull_finds_what_the_plain_program_finds(seed, levels, count):
    """The same program with a variable for every level and an equality for every cell, as SPROUT would write it."""
    random = np.random.default_rng(seed)
    grams = random.choice([0.1, 0.5, 1.0, 2.0], (count, levels)) * random.uniform(0.5, 1.5)
    quality = random.choice([0.1, 0.3, 0.5, 0.9], (count, levels))
    weight = random.uniform(0.0, 3.0, count)
    groups = [np.arange(count), np.arange(count)[: 1 + count // 2]]
    needed = np.array([random.uniform(0.3, 1.0) * float((weight * quality[:, 0])[group].sum()) for group in groups])
    x, met = solve_certain(grams, quality, weight, groups, needed)
    rows = np.zeros((2, count, levels))
    for row, group in zip(rows, groups):
        row[group] = -(weight[:, None] * quality)[group]
    plain = linprog(
        (weight[:, None] * grams).ravel(), A_ub=rows.reshape(2, -1), b_ub=-needed,
        A_eq=np.kron(np.eye(count), np.ones(levels)), b_eq=np.ones(count), bounds=(0, 1), method="highs",
    )  # fmt: skip
    assert met == plain.success
    if met:
        np.testing.assert_allclose(x.sum(axis=1), 1.0)
        assert x.min() >= 0.0
        assert float((weight[:, None] * grams * x).sum()) == pytest.approx(plain.fun, rel=1e-6, abs=1e-9)
        for group, floor in zip(groups, needed):
            assert float((weight[:, None] * quality * x)[group].sum()) >= floor - 1e-6


class TestQuality:
    @given(st.lists(st.integers(0, 500), min_size=1, max_size=5))
    def test_choices_are_a_distribution_with_a_covariance(self, counts):
        estimate = from_choices(counts)
        assert estimate.mean.sum() == pytest.approx(1.0)
        assert np.linalg.eigvalsh(estimate.covariance).min() > -1e-12

    def test_more_evidence_narrows_the_bound(self):
        bounds = [from_choices([4 * n, 6 * n]).lower_bound([0, 1], 1.0, 0.9) for n in (1, 10, 100)]
        assert bounds == sorted(bounds)
        assert bounds[0] < 0 < bounds[2]

    def test_duels_give_half_to_ties_and_are_unsure_without_data(self):
        estimate = from_duels([10, 0], [80, 0], [10, 0])
        assert estimate.mean == pytest.approx([0.5, 0.5, 0.5])
        assert estimate.covariance[2, 2] > 50 * estimate.covariance[1, 1]
        assert estimate.covariance[0, 0] == 0.0

    def test_groups_that_differ_by_chance_are_drawn_together(self):
        random = np.random.default_rng(3)
        same = random.multinomial(100, [0.4, 0.35, 0.25], size=6)
        drawn = np.array([estimate.mean for estimate in shrunk_choices(same)])
        raw = same / 100
        assert drawn.std(axis=0).max() < 0.5 * raw.std(axis=0).max()
        different = np.array([[90, 5, 5], [10, 80, 10]])
        kept = [estimate.mean for estimate in shrunk_choices(different)]
        assert kept[0][0] > 0.8
        assert kept[1][1] > 0.7

    @pytest.mark.parametrize("confidence", [0.3, 1.0])
    def test_confidence_is_checked(self, confidence):
        with pytest.raises(ValueError, match="confidence"):
            z_score(confidence)
