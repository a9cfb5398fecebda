"""Values of carbon intensity: units, intervals, and what may not be mixed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carbon.intensity import (
    Basis,
    Boundary,
    CarbonIntensity,
    IncomparableError,
    IntensityReading,
    Kind,
    Methodology,
    Tier,
    as_utc,
    to_g_per_kwh,
)

DIRECT = Methodology(Basis.AVERAGE, Boundary.DIRECT)
LIFECYCLE = Methodology(Basis.AVERAGE, Boundary.LIFECYCLE)
MARGINAL = Methodology(Basis.MARGINAL, Boundary.DIRECT)


def value(start, g=100.0, methodology=DIRECT, minutes=60, **extra):
    return CarbonIntensity(
        "GB", start, start + timedelta(minutes=minutes), g, methodology, Kind.MEASURED, "t", start, **extra
    )


@given(st.floats(0.0, 10_000.0), st.sampled_from(["lbs_co2_per_mwh", "lbs/MWh", "lbCO2/MWh"]))
def test_pounds_per_mwh_are_converted_without_rounding_the_constant(lbs, unit):
    assert to_g_per_kwh(lbs, unit) == pytest.approx(lbs * 0.45359237)


def test_mass_per_energy_units_agree():
    assert to_g_per_kwh(0.2, "kg/kWh") == to_g_per_kwh(200.0, "kg/MWh") == to_g_per_kwh(200.0, "gCO₂eq/kWh") == 200.0


@pytest.mark.parametrize("unit", ["percentile", "", "g/MJ", "index", "MW"])
def test_unknown_units_are_refused(unit):
    with pytest.raises(ValueError, match="not a known carbon intensity"):
        to_g_per_kwh(50.0, unit)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0, 5001.0])
def test_impossible_values_are_refused(bad, noon):
    with pytest.raises(ValueError, match="intensity"):
        value(noon, bad)


@pytest.mark.parametrize("other", [LIFECYCLE, MARGINAL])
def test_basis_and_boundary_are_never_compared_across(other, noon):
    with pytest.raises(IncomparableError, match="cannot be mixed"):
        value(noon).compare(value(noon, methodology=other))
    assert value(noon, 120.0).compare(value(noon, 100.0)) == 20.0


def test_intervals_are_half_open(noon):
    hour = value(noon)
    assert hour.holds_at(noon)
    assert not hour.holds_at(noon + timedelta(hours=1))


def test_naive_or_local_times_are_refused(noon):
    with pytest.raises(ValueError, match="no zone"):
        as_utc(datetime(2025, 1, 1))
    with pytest.raises(ValueError, match="aware UTC"):
        value(noon.astimezone(timezone(timedelta(hours=1))))
    with pytest.raises(ValueError, match="empty"):
        value(noon, minutes=0)
    assert as_utc(noon.astimezone(timezone(timedelta(hours=1)))).tzinfo is UTC


def test_a_reading_without_a_value_is_unknown_and_nothing_else(noon):
    assert IntensityReading(None, Tier.UNKNOWN, reason="no feed").g_per_kwh is None
    with pytest.raises(ValueError, match="unknown"):
        IntensityReading(None, Tier.LIVE)
    with pytest.raises(ValueError, match="unknown"):
        IntensityReading(value(noon), Tier.UNKNOWN)
