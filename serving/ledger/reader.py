"""Questions to the ledger, over connections that cannot write. Pages are by key: a page costs the same anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, Select, Table, and_, case, func, or_, select

from serving.ledger.audit import ChainHead, Verification, verify
from serving.ledger.engine import Location, reader_engine
from serving.ledger.rows import DAY_US
from serving.ledger.tables import (
    AUDIT,
    AUDIT_ANCHORS,
    BUDGETS,
    EXPERIMENTS,
    FEED_VALUES,
    HOLDS,
    POLICY_REVISIONS,
    REQUESTS,
)

Row = Mapping[str, Any]
MAX_PAGE = 1000
MINUTE_US = 60_000_000


@dataclass(frozen=True, slots=True)
class Usage:
    """What a tenant used on a UTC day. Requests whose joules or grams are unknown are counted apart, not as 0."""

    tenant: str
    day_us: int
    requests: int
    joules: float
    grams: float
    requests_without_joules: int
    requests_without_grams: int


class LedgerReader:
    """Thread-safe; opens connections as needed. Rows come as mappings with the columns of `tables`."""

    def __init__(self, location: Location) -> None:
        self._engine = reader_engine(location, "ledger")

    @property
    def engine(self) -> Engine:
        return self._engine

    def close(self) -> None:
        self._engine.dispose()

    def request(self, request_id: str) -> Row | None:
        return self._first(select(REQUESTS).where(REQUESTS.c.request_id == request_id))

    def requests(
        self,
        *,
        since_us: int = 0,
        until_us: int | None = None,
        tenant: str | None = None,
        experiment_id: str | None = None,
        before: tuple[int, str] | None = None,
        limit: int = 100,
    ) -> list[Row]:
        """Newest first. `before`: `(arrived_us, request_id)` of the last row of the page before."""
        query = select(REQUESTS).where(REQUESTS.c.arrived_us >= since_us)
        if until_us is not None:
            query = query.where(REQUESTS.c.arrived_us < until_us)
        if tenant is not None:
            query = query.where(REQUESTS.c.tenant == tenant)
        if experiment_id is not None:
            query = query.where(REQUESTS.c.experiment_id == experiment_id)
        if before is not None:
            at, identity = before
            earlier = and_(REQUESTS.c.arrived_us == at, REQUESTS.c.request_id < identity)
            query = query.where(or_(REQUESTS.c.arrived_us < at, earlier))
        return self._all(query.order_by(REQUESTS.c.arrived_us.desc(), REQUESTS.c.request_id.desc()), limit)

    def audit(self, *, before_seq: int | None = None, kind: str | None = None, limit: int = 100) -> list[Row]:
        """Newest first."""
        query = select(AUDIT)
        if before_seq is not None:
            query = query.where(AUDIT.c.seq < before_seq)
        if kind is not None:
            query = query.where(AUDIT.c.kind == kind)
        return self._all(query.order_by(AUDIT.c.seq.desc()), limit)

    def verify_audit(self) -> Verification:
        """Read the whole chain and check it."""
        anchors = select(AUDIT_ANCHORS.c.seq, AUDIT_ANCHORS.c.hash).order_by(AUDIT_ANCHORS.c.seq.desc()).limit(1)
        with self._engine.connect() as connection:
            anchor = connection.execute(anchors).first()
            start = None if anchor is None else ChainHead(anchor[0], anchor[1])
            rows = connection.execution_options(yield_per=1000).execute(select(AUDIT).order_by(AUDIT.c.seq))
            return verify(map(dict, rows.mappings()), start)

    def usage(self, tenant: str, at_us: int) -> Usage:
        """Of the UTC day that holds `at_us`."""
        day_us = at_us // DAY_US * DAY_US
        found = self._first(select(BUDGETS).where(BUDGETS.c.tenant == tenant, BUDGETS.c.day_us == day_us))
        return Usage(tenant, day_us, 0, 0.0, 0.0, 0, 0) if found is None else Usage(**found)

    def usages(self, day_us: int) -> list[Usage]:
        """Of all tenants on a day."""
        rows = self._all(select(BUDGETS).where(BUDGETS.c.day_us == day_us).order_by(BUDGETS.c.tenant), MAX_PAGE)
        return [Usage(**row) for row in rows]

    def active_holds(self, now_us: int) -> list[Row]:
        live = or_(HOLDS.c.expires_us.is_(None), HOLDS.c.expires_us > now_us)
        return self._all(select(HOLDS).where(HOLDS.c.released_us.is_(None), live).order_by(HOLDS.c.placed_us), MAX_PAGE)

    def revisions(self, limit: int = 100) -> list[Row]:
        """Policy activations, newest first."""
        return self._all(select(POLICY_REVISIONS).order_by(POLICY_REVISIONS.c.id.desc()), limit)

    def revision(self, prefix: str) -> Row | None:
        """The newest activation of the revision that begins with `prefix` (hexadecimal digits)."""
        matches = POLICY_REVISIONS.c.revision.startswith(prefix, autoescape=True)
        return self._first(select(POLICY_REVISIONS).where(matches).order_by(POLICY_REVISIONS.c.id.desc()))

    def shadow_evidence(self, body_revision: str) -> tuple[float, int]:
        """Hours (by minutes in which a decision was recorded) and SLO violations of a policy in shadow."""
        violations = func.coalesce(func.sum(case((AUDIT.c.slo_violated.is_(True), 1), else_=0)), 0)
        minutes = func.count(func.distinct(AUDIT.c.at_us - AUDIT.c.at_us % MINUTE_US))
        query = select(minutes, violations).where(
            AUDIT.c.policy_body == body_revision, AUDIT.c.policy_mode == "shadow", AUDIT.c.kind == "decision"
        )
        with self._engine.connect() as connection:
            count, violated = connection.execute(query).one()
        return int(count) / 60, int(violated)

    def feed_values(self, zone: str, since_us: int, until_us: int, limit: int = MAX_PAGE) -> list[Row]:
        """Values whose interval begins in the range, oldest first, revisions after what they revise."""
        of_range = and_(FEED_VALUES.c.start_us >= since_us, FEED_VALUES.c.start_us < until_us)
        query = select(FEED_VALUES).where(FEED_VALUES.c.zone == zone, of_range)
        return self._all(query.order_by(FEED_VALUES.c.start_us, FEED_VALUES.c.fetched_us), limit)

    def experiments(self, limit: int = 100) -> list[Row]:
        return self._all(select(EXPERIMENTS).order_by(EXPERIMENTS.c.started_us.desc()), limit)

    def stream(self, table: Table, since_us: int, until_us: int, column: str) -> Iterator[Sequence[Row]]:
        """All rows of a range of time in batches, oldest first, in one snapshot; for exports."""
        time = table.c[column]
        query = select(table).where(time >= since_us, time < until_us).order_by(time)
        with self._engine.connect() as connection:
            rows = connection.execution_options(yield_per=5000).execute(query)
            for batch in rows.mappings().partitions():
                yield [dict(row) for row in batch]

    def _first(self, query: Select[Any]) -> Row | None:
        with self._engine.connect() as connection:
            found = connection.execute(query.limit(1)).mappings().first()
            return None if found is None else dict(found)

    def _all(self, query: Select[Any], limit: int) -> list[Row]:
        if not 1 <= limit <= MAX_PAGE:
            raise ValueError(f"a page has 1 to {MAX_PAGE} rows, got {limit}")
        with self._engine.connect() as connection:
            return [dict(row) for row in connection.execute(query.limit(limit)).mappings()]
