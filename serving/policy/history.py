"""Revisions that were in force, kept outside the store so that they outlive it, and what was seen in shadow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from serving.policy.model import Promotion


@dataclass(frozen=True, slots=True)
class RevisionRecord:
    """One activation. `actor`: the operator's key name, or what triggered it (`file`, `start`)."""

    revision: str
    body_revision: str
    mode: str
    text: str
    activated_at: datetime
    actor: str
    reason: str


class RevisionLog(Protocol):
    """Append-only. `append` returns once the record is safe, and raises `OSError` when it cannot be kept."""

    def append(self, record: RevisionRecord) -> None: ...

    def latest(self, limit: int = 100) -> Sequence[RevisionRecord]:
        """Newest first."""
        ...

    def find(self, revision: str) -> RevisionRecord | None:
        """The newest activation of a revision, given in full or by at least six leading digits."""
        ...


class MemoryLog:
    """Revisions of this process only, for tools and tests that keep no ledger."""

    def __init__(self) -> None:
        self._records: list[RevisionRecord] = []

    def append(self, record: RevisionRecord) -> None:
        self._records.append(record)

    def latest(self, limit: int = 100) -> Sequence[RevisionRecord]:
        return self._records[::-1][:limit]

    def find(self, revision: str) -> RevisionRecord | None:
        check_revision(revision)
        return next((record for record in reversed(self._records) if record.revision.startswith(revision)), None)


MIN_REVISION = 6


def check_revision(revision: str) -> str:
    if len(revision) < MIN_REVISION or not set(revision) <= set("0123456789abcdef"):
        raise ValueError(f"{revision!r} is not a revision: at least {MIN_REVISION} hexadecimal digits")
    return revision


@dataclass(frozen=True, slots=True)
class ShadowEvidence:
    """What was recorded while a policy ran in shadow: hours with decisions, and violations of its SLO."""

    hours: float
    slo_violations: int


def gate_refusal(gate: Promotion, evidence: ShadowEvidence | None) -> str | None:
    """Why `enforce` may not take effect yet; `None` when it may."""
    if evidence is None:
        return "no record of decisions in shadow is kept"
    if evidence.hours < gate.min_shadow_h:
        return f"{evidence.hours:.1f} h in shadow of the {gate.min_shadow_h:g} h asked for"
    if evidence.slo_violations > gate.max_slo_violations:
        return f"{evidence.slo_violations} SLO violations in shadow, {gate.max_slo_violations} are allowed"
    return None
