"""The seasonal model beats persistence where there are seasons, and its band covers what it says."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from bench._carbon_data import read_year
from carbon.forecast import contiguous_tail, fit, forecast_series, predict
from carbon.intensity import Basis, Boundary, CarbonIntensity, Kind, Methodology
from carbon.series import IntensitySeries

START = datetime(2023, 1, 1, tzinfo=UTC)
DIRECT = Methodology(Basis.AVERAGE, Boundary.DIRECT)


def test_a_pure_season_is_forecast_exactly():
    hours = np.arange(8 * 168)
    weekend = ((START.weekday() + hours // 24) % 7 >= 5) * 30.0
    history = 200 + 50 * np.sin(hours * 2 * np.pi / 24) + weekend
    model = fit(history, START, 48)
    assert model.error.mae_g_per_kwh < 1e-3
    ahead = predict(history[:-48], START, model.weights)
    np.testing.assert_allclose(ahead, history[-48:], atol=1e-3)


def test_too_little_history_is_refused():
    with pytest.raises(ValueError, match="hours of history"):
        fit(np.ones(500), START)
    with pytest.raises(ValueError, match="not finite"):
        fit(np.full(8 * 168, np.nan), START)


@pytest.mark.parametrize("zone", ["TX", "CA", "GB"])
def test_on_recorded_grids_it_beats_persistence_and_its_band_covers(carbon_data, zone):
    values = read_year(carbon_data, zone).values()
    errors = [fit(values[: weeks * 168], START, 72).error for weeks in (10, 20, 35, 50)]
    mine = sum(error.mae_g_per_kwh for error in errors)
    assert mine < 0.9 * sum(error.persistence_mae_g_per_kwh for error in errors)
    model = fit(values[: 20 * 168], START, 72)
    # the band was measured on weeks 18..20; try it on the four weeks after
    inside = []
    for origin in range(20 * 168, 24 * 168, 7):
        ahead = predict(values[:origin], START, model.weights)
        error = values[origin : origin + 72] - ahead
        inside.append((error >= model.low) & (error <= model.high))
    assert 0.6 < np.mean(inside) <= 1.0


def point(hour, value, minutes=60):
    begin = START + timedelta(hours=hour)
    end = begin + timedelta(minutes=minutes)
    return CarbonIntensity("GB", begin, end, value, DIRECT, Kind.MEASURED, "f", START)


def test_short_gaps_are_filled_and_called_interpolated_long_ones_cut():
    points = [point(h, float(h)) for h in range(100) if h not in (20, 60, 61)]
    tail = contiguous_tail(IntensitySeries(points))
    assert len(tail) == 100
    assert tail[60].g_per_kwh == pytest.approx(60.0)
    assert (tail[60].kind, tail[60].method) == (Kind.ESTIMATED, "interpolated")
    cut = contiguous_tail(IntensitySeries(points[:30] + points[40:]))
    assert len(cut) < 70


def test_the_forecast_carries_a_band_and_its_error():
    history = [point(h, 100.0 + (h % 24) * 5 + (h % 7)) for h in range(8 * 168)]
    series = IntensitySeries(history)
    model = fit(series.values(), START, 48)
    ahead = forecast_series(series, model, 48, START)
    assert ahead[0].start == series[len(series) - 1].end
    assert all(p.low is not None and p.high is not None and p.low <= p.g_per_kwh <= p.high for p in ahead)
    assert "held-out error" in (ahead[0].method or "")
