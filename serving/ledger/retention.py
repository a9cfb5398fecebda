"""What the ledger forgets, and when. The audit loses whole stretches from its beginning and keeps an anchor of each."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, delete, func, insert, select

from serving.ledger.partitions import drop_before
from serving.ledger.rows import DAY_US
from serving.ledger.tables import AUDIT, AUDIT_ANCHORS, FEED_VALUES, REQUESTS

SLICE_US = DAY_US // 24


@dataclass(frozen=True, slots=True)
class LedgerRetention:
    request_days: float = 400.0
    audit_days: float = 400.0
    feed_days: float = 400.0


def prune_slice(connection: Connection, now_us: int, retention: LedgerRetention) -> bool:
    """Remove at most an hour of each table, so that the writer is never held up for long. True when more is left."""
    requests = _prune_requests(connection, now_us - round(retention.request_days * DAY_US))
    audit = _prune_audit(connection, now_us - round(retention.audit_days * DAY_US), now_us)
    connection.execute(delete(FEED_VALUES).where(FEED_VALUES.c.end_us < now_us - round(retention.feed_days * DAY_US)))
    return requests or audit


def _prune_requests(connection: Connection, until_us: int) -> bool:
    if connection.dialect.name == "postgresql":
        drop_before(connection, "requests", until_us)
        return False
    oldest = connection.execute(select(func.min(REQUESTS.c.arrived_us))).scalar()
    if oldest is None or oldest >= until_us:
        return False
    edge_us = min(until_us, oldest + SLICE_US)
    connection.execute(delete(REQUESTS).where(REQUESTS.c.arrived_us < edge_us))
    return bool(edge_us < until_us)


def _prune_audit(connection: Connection, until_us: int, now_us: int) -> bool:
    oldest = connection.execute(select(AUDIT.c.at_us).order_by(AUDIT.c.seq).limit(1)).scalar()
    if oldest is None or oldest >= until_us:
        return False
    edge_us = min(until_us, oldest + SLICE_US)
    kept = connection.execute(select(func.min(AUDIT.c.seq)).where(AUDIT.c.at_us >= edge_us)).scalar()
    newest = select(AUDIT.c.seq, AUDIT.c.hash).order_by(AUDIT.c.seq.desc()).limit(1)
    if kept is not None:
        newest = newest.where(AUDIT.c.seq < kept)
    last = connection.execute(newest).first()
    if last is None:
        return False
    connection.execute(insert(AUDIT_ANCHORS).values(seq=last[0], hash=last[1], pruned_us=now_us))
    connection.execute(delete(AUDIT).where(AUDIT.c.seq <= last[0]))
    return bool(edge_us < until_us)
