"""A seasonal forecast where the provider gives none, with an error measured on weeks it has not seen.

Hour-of-day means of the past four weeks (weekdays and weekends apart) give the shape. What the grid departs from it
now, on average over the last hours and over the last day, and did at the same hour yesterday, is carried forward by a
ridge regression of its own for every lead time. The band is the empirical error at each lead on held-out weeks.
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
SHAPE_H = TRAIN_WEEKS * HOURS_OF_WEEK
FIT_HOURS = (TRAIN_WEEKS + 2 * TEST_WEEKS) * HOURS_OF_WEEK
FADE_H = 12.0
RIDGE_CHOICES = (0.1, 1.0, 10.0, 100.0)
BAND_QUANTILES = (0.1, 0.9)
FEATURES = 5


@dataclass(frozen=True, slots=True)
class ForecastError:
    """On held-out weeks: mean absolute error (g/kWh), persistence's beside it, and relative to the mean."""

    mae_g_per_kwh: float
    persistence_mae_g_per_kwh: float
    relative: float
    origins: int


@dataclass(frozen=True, slots=True)
class SeasonalModel:
    """`weights` `[horizon, FEATURES]` of the departures; `low`, `high` `[horizon]`: error quantiles at each lead."""

    weights: Array
    low: Array
    high: Array
    error: ForecastError

    @property
    def horizon_h(self) -> int:
        return len(self.low)


def fit(history: Array, first_hour: datetime, horizon_h: int = 168) -> SeasonalModel:
    """Fit the carry-over and measure its error. `history` hourly without gaps, oldest first, from `first_hour` (UTC).

    The last two weeks are held out and only measured on; the ridge is chosen on the last third of what comes before.
    Raises `ValueError` with fewer than `TRAIN_WEEKS + 2 * TEST_WEEKS` weeks.
    """
    if len(history) < FIT_HOURS:
        raise ValueError(f"a seasonal forecast needs {FIT_HOURS} hours of history without gaps, got {len(history)}")
    if not np.all(np.isfinite(history)):
        raise ValueError("the history holds values that are not finite; fill or cut its gaps first")
    test = TEST_WEEKS * HOURS_OF_WEEK
    cut = len(history) - test
    known = _samples(history[:cut], first_hour, range(SHAPE_H, cut - 1, 2), horizon_h)
    split = 2 * len(known.origins) // 3
    early, late = known.part(slice(0, split)), known.part(slice(split, None))
    ridge = min(RIDGE_CHOICES, key=lambda value: late.error(early.weights(value)))
    weights = known.weights(ridge)
    held_out = _samples(history, first_hour, range(cut, len(history) - 1, 3), horizon_h)
    errors = held_out.errors(weights)
    naive = _persistence_errors(history, held_out.origins, 24)
    low, high = _quantiles(errors)
    mae = float(np.nanmean(np.abs(errors[:, :24])))
    error = ForecastError(
        mae_g_per_kwh=mae,
        persistence_mae_g_per_kwh=float(np.nanmean(np.abs(naive))),
        relative=mae / max(float(np.mean(history[-test:])), 1e-9),
        origins=len(held_out.origins),
    )
    return SeasonalModel(weights, low, high, error)


def predict(history: Array, first_hour: datetime, weights: Array, horizon_h: int | None = None) -> Array:
    """g/kWh of the hours after the history's end, as many as `weights` has rows (or the first `horizon_h`)."""
    leads = len(weights) if horizon_h is None else min(horizon_h, len(weights))
    shape, features = _inputs(history, first_hour, len(history), leads)
    return np.asarray(np.maximum(0.0, shape + (features * weights[:leads]).sum(axis=1)))


def fading_weights(horizon_h: int) -> Array:
    """Weights for a history too short to fit on: the present departure, fading with a time constant of 12 h."""
    weights = np.zeros((horizon_h, FEATURES))
    weights[:, 0] = np.exp(-np.arange(1, horizon_h + 1) / FADE_H)
    return weights


@dataclass(frozen=True, slots=True)
class _Samples:
    """`features` `[n, horizon, FEATURES]`; `target` `[n, horizon]`: departure from the shape, NaN beyond the data."""

    origins: Array
    features: Array
    target: Array

    def part(self, rows: slice) -> _Samples:
        return _Samples(self.origins[rows], self.features[rows], self.target[rows])

    def weights(self, ridge: float) -> Array:
        found = np.zeros((self.features.shape[1], FEATURES))
        scale = float(np.nanstd(self.target)) or 1.0
        for lead in range(len(found)):
            seen = np.isfinite(self.target[:, lead])
            if seen.sum() < FEATURES:
                found[lead] = found[lead - 1] if lead else 0.0
                continue
            x = self.features[seen, lead] / scale
            y = self.target[seen, lead] / scale
            penalty = ridge * np.eye(FEATURES)
            found[lead] = np.linalg.solve(x.T @ x + penalty, x.T @ y)
        return found

    def errors(self, weights: Array) -> Array:
        return np.asarray(self.target - np.einsum("nhf,hf->nh", self.features, weights))

    def error(self, weights: Array) -> float:
        return float(np.nanmean(np.abs(self.errors(weights))[:, :24]))


def _samples(history: Array, first_hour: datetime, origins: range, horizon_h: int) -> _Samples:
    features = np.zeros((len(origins), horizon_h, FEATURES))
    target = np.full((len(origins), horizon_h), np.nan)
    for row, origin in enumerate(origins):
        shape, features[row] = _inputs(history[:origin], first_hour, origin, horizon_h)
        actual = history[origin : origin + horizon_h]
        target[row, : len(actual)] = actual - shape[: len(actual)]
    return _Samples(np.array(origins, dtype=np.float64), features, target)


def _inputs(history: Array, first_hour: datetime, end: int, horizon_h: int) -> tuple[Array, Array]:
    """The shape of the hours ahead `[horizon]`, and the departures to carry forward `[horizon, FEATURES]`."""
    start = max(0, end - SHAPE_H)
    window = history[start:end]
    slots = _slots(first_hour, start, end + horizon_h)
    seen, ahead = slots[: end - start], slots[end - start :]
    count = np.bincount(seen, minlength=48)
    total = np.bincount(seen, weights=window, minlength=48)
    shape = np.where(count > 0, total / np.maximum(count, 1), window.mean())
    departure = window - shape[seen]
    day = departure[-24:]
    same_hour = np.resize(day, horizon_h) if len(day) == 24 else np.zeros(horizon_h)
    features = np.empty((horizon_h, FEATURES))
    features[:, 0] = departure[-1]
    features[:, 1] = departure[-3:].mean()
    features[:, 2] = day.mean()
    features[:, 3] = same_hour
    features[:, 4] = departure[-72:].mean()
    return shape[ahead], features


def _slots(first_hour: datetime, start: int, stop: int) -> NDArray[np.int64]:
    hours = np.arange(start, stop) + first_hour.hour
    weekday = (first_hour.weekday() + hours // 24) % 7
    return np.asarray(hours % 24 + 24 * (weekday >= 5), dtype=np.int64)


def _persistence_errors(history: Array, origins: Array, horizon_h: int) -> Array:
    errors = np.full((len(origins), horizon_h), np.nan)
    for row, origin in enumerate(origins.astype(np.int64)):
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
    ahead = predict(values, first, model.weights, horizon_h)
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
