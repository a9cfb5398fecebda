"""What the control plane writes down: power actions, holds, edits, alarms, and the grid's values."""

from __future__ import annotations

import time

from carbon.intensity import CarbonIntensity
from power.audit import AuditRecord
from serving.ledger.rows import AuditEntry, FeedRow, micros


def now_us() -> int:
    return time.time_ns() // 1000


def entry_of(record: AuditRecord, policy_body: str | None) -> AuditEntry:
    """A power action: a decision where nothing was touched, else an actuation."""
    return AuditEntry(
        at_us=round(record.unix_s * 1e6),
        kind="decision" if record.outcome == "shadow" else "actuation",
        actor=f"governor {record.governor}",
        policy_revision=record.policy_revision or None,
        policy_body=policy_body,
        policy_mode=record.mode,
        device=record.uuid,
        asked={record.action: record.asked},
        read_back=record.read_back,
        result=record.outcome,
        latency_s=record.latency_s,
        inputs=record.inputs,
        slo_violated=slo_violated(record.inputs),
        reason=record.reason,
    )


def slo_violated(inputs: dict[str, float | int | str | None]) -> bool | None:
    """Whether a measured latency was beyond its objective; None where neither can be told."""
    pairs = [(inputs.get("ttft_p99_s"), inputs.get("slo_ttft_s")), (inputs.get("tpot_p99_s"), inputs.get("slo_tpot_s"))]
    known = [float(measured) > float(limit) for measured, limit in pairs if measured is not None and limit is not None]
    return any(known) if known else None


def feed_row(value: CarbonIntensity) -> FeedRow:
    return FeedRow(
        zone=value.zone,
        start_us=micros(value.start),
        end_us=micros(value.end),
        source=value.source,
        kind=str(value.kind),
        fetched_us=micros(value.fetched_at),
        issued_us=micros(value.issued_at) if value.issued_at else None,
        g_per_kwh=value.g_per_kwh,
        low_g_per_kwh=value.low,
        high_g_per_kwh=value.high,
        basis=str(value.methodology.basis),
        boundary=str(value.methodology.boundary),
        mix=str(value.methodology.mix),
        method=value.method,
    )
