"""From live objects and ledger rows to the admin API's bodies."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, cast

from msgspec import ValidationError, convert

from carbon.intensity import CarbonIntensity
from carbon.quality import z_score
from power.messages import Actuation
from power.plane import PowerPlane
from power.plane_status import PlaneStatus
from power.quantities import Method, weakest
from serving import admin_schema as schema
from serving.admin_context import AdminContext
from serving.admin_errors import shown
from serving.control_plane import ControlPlane
from serving.ledger.reader import Row
from serving.ledger.rows import HoldRow
from serving.planes_carbon import SteeredCarbonPlane
from serving.policy.store import Active
from serving.quality_evaluator import QualityEvaluator

CONFIDENCE = 0.95
"""One-sided: the interval shown holds 90 %."""


def unix_s(moment: datetime | None) -> float | None:
    return moment.timestamp() if moment is not None else None


def seconds(micros: int | None) -> float | None:
    return micros / 1e6 if micros is not None else None


def state_of(context: AdminContext) -> schema.State:
    control, power = context.control, context.control.power
    status = context.sampler.status
    return schema.State(
        version=context.version,
        now_unix_s=time.time(),
        started_unix_s=context.started_unix_s,
        engine=_engine(context),
        latency=_latency(context),
        power=_power(power, status) if power is not None and status is not None else None,
        intensity=intensity_of(control.carbon) if control.carbon is not None else None,
        policy=_summary(control.active, control) if control.active is not None else None,
        hold=hold_now(context),
        ledger=_ledger(context),
        alarms=[schema.Alarm(note.source, note.text, note.since_unix_s) for note in control.alarms.notes()],
        simulated=power is not None and any(device.info.method is Method.SIMULATED for device in power.devices),
    )


def _engine(context: AdminContext) -> schema.EngineState:
    engine = context.service.engine
    info, health, stats = engine.info, engine.health, engine.stats
    return schema.EngineState(
        ready=health.ready,
        reason=health.reason,
        model=info.model_id,
        device=info.device,
        weight_format=info.weight_format,
        max_model_len=info.max_model_len,
        max_num_seqs=info.max_num_seqs,
        max_num_batched_tokens=info.max_num_batched_tokens,
        token_budget=stats.token_budget if stats else None,
        running=stats.running if stats else None,
        waiting=stats.waiting if stats else None,
        kv_blocks_used=stats.kv_blocks_used if stats else None,
        kv_blocks_total=stats.kv_blocks_total if stats else None,
        preemptions=stats.preemptions if stats else None,
        sequences_in_flight=context.service.admission.in_flight,
    )


def _latency(context: AdminContext) -> schema.LatencyState:
    summary, active = context.latency.summary(), context.control.active
    slo = active.policy.spec.slo if active is not None else None
    return schema.LatencyState(
        window_s=summary.window_s,
        requests=summary.requests,
        ttft_p50_s=summary.ttft_p50_s,
        ttft_p95_s=summary.ttft_p95_s,
        ttft_p99_s=summary.ttft_p99_s,
        tpot_p50_s=summary.tpot_p50_s,
        tpot_p99_s=summary.tpot_p99_s,
        slo_ttft_s=slo.ttft_p99_ms / 1e3 if slo else None,
        slo_tpot_s=slo.tpot_p99_ms / 1e3 if slo else None,
        output_tokens_per_s=context.sampler.series.latest("output_tokens_per_s"),
        joules_per_token=summary.joules_per_token,
        grams_per_1k_tokens=summary.grams_per_1k_tokens,
    )


def _power(power: PowerPlane, status: PlaneStatus) -> schema.PowerState:
    books = status.books
    method = weakest(device.info.method for device in power.devices) or Method.ESTIMATED
    return schema.PowerState(
        mode=status.mode.value,
        governor=status.governor,
        leased=status.leased,
        admit_low_priority=status.admit_low_priority,
        step_tokens=status.step_tokens,
        idle_w=status.idle_w,
        idle_source=status.idle_source,
        devices=[_device(power, status, number) for number in range(len(power.devices))],
        totals=schema.EnergyTotals(
            counter_j=books.counter_j,
            prefill_j=books.prefill_j,
            decode_j=books.decode_j,
            request_idle_j=books.request_idle_j,
            idle_j=books.idle_j,
            unattributed_j=books.unattributed_j,
            estimated_j=books.estimated_j,
            method=method.value,
        ),
        actuations=dict(power.controller.outcomes),
        controller_stalls=status.stalls,
        lost_samples=status.lost_samples,
        notes=list(status.notes),
    )


def _device(power: PowerPlane, status: PlaneStatus, number: int) -> schema.DeviceState:
    info = power.devices[number].info
    reading, limits, clocks = power.telemetry.latest(info.uuid), info.limits, info.clocks_mhz
    return schema.DeviceState(
        uuid=info.uuid,
        name=info.name,
        method=info.method.value,
        source=info.source.value,
        scope=info.scope.value,
        fresh=reading is not None,
        error=power.telemetry.error(info.uuid),
        power_w=reading.power_w if reading else None,
        energy_j=reading.energy_j if reading else None,
        sm_clock_mhz=reading.sm_clock_mhz if reading else None,
        memory_clock_mhz=reading.memory_clock_mhz if reading else None,
        temperature_c=reading.temperature_c if reading else None,
        utilisation=reading.utilisation if reading else None,
        power_limit_w=reading.power_limit_w if reading else None,
        default_limit_w=limits.default_w if limits else None,
        max_limit_w=limits.max_w if limits else None,
        clocks_min_mhz=clocks[0] if clocks else None,
        clocks_max_mhz=clocks[-1] if clocks else None,
        clock_reasons=_reasons(reading.clock_reasons if reading else None),
        asked_clock_mhz=status.asked_mhz.get(info.uuid),
        asked_limit_w=status.asked_limit_w.get(info.uuid),
        capabilities=sorted(capability.value for capability in info.capabilities),
        governor_reason=status.reasons.get(info.uuid, ""),
        notes=list(info.notes),
    )


def _reasons(found: frozenset[Any] | None) -> list[str] | None:
    return None if found is None else sorted(reason.value for reason in found)


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


def _summary(active: Active, control: ControlPlane) -> schema.ActivePolicySummary:
    assert control.store is not None
    return schema.ActivePolicySummary(
        name=active.policy.metadata.name,
        revision=active.revision,
        mode=active.mode,
        asked_mode=active.policy.spec.mode,
        held_back=active.held_back,
        activated_unix_s=active.activated_at.timestamp(),
        actor=active.actor,
        alarm=control.store.alarm,
    )


def hold_now(context: AdminContext) -> schema.Hold | None:
    """The actuator's hold, with who placed it where this server knows."""
    found = context.sampler.hold
    known = context.holds.current()
    if found is None:
        return None
    hold, at_s = found
    expires = None if hold.remaining_s is None else time.time() + hold.remaining_s - (time.monotonic() - at_s)
    same = known is not None and known.mode == hold.mode.value
    return schema.Hold(
        hold_id=known.hold_id if known is not None and same else None,
        mode=hold.mode.value,
        clock_mhz=hold.pin_mhz,
        reason=known.reason if known is not None and same else hold.reason,
        placed_unix_s=seconds(known.placed_us) if known is not None and same else None,
        placed_by=known.placed_by if known is not None and same else None,
        expires_unix_s=expires,
    )


def hold_of(row: HoldRow) -> schema.Hold:
    return schema.Hold(
        hold_id=row.hold_id,
        mode=cast(schema.HoldModeText, row.mode),
        clock_mhz=row.clock_mhz,
        reason=row.reason,
        placed_unix_s=seconds(row.placed_us),
        placed_by=row.placed_by,
        expires_unix_s=seconds(row.expires_us),
        released_unix_s=seconds(row.released_us),
        released_by=row.released_by,
    )


def actuation_of(done: Actuation) -> schema.ActuationResult:
    return schema.ActuationResult(
        done.uuid, done.action, done.outcome.value, done.reason, done.asked, done.read_back, done.latency_s
    )


def _ledger(context: AdminContext) -> schema.LedgerState | None:
    ledger = context.ledger
    if ledger is None:
        return None
    status = ledger.writer.status
    return schema.LedgerState(
        location=str(ledger.location),
        queued_rows=status.queued_rows,
        written_rows=status.written_rows,
        refused_rows=status.refused_rows,
        rejected_rows=status.rejected_rows,
        queued_samples=status.queued_samples,
        written_samples=status.written_samples,
        dropped_samples=status.dropped_samples,
        last_commit_s=status.last_commit_s,
        alarm=status.alarm,
    )


def policy_of(context: AdminContext) -> schema.PolicyState | None:
    control, store = context.control, context.control.store
    if store is None:
        return None
    active, now = store.active, control.effective()
    assert now is not None
    return schema.PolicyState(
        revision=active.revision,
        name=active.policy.metadata.name,
        mode=active.mode,
        asked_mode=active.policy.spec.mode,
        held_back=active.held_back,
        text=active.text,
        path=str(store.path),
        managed=store.managed,
        activated_unix_s=active.activated_at.timestamp(),
        actor=active.actor,
        warnings=shown(active.warnings),
        file_in_force=store.last_reload_ok,
        alarm=store.alarm,
        effective=schema.EffectiveSettings(
            governor=now.governor,
            clock_min_mhz=now.clock_min_mhz,
            clock_max_mhz=now.clock_max_mhz,
            power_limit_w=now.power_limit_w,
            row_budget_w=now.row_budget_w,
            admit_low_priority=now.admit_low_priority,
            band=now.band,
            directive=now.directive,
            quality_floor=now.quality_floor,
            tolerance=now.tolerance,
            rules=now.rules,
        ),
        override=context.override,
    )


def request_of(row: Mapping[str, Any]) -> schema.RequestRecord:
    fields = {name: row[name] for name in schema.RequestRecord.__struct_fields__ if name in row}
    times = {"arrived_unix_s": seconds(row["arrived_us"]), "finished_unix_s": seconds(row["finished_us"])}
    return schema.RequestRecord(**(fields | times))


def audit_of(row: Mapping[str, Any]) -> schema.AuditRow:
    fields = {name: row[name] for name in schema.AuditRow.__struct_fields__ if name in row}
    parsed = {name: _parsed(row[name]) for name in ("asked", "read_back", "inputs")}
    return schema.AuditRow(**(fields | parsed | {"at_unix_s": seconds(row["at_us"])}))


def _parsed(text: str | None) -> Any:
    return None if text is None else json.loads(text)


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
            run = convert(_parsed(row["inputs"]), schema.EvaluatorRunState)
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


def budgets_of(context: AdminContext) -> schema.BudgetList:
    active, book = context.control.active, context.budgets
    known = {tenant.name: tenant for tenant in active.policy.spec.tenants} if active is not None else {}
    found = []
    for name in sorted({*known, *book.tenants}):
        used, limits, verdict = book.used(name), known.get(name), book.verdict(name)
        found.append(
            schema.TenantUsage(
                tenant=name,
                day_unix_s=book.day_us / 1e6,
                requests=used.requests,
                energy_j=used.joules,
                grams=used.grams,
                requests_without_energy=used.without_joules,
                requests_without_grams=used.without_grams,
                carbon_budget_g_per_day=limits.carbon_budget_g_per_day if limits else None,
                energy_budget_j_per_day=limits.energy_budget_j_per_day if limits else None,
                soft_share=limits.soft_share if limits else None,
                on_exceed=limits.on_exceed if limits else None,
                state=verdict.state if verdict else None,
                retry_after_s=verdict.reopens_s if verdict and verdict.state == "hard" else None,
            )
        )
    return schema.BudgetList(found)
