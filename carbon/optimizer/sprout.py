"""SPROUT's directive optimizer as published: one mix for all prompts, re-solved each hour.

Source: Li et al., "SPROUT: Green Generative AI with Carbon-Efficient LLM Inference", EMNLP 2024
(aclanthology.org/2024.emnlp-main.1215); formula as in the authors' artifact boringlee24/EMNLP24_Sprout.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linprog

from carbon.optimizer.mix import DirectiveMix, check_levels, mix_of, only_level

SPROUT_TOLERANCE = 0.1
SPROUT_EMBODIED_G_PER_S = 26_356.568 / (5 * 365 * 24 * 3600)


def quality_share(intensity: float, lowest: float, highest: float, tolerance: float) -> float:
    """The share of L0's quality to keep: 1 at the cleanest intensity known, `1 - tolerance` at the dirtiest.

    Intensities beyond the bounds count as the bound (the published code never meets them: its bounds are the
    year's, in hindsight). Equal bounds leave no room: 1.
    """
    if not 0.0 <= tolerance <= 1.0:
        raise ValueError(f"tolerance must be between 0 and 1, got {tolerance:g}")
    if highest < lowest:
        raise ValueError(f"the highest intensity {highest:g} is below the lowest {lowest:g}")
    if highest == lowest:
        return 1.0
    position = min(1.0, max(0.0, (intensity - lowest) / (highest - lowest)))
    return 1.0 - tolerance * position


def sprout_mix(
    energy_kwh: Sequence[float],
    time_s: Sequence[float],
    preference: Sequence[float],
    *,
    g_per_kwh: float,
    lowest_g_per_kwh: float,
    highest_g_per_kwh: float,
    tolerance: float = SPROUT_TOLERANCE,
    embodied_g_per_s: float = SPROUT_EMBODIED_G_PER_S,
) -> DirectiveMix:
    """Minimise `k0 eᵀx + k1 pᵀx` subject to `qᵀx >= (1 - tolerance * position(k0)) q0`, `Σx = 1`, `0 <= x <= 1`.

    `energy_kwh`, `time_s`: mean of a request at each level; `preference`: share of judged prompts whose best answer
    was that level. Always feasible, because x = L0 is.
    """
    energy = check_levels("energy_kwh", energy_kwh)
    time = check_levels("time_s", time_s, energy.size)
    quality = check_levels("preference", preference, energy.size)
    grams = g_per_kwh * energy + embodied_g_per_s * time
    share = quality_share(g_per_kwh, lowest_g_per_kwh, highest_g_per_kwh, tolerance)
    # HiGHS' tolerances are absolute and grams of a request are around 1e-2: the objective is brought to 0..1,
    # which moves no optimum because the probabilities sum to 1.
    spread = float(np.ptp(grams)) or 1.0
    solved = linprog(
        (grams - grams.min()) / spread,
        A_ub=-quality[np.newaxis, :],
        b_ub=[-share * quality[0]],
        A_eq=np.ones((1, energy.size)),
        b_eq=[1.0],
        bounds=(0.0, 1.0),
        method="highs",
    )
    assert solved.success, f"L0 alone is feasible, yet HiGHS says: {solved.message}"
    mix = mix_of(solved.x, grams, quality)
    return mix if mix.saving >= 0.0 else only_level(0, grams, quality)
