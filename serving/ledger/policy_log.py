"""The policy store's memory in the ledger: revisions that were in force, and what a policy showed in shadow."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError

from serving.ledger.engine import LedgerError
from serving.ledger.reader import LedgerReader, Row
from serving.ledger.rows import RevisionRow, micros, moment_of
from serving.ledger.writer import LedgerWriter
from serving.policy.history import RevisionRecord, ShadowEvidence, check_revision


class LedgerPolicyLog:
    """A `RevisionLog`; `evidence` is what `PolicyStore` asks at the promotion gate."""

    def __init__(self, writer: LedgerWriter, reader: LedgerReader, timeout_s: float = 5.0) -> None:
        self._writer = writer
        self._reader = reader
        self._timeout_s = timeout_s

    def append(self, record: RevisionRecord) -> None:
        row = RevisionRow(
            revision=record.revision,
            body_revision=record.body_revision,
            mode=record.mode,
            text=record.text,
            activated_us=micros(record.activated_at),
            actor=record.actor,
            reason=record.reason,
        )
        try:
            self._writer.submit(row).result(self._timeout_s)
        except FutureTimeoutError:
            raise OSError(f"the ledger did not take the revision within {self._timeout_s:g} s") from None
        except LedgerError as error:
            raise OSError(str(error)) from error

    def latest(self, limit: int = 100) -> Sequence[RevisionRecord]:
        return [_record(row) for row in self._reader.revisions(limit)]

    def find(self, revision: str) -> RevisionRecord | None:
        row = self._reader.revision(check_revision(revision))
        return None if row is None else _record(row)

    def evidence(self, body_revision: str) -> ShadowEvidence:
        hours, violations = self._reader.shadow_evidence(body_revision)
        return ShadowEvidence(hours, violations)


def _record(row: Row) -> RevisionRecord:
    return RevisionRecord(
        revision=row["revision"],
        body_revision=row["body_revision"],
        mode=row["mode"],
        text=row["text"],
        activated_at=moment_of(row["activated_us"]),
        actor=row["actor"],
        reason=row["reason"],
    )
