"""The audit trail: rows, one row in full, and the verdict on the chain."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from dashboard.schema_records import AuditRow, AuditVerification
from dashboard.views.formats import UNKNOWN, clock, seconds

KINDS = ("decision", "actuation", "restore", "hold", "release", "policy", "access", "alarm", "evaluation")


def rows(found: Sequence[AuditRow]) -> list[dict[str, Any]]:
    return [
        {
            "Seq": row.seq,
            "At (UTC)": clock(row.at_unix_s),
            "Kind": row.kind,
            "By": row.actor,
            "Device": row.device or UNKNOWN,
            "Asked": value(row.asked),
            "Read back": value(row.read_back),
            "Result": row.result or UNKNOWN,
            "Took": seconds(row.latency_s),
            "Rule": row.rule or UNKNOWN,
            "Reason": row.reason or "",
            "Mode": row.policy_mode or UNKNOWN,
        }
        for row in found
    ]


def value(of: Any) -> str:
    if of is None:
        return UNKNOWN
    if isinstance(of, float):
        return f"{of:g}"
    return of if isinstance(of, str) else json.dumps(of, sort_keys=True)


def filtered(found: Sequence[AuditRow], words: str) -> list[AuditRow]:
    """Rows with every word somewhere in actor, reason, rule, device or result."""
    needles = words.lower().split()
    kept = []
    for row in found:
        text = " ".join(filter(None, (row.actor, row.reason, row.rule, row.device, row.result))).lower()
        if all(needle in text for needle in needles):
            kept.append(row)
    return kept


def in_full(row: AuditRow) -> str:
    """JSON, for reading."""
    fields = {name: getattr(row, name) for name in row.__struct_fields__}
    return json.dumps(fields, indent=2, sort_keys=False)


def verdict(check: AuditVerification) -> tuple[bool, str]:
    if check.ok:
        return True, f"The chain holds: {check.rows} rows, head {check.head_seq} with hash {check.head_hash[:16]}"
    return False, f"The chain is broken at row {check.broken_seq}: {check.problem}. Rows before it are as written."
