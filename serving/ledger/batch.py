"""One transaction of ledger rows: inserted, chained, counted into budgets, and marked, so that a retry is exact."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import BigInteger, Boolean, Connection, Double, Integer, Table, Text, select

from serving.ledger.audit import JSON_COLUMNS, ChainHead, json_text
from serving.ledger.partitions import Partitions
from serving.ledger.rows import (
    DAY_US,
    AuditEntry,
    ExperimentRow,
    FeedRow,
    HoldRow,
    Record,
    RequestRow,
    RevisionRow,
    columns_of,
    getter_of,
)
from serving.ledger.tables import (
    AUDIT,
    AUDIT_ANCHORS,
    BUDGETS,
    EXPERIMENTS,
    FEED_VALUES,
    HOLDS,
    POLICY_REVISIONS,
    REQUESTS,
    WRITER_STATE,
)

_INSERTED = {RequestRow: REQUESTS, RevisionRow: POLICY_REVISIONS, FeedRow: FEED_VALUES}
_REPLACED = {HoldRow: HOLDS, ExperimentRow: EXPERIMENTS}
_IGNORED_TWICE = (FeedRow,)
_POSTGRES = {Text: "text", BigInteger: "bigint", Integer: "integer", Double: "float8", Boolean: "boolean"}
_REQUEST_FLOATS = tuple(isinstance(REQUESTS.c[name].type, Double) for name in columns_of(RequestRow))
_TEXT_COLUMNS = ("prompt_text", "answer_text")


class BatchWriter:
    """Writes batches on one connection's dialect. `keep_text`: whether a tenant agreed to have its text kept."""

    def __init__(self, dialect: str, keep_text: Callable[[str | None], bool]) -> None:
        self.head = ChainHead()
        self._keep_text = keep_text
        self._partitions = Partitions()
        mark = "?" if dialect == "sqlite" else "%s"
        self._inserts = {kind: _insert(kind, table, mark) for kind, table in {**_INSERTED, **_REPLACED}.items()}
        self._audit_columns = tuple(column.name for column in AUDIT.columns)
        self._audit_insert = _statement(AUDIT, self._audit_columns, mark)
        self._getters = {kind: getter_of(kind) for kind in self._inserts}
        self._arrays = None if dialect == "sqlite" else _array_insert(RequestRow, REQUESTS)
        self._state = _upsert(WRITER_STATE, ("id", "batch"), mark)
        self._budget = _budget_upsert(mark)

    def load_head(self, connection: Connection) -> None:
        """Take up the chain where it ends: the newest row, or the anchor of what retention removed."""
        newest = connection.execute(select(AUDIT.c.seq, AUDIT.c.hash).order_by(AUDIT.c.seq.desc()).limit(1)).first()
        if newest is None:
            anchors = select(AUDIT_ANCHORS.c.seq, AUDIT_ANCHORS.c.hash).order_by(AUDIT_ANCHORS.c.seq.desc()).limit(1)
            newest = connection.execute(anchors).first()
        self.head = ChainHead() if newest is None else ChainHead(newest[0], newest[1])

    def was_committed(self, connection: Connection, batch: str) -> bool:
        return connection.execute(select(WRITER_STATE.c.batch)).scalar() == batch

    def write(self, connection: Connection, records: Sequence[Record], batch: str) -> ChainHead:
        """Execute the whole batch in the open transaction; returns the chain's head once it is committed."""
        by_kind: dict[type[Record], list[Any]] = defaultdict(list)
        for record in records:
            by_kind[type(record)].append(record)
        head = self.head
        for kind, rows in by_kind.items():
            if kind is AuditEntry:
                head = self._write_audit(connection, rows, head)
            elif kind is RequestRow:
                self._write_requests(connection, rows)
            else:
                connection.exec_driver_sql(self._inserts[kind], list(map(self._getters[kind], rows)))
        connection.exec_driver_sql(self._state, (1, batch))
        return head

    def rolled_back(self) -> None:
        self._partitions.forget()

    def _write_audit(self, connection: Connection, entries: Sequence[AuditEntry], head: ChainHead) -> ChainHead:
        rows = []
        for entry in entries:
            columns = asdict(entry)
            for name in JSON_COLUMNS:
                columns[name] = json_text(columns[name])
            row, head = head.next_row(columns)
            rows.append(tuple(row[name] for name in self._audit_columns))
        connection.exec_driver_sql(self._audit_insert, rows)
        return head

    def _write_requests(self, connection: Connection, rows: Sequence[RequestRow]) -> None:
        self._partitions.ensure(connection, "requests", (row.arrived_us for row in rows))
        values = [self._request_values(row) for row in rows]
        if self._arrays is None:
            connection.exec_driver_sql(self._inserts[RequestRow], values)
        else:
            connection.exec_driver_sql(self._arrays, _by_column(values))
        used = _used(rows)
        if used:
            connection.exec_driver_sql(self._budget, used)

    def _request_values(self, row: RequestRow) -> tuple[Any, ...]:
        values = self._getters[RequestRow](row)
        if (row.prompt_text is None and row.answer_text is None) or self._keep_text(row.tenant):
            return values
        return values[: -len(_TEXT_COLUMNS)] + (None,) * len(_TEXT_COLUMNS)


def _used(rows: Sequence[RequestRow]) -> list[tuple[Any, ...]]:
    """What the requests add to each tenant's day; an unknown amount is counted, not taken for 0."""
    sums: dict[tuple[str, int], list[float]] = {}
    for row in rows:
        if row.tenant is None:
            continue
        key = (row.tenant, row.arrived_us // DAY_US * DAY_US)
        total = sums.setdefault(key, [0, 0.0, 0.0, 0, 0])
        total[0] += 1
        total[1] += row.energy_j or 0.0
        total[2] += row.grams or 0.0
        total[3] += row.energy_j is None
        total[4] += row.grams is None
    return [(*key, *total) for key, total in sums.items()]


def _statement(table: Table, columns: Sequence[str], mark: str) -> str:
    names, marks = ", ".join(columns), ", ".join([mark] * len(columns))
    return f"INSERT INTO {table.name} ({names}) VALUES ({marks})"  # noqa: S608 - names of our own tables


def _insert(kind: type[Record], table: Table, mark: str) -> str:
    columns = columns_of(kind)
    if kind in _REPLACED:
        return _upsert(table, columns, mark)
    ending = " ON CONFLICT DO NOTHING" if kind in _IGNORED_TWICE else ""
    return _statement(table, columns, mark) + ending


def _array_insert(kind: type[Record], table: Table) -> str:
    """One statement for a batch of any size, a column an array: PostgreSQL takes it at twice the speed of rows."""
    columns = columns_of(kind)
    arrays = ", ".join(f"%s::{_POSTGRES[type(table.c[name].type)]}[]" for name in columns)
    return f"INSERT INTO {table.name} ({', '.join(columns)}) SELECT * FROM unnest({arrays})"  # noqa: S608 - our names


def _by_column(rows: Sequence[tuple[Any, ...]]) -> tuple[list[Any], ...]:
    """Rows turned to columns; floats made so, because an array has one type."""
    columns: list[list[Any]] = [list(column) for column in zip(*rows)]
    for column, is_float in zip(columns, _REQUEST_FLOATS):
        if is_float:
            column[:] = [None if value is None else float(value) for value in column]
    return tuple(columns)


def _upsert(table: Table, columns: Sequence[str], mark: str) -> str:
    keys = [column.name for column in table.primary_key.columns]
    updates = ", ".join(f"{name} = excluded.{name}" for name in columns if name not in keys)
    return f"{_statement(table, columns, mark)} ON CONFLICT ({', '.join(keys)}) DO UPDATE SET {updates}"


def _budget_upsert(mark: str) -> str:
    columns = [column.name for column in BUDGETS.columns]
    sums = ", ".join(f"{name} = budgets.{name} + excluded.{name}" for name in columns[2:])
    return f"{_statement(BUDGETS, columns, mark)} ON CONFLICT (tenant, day_us) DO UPDATE SET {sums}"
