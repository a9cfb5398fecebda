"""A seasonal forecast where the provider gives none, with an error measured on weeks it has not seen.

Hour-of-day means of the past weeks (weekdays and weekends apart) give the shape; the last day's departure from that
shape fades out exponentially. The band is the empirical error at each lead time on held-out weeks.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from carbon.intensity import CarbonIntensity, Kind
from carbon.series import IntensitySeries

Array = NDArray[np.float64]

HOURS_OF_WEEK = 168
TRAIN_WEEKS = 4
TEST_WEEKS = 2
FADE_CHOICES_H = (3.0, 6.0, 12.0, 24.0, 48.0)
BAND_QUANTILES = (0.1, 0.9)


@dataclass(frozen=True, slots=True)
class ForecastError:
    """On held-out weeks: mean absolute error (g/kWh), persistence's beside it, and relative to the mean."""

    mae_g_per_kwh: float
    persistence_mae_g_per_kwh: float
    relative: float
    origins: int


@dataclass(frozen=True, slots=True)
class SeasonalModel:
    """`fade_h`: time constant of the last departure; `low`, `high` `[horizon]`: error quantiles at each lead hour."""

    fade_h: float
    low: Array
    high: Array
    error: ForecastError

    @property
    def horizon_h(self) -> int:
        return len(self.low)


def fit(history: Array, first_hour: datetime, horizon_h: int = 168) -> SeasonalModel:
    """Choose the fade and measure the band. `history` hourly without gaps, oldest first, from `first_hour` (UTC).

    The last two weeks are held out: the fade is chosen on the two before them, the error and band are measured on
    them. Raises `ValueError` with fewer than `TRAIN_WEEKS + 2 * TEST_WEEKS` weeks.
    """
    needed = (TRAIN_WEEKS + 2 * TEST_WEEKS) * HOURS_OF_WEEK
    if len(history) < needed:
        raise ValueError(f"a seasonal forecast needs {needed} hours of history without gaps, got {len(history)}")
    if not np.all(np.isfinite(history)):
        raise ValueError("the history holds values that are not finite; fill or cut its gaps first")
    test = TEST_WEEKS * HOURS_OF_WEEK
    choose = range(len(history) - 2 * test, len(history) - test, 6)
    fade = min(FADE_CHOICES_H, key=lambda f: float(np.nanmean(np.abs(_errors(history, first_hour, choose, 24, f)))))
    held_out = range(len(history) - test, len(history) - 1, 3)
    errors = _errors(history, first_hour, held_out, horizon_h, fade)
    day = errors[:, :24]
    naive = _persistence_errors(history, held_out, 24)
    low, high = _quantiles(errors)
    error = ForecastError(
        mae_g_per_kwh=float(np.nanmean(np.abs(day))),
        persistence_mae_g_per_kwh=float(np.nanmean(np.abs(naive))),
        relative=float(np.nanmean(np.abs(day)) / np.mean(history[-test:])),
        origins=len(held_out),
    )
    return SeasonalModel(fade, low, high, error)


def predict(history: Array, first_hour: datetime, fade_h: float, horizon_h: int) -> Array:
    """g/kWh of the `horizon_h` hours after the history's end."""
    end = len(history)
    start = max(0, end - TRAIN_WEEKS * HOURS_OF_WEEK)
    window = history[start:]
    slots = _slots(first_hour, start, end + horizon_h)
    seen, ahead = slots[: end - start], slots[end - start :]
    total = np.bincount(seen, weights=window, minlength=48)
    count = np.bincount(seen, minlength=48)
    shape = np.where(count > 0, total / np.maximum(count, 1), window.mean())
    recent = min(6, len(window))
    weights = np.exp(-np.arange(recent)[::-1] / 2.0)
    departure = float(np.average(window[-recent:] - shape[seen[-recent:]], weights=weights))
    faded = departure * np.exp(-np.arange(1, horizon_h + 1) / fade_h)
    return np.maximum(0.0, shape[ahead] + faded)


def _slots(first_hour: datetime, start: int, stop: int) -> NDArray[np.int64]:
    hours = np.arange(start, stop) + first_hour.hour
    weekday = (first_hour.weekday() + hours // 24) % 7
    return np.asarray(hours % 24 + 24 * (weekday >= 5), dtype=np.int64)


def _errors(history: Array, first_hour: datetime, origins: range, horizon_h: int, fade_h: float) -> Array:
    """Actual minus forecast, `[origins, horizon]`, NaN where the history ends before the lead time."""
    errors = np.full((len(origins), horizon_h), np.nan)
    for row, origin in enumerate(origins):
        actual = history[origin : origin + horizon_h]
        errors[row, : len(actual)] = actual - predict(history[:origin], first_hour, fade_h, horizon_h)[: len(actual)]
    return errors


def _persistence_errors(history: Array, origins: range, horizon_h: int) -> Array:
    errors = np.full((len(origins), horizon_h), np.nan)
    for row, origin in enumerate(origins):
        actual = history[origin : origin + horizon_h]
        errors[row, : len(actual)] = actual - history[origin - 1]
    return errors


def _quantiles(errors: Array) -> tuple[Array, Array]:
    """Error quantiles a lead hour, over a window of leads so that few origins give a smooth band that only widens."""
    lows: list[float] = []
    highs: list[float] = []
    for lead in range(errors.shape[1]):
        around = errors[:, max(0, lead - 2) : lead + 3]
        around = around[np.isfinite(around)]
        low, high = np.quantile(around, BAND_QUANTILES) if around.size else (lows[-1], highs[-1])
        lows.append(min(float(low), lows[-1] if lows else 0.0))
        highs.append(max(float(high), highs[-1] if highs else 0.0))
    return np.array(lows), np.array(highs)


def forecast_series(series: IntensitySeries, model: SeasonalModel, horizon_h: int, now: datetime) -> IntensitySeries:
    """The hours after the series' last as values of kind FORECAST with a band. The series is resampled to hours."""
    hourly = contiguous_tail(series)
    values, first = hourly.values(), hourly[0].start
    last = hourly[len(hourly) - 1]
    ahead = predict(values, first, model.fade_h, horizon_h)
    points = []
    for lead, value in enumerate(ahead):
        start = last.end + timedelta(hours=lead)
        place = min(lead, model.horizon_h - 1)
        points.append(
            CarbonIntensity(
                last.zone,
                start,
                start + timedelta(hours=1),
                float(value),
                last.methodology,
                Kind.FORECAST,
                f"seasonal model on {last.source}",
                now,
                last.end,
                f"held-out error {model.error.mae_g_per_kwh:.1f} g/kWh over 24 h",
                max(0.0, float(value + model.low[place])),
                float(value + model.high[place]),
            )
        )
    return IntensitySeries(points)


def contiguous_tail(series: IntensitySeries, max_filled_h: int = 3) -> IntensitySeries:
    """The hourly series from the last long gap on; gaps of up to `max_filled_h` hours are filled linearly.

    Filled hours are of kind ESTIMATED with method `interpolated`.
    """
    hourly = list(series.resampled(3600))
    if not hourly:
        raise ValueError("the history holds no complete hour")
    tail = [hourly[-1]]
    for point in reversed(hourly[:-1]):
        later = tail[-1]
        missing = round((later.start - point.end).total_seconds() / 3600)
        if missing > max_filled_h:
            break
        for step in range(missing, 0, -1):
            start = point.end + timedelta(hours=step - 1)
            part = step / (missing + 1)
            value = point.g_per_kwh + part * (later.g_per_kwh - point.g_per_kwh)
            tail.append(
                CarbonIntensity(
                    point.zone,
                    start,
                    start + timedelta(hours=1),
                    value,
                    point.methodology,
                    Kind.ESTIMATED,
                    point.source,
                    point.fetched_at,
                    method="interpolated",
                )
            )
        tail.append(point)
    return IntensitySeries(reversed(tail))
