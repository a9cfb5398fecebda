"""SPROUT's LP against its authors' own hourly results (season 800 of 2023)."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench._carbon_data import FIRST_HOUR, HOURS, ZONES, read_published, read_year, task_mix
from carbon.optimizer.sprout import SPROUT_EMBODIED_G_PER_S, quality_share, sprout_mix

# Means over SPROUT's 5000 prompts a task: joules a request at L0, L1, L2, and the judged share of each level
# (computed from the artifact's request files; mean power 248 W turns joules into seconds).
JOULES = np.array(
    [[1987, 572, 398], [1094, 362, 239], [1342, 273, 166], [1529, 162, 113], [812, 113, 73], [545, 158, 105]], float
)
SHARES = np.array(
    [
        [0.544, 0.256, 0.200],
        [0.564, 0.259, 0.176],
        [0.260, 0.377, 0.363],
        [0.362, 0.398, 0.239],
        [0.312, 0.423, 0.266],
        [0.241, 0.345, 0.414],
    ]
)
WATTS = 248.0
JUDGED_SAMPLE = 1000
PUBLISHED_SAVING = {"TX": 52.0, "CA": 58.3, "SA": 43.8, "NL": 56.3, "GB": 57.1}
PUBLISHED_BASE_G = {"TX": 0.0870, "CA": 0.0717, "SA": 0.0450, "NL": 0.0961, "GB": 0.0561}


def recovered_preference(x: np.ndarray, share: np.ndarray) -> np.ndarray:
    """q1/q0 and q2/q0 of the sample SPROUT held, from mixes that keep its floor exactly: x0 + r1 x1 + r2 x2 = share.

    A level that never appears gets 0, the least-norm solution: it must look no better than it did to SPROUT.
    """
    ratios, *_ = np.linalg.lstsq(x[:, 1:], share - x[:, 0], rcond=1e-9)
    return np.array([1.0, *ratios])


@pytest.fixture(scope="module", params=sorted(ZONES))
def zone(request):
    return request.param


@pytest.fixture(scope="module")
def season(carbon_data, zone):
    """Published results, hourly L0 grams of our own, hourly energy a level, and the year's intensity bounds."""
    year = read_year(carbon_data, zone).values()
    return (
        read_published(carbon_data, zone),
        year[FIRST_HOUR : FIRST_HOUR + HOURS],
        task_mix(carbon_data),
        (float(year.min()), float(year.max())),
    )


def solve(joules, quality, k0, bounds):
    return np.array(
        sprout_mix(
            joules / 3.6e6,
            joules / WATTS,
            np.maximum(quality, 0.0),
            g_per_kwh=float(k0),
            lowest_g_per_kwh=bounds[0],
            highest_g_per_kwh=bounds[1],
        ).probabilities
    )


def periods(published):
    edges = [0, *published.assessed_at, HOURS]
    return [slice(a, b) for a, b in itertools.pairwise(edges) if b - a >= 4]


def test_base_grams_match_the_published_ones_to_four_decimals(season, zone):
    published, intensity, mix, _ = season
    np.testing.assert_allclose(intensity, published.intensity)
    joules = mix @ JOULES[:, 0]
    grams = joules / 3.6e6 * intensity + joules / WATTS * SPROUT_EMBODIED_G_PER_S
    assert round(float(grams.mean()), 4) == PUBLISHED_BASE_G[zone]
    # hourly, the published figure is a mean over 10 000 drawn requests: one standard error is about 0.9 %
    assert np.abs(grams / published.base_grams - 1.0).max() < 0.04


def test_reproduces_the_published_hourly_mixes(season):
    """Between two assessments SPROUT holds one sample q. Told of q by half of the hours, we must predict the rest."""
    published, intensity, mix, bounds = season
    checked = 0
    for period in periods(published):
        share = np.array([quality_share(k0, *bounds, 0.1) for k0 in intensity[period]])
        x = published.x[period]
        told = np.arange(len(x)) % 2 == 0
        levels_used = np.count_nonzero(x[:, 1:].any(axis=0))
        if np.linalg.matrix_rank(x[told, 1:], tol=1e-6) < levels_used:
            continue  # the told hours all have one intensity: q is not determined
        quality = recovered_preference(x[told], share[told])
        for hour in np.flatnonzero(~told):
            solved = solve(mix[period][hour] @ JOULES, quality, intensity[period][hour], bounds)
            np.testing.assert_allclose(solved, x[hour], atol=1e-6)
            checked += 1
    assert checked > 250


def test_reproduces_the_published_savings_with_sprouts_own_sample(season, zone):
    published, intensity, mix, bounds = season
    spent = base = 0.0
    for period in [slice(a, b) for a, b in itertools.pairwise([0, *published.assessed_at, HOURS])]:
        share = np.array([quality_share(k0, *bounds, 0.1) for k0 in intensity[period]])
        quality = recovered_preference(published.x[period], share)
        for k0, weights in zip(intensity[period], mix[period]):
            joules = weights @ JOULES
            grams = joules / 3.6e6 * k0 + joules / WATTS * SPROUT_EMBODIED_G_PER_S
            spent += grams @ solve(joules, quality, k0, bounds)
            base += grams[0]
    # e is re-drawn every hour by SPROUT (10 000 requests); the month's saving moves by less than 0.1 points
    assert 100.0 * (1.0 - spent / base) == pytest.approx(PUBLISHED_SAVING[zone], abs=0.15)
    assert 100.0 * (1.0 - published.grams.sum() / published.base_grams.sum()) == pytest.approx(
        PUBLISHED_SAVING[zone], abs=0.05
    )


def test_the_recovered_sample_is_a_plausible_draw_of_the_true_preferences(season):
    """What the mixes tell of q lies within the noise of 1000 judged prompts around the hour's true q."""
    published, intensity, mix, bounds = season
    z_scores = []
    for period in periods(published):
        share = np.array([quality_share(k0, *bounds, 0.1) for k0 in intensity[period]])
        x = published.x[period]
        if np.linalg.matrix_rank(x[:, 1:], tol=1e-6) < 2:
            continue
        quality = recovered_preference(x, share)
        quality /= quality.sum()
        true = mix[period.start] @ SHARES
        z_scores.extend((quality - true) / np.sqrt(true * (1 - true) / JUDGED_SAMPLE))
    assert abs(np.mean(np.abs(z_scores)) - 0.8) < 0.5
    assert np.max(np.abs(z_scores)) < 5.0


levels = st.integers(1, 5)


@st.composite
def problems(draw):
    n = draw(levels)
    positive = st.floats(1e-6, 1e3)
    vector = st.lists(positive, min_size=n, max_size=n)
    low, high = sorted((draw(st.floats(1.0, 600.0)), draw(st.floats(1.0, 600.0))))
    return draw(vector), draw(vector), draw(vector), low, high, draw(st.floats(low, high)), draw(st.floats(0.0, 1.0))


@given(problems())
def test_the_mix_is_feasible_and_never_costs_more_than_l0(problem):
    energy, time, quality, low, high, k0, tolerance = problem
    mix = sprout_mix(
        energy, time, quality, g_per_kwh=k0, lowest_g_per_kwh=low, highest_g_per_kwh=high, tolerance=tolerance
    )
    assert sum(mix.probabilities) == pytest.approx(1.0)
    assert mix.saving >= 0.0
    assert mix.quality is not None
    assert mix.quality >= quality_share(k0, low, high, tolerance) - 1e-6


def test_equal_bounds_leave_quality_untouched():
    mix = sprout_mix([2.0, 1.0], [2.0, 1.0], [0.6, 0.4], g_per_kwh=300, lowest_g_per_kwh=300, highest_g_per_kwh=300)
    assert mix.probabilities == (1.0, 0.0)


def test_one_level_is_that_level():
    mix = sprout_mix([2.0], [2.0], [1.0], g_per_kwh=300, lowest_g_per_kwh=100, highest_g_per_kwh=300)
    assert mix.probabilities == (1.0,)
    assert mix.saving == 0.0


@pytest.mark.parametrize("energy", [[], [float("nan"), 1.0], [-1.0, 1.0], [1.0]])
def test_refuses_levels_that_are_not_numbers(energy):
    with pytest.raises(ValueError, match=r"energy_kwh|time_s"):
        sprout_mix(energy, [1.0, 1.0], [0.5, 0.5], g_per_kwh=1, lowest_g_per_kwh=0, highest_g_per_kwh=2)
