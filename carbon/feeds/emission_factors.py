"""Grams of CO2-equivalent per kWh of a fuel, lifecycle and direct, and the intensity of a generation mix.

Source: default factors of electricitymaps-contrib (`config/defaults.yaml`). Storage is left out of the mix: what it
gives back was generated, and counted, before.
"""

from __future__ import annotations

from collections.abc import Mapping

from carbon.intensity import Boundary

FACTORS: Mapping[Boundary, Mapping[str, float]] = {
    Boundary.LIFECYCLE: {
        "coal": 820.0,
        "gas": 490.0,
        "oil": 650.0,
        "biomass": 230.0,
        "geothermal": 38.0,
        "hydro": 24.0,
        "nuclear": 12.0,
        "solar": 45.0,
        "wind": 11.0,
        "unknown": 700.0,
    },
    Boundary.DIRECT: {
        "coal": 760.0,
        "gas": 370.0,
        "oil": 406.0,
        "biomass": 0.0,
        "geothermal": 0.0,
        "hydro": 0.0,
        "nuclear": 0.0,
        "solar": 0.0,
        "wind": 0.0,
        "unknown": 575.0,
    },
}

MAX_UNKNOWN_SHARE = 0.5


def intensity_of_mix(megawatts: Mapping[str, float], boundary: Boundary) -> float:
    """Σ factor * power / Σ power in g/kWh. Negative power (a plant's own use) counts as none.

    Raises `ValueError` for a fuel without a factor, for no generation at all, and for a mix that is mostly unknown.
    """
    factors = FACTORS[boundary]
    unknown_names = sorted(set(megawatts) - set(factors))
    if unknown_names:
        raise ValueError(f"no emission factor for {', '.join(unknown_names)}")
    power = {fuel: max(0.0, value) for fuel, value in megawatts.items()}
    total = sum(power.values())
    if total <= 0.0:
        raise ValueError("the mix holds no generation")
    if power.get("unknown", 0.0) > MAX_UNKNOWN_SHARE * total:
        raise ValueError("most of the generation is of unknown kind; its intensity would be a guess")
    return sum(factors[fuel] * value for fuel, value in power.items()) / total
