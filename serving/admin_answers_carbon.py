"""From the carbon plane and the evaluator to the admin API's bodies."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence

from msgspec import ValidationError, convert

from carbon.intensity import CarbonIntensity
from carbon.quality import z_score
from serving import admin_schema as schema
from serving.admin_values import parsed, unix_s
from serving.ledger.reader import Row
from serving.planes_carbon import SteeredCarbonPlane
from serving.quality_evaluator import QualityEvaluator

CONFIDENCE = 0.95
"""One-sided: the interval shown holds 90 %."""


def intensity_of(plane: SteeredCarbonPlane) -> schema.Intensity:
    reading = plane.reading()
    value = reading.intensity
    return schema.Intensity(
        zone=value.zone if value else plane.chain.zone,
        g_per_kwh=reading.g_per_kwh,
        tier=str(reading.tier),
        kind=str(value.kind) if value else None,
        source=value.source if value else None,
        basis=str(value.methodology.basis) if value else None,
        boundary=str(value.methodology.boundary) if value else None,
        mix=str(value.methodology.mix) if value else None,
        start_unix_s=unix_s(value.start) if value else None,
        end_unix_s=unix_s(value.end) if value else None,
        age_s=reading.age_s,
        reason=reading.reason,
        pue=plane.settings.pue,
    )


def point_of(value: CarbonIntensity) -> schema.ForecastPoint:
    return schema.ForecastPoint(value.start.timestamp(), value.end.timestamp(), value.g_per_kwh, value.low, value.high)


def forecast_of(plane: SteeredCarbonPlane) -> schema.ForecastState | None:
    found = plane.chain.forecast()
    if found is None:
        return None
    relative = found.model.error.relative if found.model is not None else None
    return schema.ForecastState(
        found.source, found.made_at.timestamp(), relative, [point_of(point) for point in found.series]
    )


def plan_of(plane: SteeredCarbonPlane) -> schema.PlanState | None:
    plan = plane.plan
    if plan is None:
        return None
    known = {one.key: one for one in plane.snapshot().classes}
    ids = plane.settings.levels.ids
    mixes = []
    for key, mix in plan.mixes.items():
        of_class = known.get(key)
        mixes.append(
            schema.ClassMix(
                key=key,
                probabilities=dict(zip(ids, mix.probabilities)),
                saving=mix.saving,
                quality=mix.quality,
                note=mix.note,
                cost_method=of_class.cost_method if of_class else None,
                weight=of_class.weight if of_class else None,
            )
        )
    return schema.PlanState(
        strategy=str(plan.strategy),
        made_unix_s=plan.made_at.timestamp(),
        g_per_kwh=plan.g_per_kwh,
        tier=str(plan.tier),
        saving=plan.saving,
        static_saving=plan.static_saving,
        mixes=mixes,
        notes=list(plan.notes),
        ahead=[
            schema.PlannedHourState(hour.start.timestamp(), hour.g_per_kwh, hour.saving) for hour in plane.planned_hours
        ],
    )


def evaluator_of(
    plane: SteeredCarbonPlane, evaluator: QualityEvaluator, prompts: Mapping[str, int], past: Sequence[Row]
) -> schema.EvaluatorState:
    """`prompts`: kept, by class. `past`: audit rows of earlier runs, newest first; those of this process come first."""
    due, book = evaluator.due(), plane.quality
    ids = plane.settings.levels.ids
    entries = []
    for key in book.keys:
        estimate = book.estimate(key)
        base = float(estimate.mean[0])
        for level in range(1, min(estimate.levels, len(ids))):
            relative = float(estimate.mean[level]) / base if base > 0 else None
            reach = z_score(CONFIDENCE) * math.sqrt(max(0.0, float(estimate.covariance[level, level]))) / base
            entries.append(
                schema.QualityEntry(
                    key=key,
                    level_id=ids[level],
                    duels=book.duels(key),
                    relative_quality=relative,
                    low=max(0.0, relative - reach) if relative is not None else None,
                    high=relative + reach if relative is not None else None,
                )
            )
    runs = list(reversed(evaluator.runs))
    earliest = min((run.started_unix_s for run in runs), default=math.inf)
    for row in past:
        with contextlib.suppress(ValidationError):
            run = convert(parsed(row["inputs"]), schema.EvaluatorRunState)
            if run.started_unix_s < earliest:
                runs.append(run)
    return schema.EvaluatorState(
        due=due.run,
        reason=due.reason,
        judged_unix_s=unix_s(book.judged_at),
        quality=entries,
        running=evaluator.running,
        waiting_for=evaluator.waiting_for,
        prompts=dict(prompts),
        runs=runs,
    )


def feeds_of(plane: SteeredCarbonPlane) -> schema.FeedList:
    feeds = [
        schema.FeedHealthState(
            name=one.name,
            last_success_unix_s=unix_s(one.last_success),
            last_error=one.last_error,
            failures=one.failures,
            not_before_unix_s=unix_s(one.not_before),
        )
        for one in plane.chain.health
    ]
    return schema.FeedList(plane.chain.zone, feeds)
