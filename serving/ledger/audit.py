"""The hash chain of the audit: a row holds the hash of the row before it, so nothing can be changed or taken out
unnoticed by who cannot rewrite everything after it. Note the newest hash elsewhere to notice that, too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

GENESIS = "0" * 64
JSON_COLUMNS = ("asked", "read_back", "inputs")
HASHED = (
    "seq",
    "at_us",
    "kind",
    "actor",
    "decision_id",
    "policy_revision",
    "policy_body",
    "policy_mode",
    "rule",
    "device",
    "asked",
    "read_back",
    "result",
    "latency_s",
    "inputs",
    "slo_violated",
    "reason",
)
_KINDS: dict[str, type[int] | type[float] | type[bool]] = {
    "seq": int,
    "at_us": int,
    "latency_s": float,
    "slo_violated": bool,
}


def json_text(value: Any) -> str | None:
    """A JSON value as canonical text; `None` stays `None`. Raises `ValueError` for what JSON cannot say."""
    if value is None:
        return None
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except TypeError as error:
        raise ValueError(f"an audit entry holds JSON values only: {error}") from None


def row_hash(prev_hash: str, row: Mapping[str, Any]) -> str:
    """SHA-256 over the hash before and every column but the hashes, as canonical JSON."""
    values = [_as_stored(name, row[name]) for name in HASHED]
    content = json.dumps([prev_hash, *values], ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(content.encode()).hexdigest()


def _as_stored(name: str, value: Any) -> Any:
    """The value as the database gives it back: 1 in a column of floats is 1.0."""
    kind = _KINDS.get(name)
    return value if value is None or kind is None else kind(value)


@dataclass(frozen=True, slots=True)
class ChainHead:
    """The newest row, which the next one refers to."""

    seq: int = 0
    hash: str = GENESIS

    def next_row(self, entry: Mapping[str, Any]) -> tuple[dict[str, Any], ChainHead]:
        """`entry` (columns, JSON already as text) as the row that follows, and the head after it."""
        row = dict(entry, seq=self.seq + 1)
        digest = row_hash(self.hash, row)
        return dict(row, prev_hash=self.hash, hash=digest), ChainHead(self.seq + 1, digest)


@dataclass(frozen=True, slots=True)
class Verification:
    """`broken_seq`: the first row that does not follow from the one before; `head`: the newest sound row."""

    rows: int
    head: ChainHead
    broken_seq: int | None = None
    problem: str | None = None

    @property
    def ok(self) -> bool:
        return self.broken_seq is None


def verify(rows: Iterable[Mapping[str, Any]], start: ChainHead | None = None) -> Verification:
    """Check rows in order of `seq`, from `start` (the anchor of what retention removed, or the genesis)."""
    head, count = start or ChainHead(), 0
    for row in rows:
        seq = int(row["seq"])
        problem = None
        if seq != head.seq + 1:
            problem = f"row {seq} follows row {head.seq}: rows are missing"
        elif row["prev_hash"] != head.hash:
            problem = f"row {seq} does not refer to the row before it"
        elif row_hash(head.hash, row) != row["hash"]:
            problem = f"row {seq} was changed after it was written"
        if problem is not None:
            return Verification(count, head, seq, problem)
        head = ChainHead(seq, row["hash"])
        count += 1
    return Verification(count, head)
