"""Grams: formulas, unknowns, side-by-side columns, and books that close."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carbon.accounting import (
    Interval,
    MarketFactor,
    PhaseUse,
    RequestEnergy,
    close_books,
    footprint,
    sci,
)
from carbon.embodied import declared, profile
from carbon.intensity import Basis, Boundary, CarbonIntensity, IntensityReading, Kind, Methodology, Tier
from carbon.optimizer.sprout import SPROUT_EMBODIED_G_PER_S
from carbon.reports import LedgerRow, read_ledger, report

NOW = datetime(2025, 3, 4, 12, tzinfo=UTC)
DIRECT = Methodology(Basis.AVERAGE, Boundary.DIRECT)


def reading(g=100.0, tier=Tier.LIVE):
    value = CarbonIntensity("GB", NOW, NOW + timedelta(hours=1), g, DIRECT, Kind.MEASURED, "uk_grid", NOW)
    return IntensityReading(value, tier, 0.0)


def test_a_request_carries_its_whole_provenance():
    energy = RequestEnergy(3.6e6, "measured", 1e6, 2e6, 6e5, device_s=10.0)
    market = MarketFactor(0.0, "PPA, guarantees of origin 2025")
    found = footprint(energy, reading(), pue=1.2, embodied_g_per_s=0.5, embodied_source="h100", market=market)
    assert found.operational_g == pytest.approx(120.0)
    assert found.market_operational_g == 0.0
    assert found.embodied_g == pytest.approx(5.0)
    assert found.total_g == pytest.approx(125.0)
    assert found.reason is None
    assert (found.intensity.tier, found.intensity.source, found.intensity.kind) == ("live", "uk_grid", "measured")
    assert (found.intensity.basis, found.intensity.boundary, found.intensity.zone) == ("average", "direct", "GB")


def test_unknowns_stay_unknown_and_say_why():
    unknown = IntensityReading(None, Tier.UNKNOWN, reason="every source is down")
    market = MarketFactor(50.0, "contract")
    found = footprint(RequestEnergy(7.2e6, "measured"), unknown, market=market)
    assert (found.operational_g, found.embodied_g, found.total_g) == (None, None, None)
    assert found.market_operational_g == pytest.approx(100.0)
    assert "every source is down" in (found.reason or "")
    assert "no embodied profile" in (found.reason or "")
    nothing = footprint(RequestEnergy(None, "no device"), reading(), embodied_g_per_s=1.0)
    assert nothing.operational_g is None
    assert "device time unknown" in (nothing.reason or "")


@pytest.mark.parametrize("pue", [0.9, float("nan"), 9.0])
def test_pue_is_checked(pue):
    with pytest.raises(ValueError, match="PUE"):
        footprint(RequestEnergy(1.0, "measured"), reading(), pue=pue)


amounts = st.floats(0.0, 1e7)


@st.composite
def stretches(draw):
    requests, idle, evaluator, rest = (draw(amounts) for _ in range(4))
    provisioned = draw(st.floats(0.0, 1e5))
    return Interval(
        NOW, provisioned, provisioned * draw(st.floats(0.0, 1.0)), requests + idle + evaluator + rest,
        requests, idle, evaluator, draw(st.none() | st.floats(0.0, 900.0)),
    )  # fmt: skip


@given(st.lists(stretches(), max_size=30), st.floats(1.0, 2.0), st.floats(0.0, 0.1))
def test_the_books_close(intervals, pue, rate):
    """Requests + idle + evaluator + unattributed + embodied is the whole, computed the other way round."""
    books = close_books(intervals, pue=pue, embodied_g_per_s=rate)
    operational = sum(i.total_j / 3.6e6 * pue * i.g_per_kwh for i in intervals if i.g_per_kwh is not None)
    embodied = rate * sum(i.provisioned_s for i in intervals)
    assert books.total_g == pytest.approx(operational + embodied, rel=1e-9, abs=1e-9)
    assert books.energy_j == pytest.approx(sum(i.total_j for i in intervals))
    assert books.unknown_j == pytest.approx(sum(i.total_j for i in intervals if i.g_per_kwh is None))


def test_request_footprints_and_the_books_agree():
    """Grams of single requests, summed, are the requests' line of the period."""
    energies = [RequestEnergy(j, "measured", device_s=s) for j, s in ((1000.0, 2.0), (500.0, 1.0))]
    singles = [footprint(energy, reading(250.0), pue=1.1, embodied_g_per_s=0.002) for energy in energies]
    interval = Interval(NOW, 10.0, 3.0, 2400.0, 1500.0, 600.0, 100.0, 250.0)
    books = close_books([interval], pue=1.1, embodied_g_per_s=0.002)
    assert books.operational.requests_g == pytest.approx(sum(f.operational_g or 0 for f in singles))
    assert books.embodied_requests_g == pytest.approx(sum(f.embodied_g or 0 for f in singles))
    assert books.embodied_idle_g == pytest.approx(7.0 * 0.002)
    assert interval.unattributed_j == pytest.approx(200.0)


def test_attribution_that_exceeds_the_device_is_refused():
    with pytest.raises(ValueError, match="overlaps"):
        Interval(NOW, 10.0, 3.0, 1000.0, 900.0, 200.0)
    with pytest.raises(ValueError, match="busy"):
        Interval(NOW, 10.0, 13.0, 1000.0, 900.0, 0.0)


def test_sci_per_token_keeps_prompt_and_output_apart():
    score = sci(10.0, 2, [PhaseUse(1000, 100, 30.0, 70.0), PhaseUse(1000, 100, 20.0, 80.0)])
    assert score.g_per_request == 5.0
    assert score.g_per_million_prompt_tokens == pytest.approx(2.5 / 2000 * 1e6)
    assert score.g_per_million_output_tokens == pytest.approx(7.5 / 200 * 1e6)
    assert score.g_per_million_tokens == pytest.approx(10.0 / 2200 * 1e6)
    blurred = sci(10.0, 1, [PhaseUse(1000, 100, None, None)])
    assert blurred.g_per_million_prompt_tokens is None
    assert blurred.g_per_million_tokens is not None
    assert sci(0.0, 0, []).g_per_request is None


def test_embodied_profiles_have_the_published_rates():
    assert profile("h100").g_per_s * 1000 == pytest.approx(1.30, abs=0.005)
    whole = profile("h100").g_per_s + profile("server-share-of-8").g_per_s
    assert whole * 1000 == pytest.approx(6.95, abs=0.01)
    assert profile("a100-sprout", 5.0).g_per_s == pytest.approx(SPROUT_EMBODIED_G_PER_S)
    assert profile("h200").method == "estimated"
    assert "estimate" in profile("h200").source
    assert declared(100.0, 5.0).kg == 100.0
    with pytest.raises(ValueError, match="no embodied profile"):
        profile("h900")
    with pytest.raises(ValueError, match="lifetime"):
        declared(1.0, 0.0)


def row(**changes):
    base = LedgerRow(NOW, "a", "m", "math", "L1", "live", 100, 50, 1000.0, 200.0, 800.0, 0.03, None, 0.01)
    return dataclasses.replace(base, **changes)


def test_reports_group_sum_and_count_what_is_missing():
    rows = [row(), row(tenant="b", directive="L0"), row(operational_g=None), row(energy_j=None, operational_g=None)]
    lines = {line.key: line for line in report(rows, ["tenant"])}
    assert lines["a",].requests == 3
    assert lines["a",].operational_g == pytest.approx(0.03)
    assert (lines["a",].without_intensity, lines["a",].without_energy) == (1, 1)
    assert lines["b",].total_g == pytest.approx(0.04)
    assert lines["b",].market_g is None
    assert report(rows, ["directive", "hour"])[0].key == ("L0", "2025-03-04T12:00Z")
    with pytest.raises(ValueError, match="cannot report by"):
        report(rows, ["colour"])


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_ledgers_are_read_with_unknowns(tmp_path, suffix):
    path = tmp_path / f"ledger{suffix}"
    if suffix == ".csv":
        path.write_text("finished_at,tenant,prompt_tokens,output_tokens,energy_j\n2025-03-04T12:00:00Z,a,5,6,\n")
    else:
        path.write_text(
            '{"finished_at": "2025-03-04T12:00:00Z", "tenant": "a", "prompt_tokens": 5, "output_tokens": 6}\n'
        )
    (found,) = read_ledger(path)
    assert (found.tenant, found.output_tokens, found.energy_j) == ("a", 6, None)
    path.write_text("finished_at,prompt_tokens\n2025-03-04T12:00:00Z,5\n" if suffix == ".csv" else '{"tenant": "a"}\n')
    with pytest.raises(ValueError, match="row 1"):
        read_ledger(path)
