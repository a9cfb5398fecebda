"""From live objects and ledger rows to the admin API's bodies."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, cast

from power.messages import Actuation
from power.plane import PowerPlane
from power.plane_status import PlaneStatus
from power.quantities import Method, weakest
from serving import admin_schema as schema
from serving.admin_answers_carbon import intensity_of
from serving.admin_context import AdminContext
from serving.admin_errors import shown
from serving.admin_values import parsed, seconds
from serving.control_plane import ControlPlane
from serving.ledger.rows import HoldRow
from serving.policy.store import Active


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
    values = {name: parsed(row[name]) for name in ("asked", "read_back", "inputs")}
    return schema.AuditRow(**(fields | values | {"at_unix_s": seconds(row["at_us"])}))


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
