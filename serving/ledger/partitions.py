"""Days of PostgreSQL's partitioned tables: made before rows need them, dropped whole when they are old."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from sqlalchemy import Connection, text

from serving.ledger.rows import DAY_US, moment_of
from serving.ledger.tables import PARTITIONED


class Partitions:
    """Knows which days exist. Does nothing on SQLite."""

    def __init__(self) -> None:
        self._known: set[tuple[str, int]] = set()

    def ensure(self, connection: Connection, table: str, times_us: Iterable[int]) -> None:
        """Make the days of `times_us`. A BRIN index on the time keeps scans of a range cheap."""
        if connection.dialect.name != "postgresql":
            return
        column = PARTITIONED[table]
        for day in {time_us // DAY_US for time_us in times_us}:
            if (table, day) in self._known:
                continue
            name = partition_name(table, day)
            connection.execute(
                text(
                    f"CREATE TABLE IF NOT EXISTS {name} PARTITION OF {table} "
                    f"FOR VALUES FROM ({day * DAY_US}) TO ({(day + 1) * DAY_US})"
                )
            )
            connection.execute(text(f"CREATE INDEX IF NOT EXISTS {name}_brin ON {name} USING brin ({column})"))
            self._known.add((table, day))

    def forget(self) -> None:
        """After a transaction that was rolled back: what it made is gone."""
        self._known.clear()


def partition_name(table: str, day: int) -> str:
    return f"{table}_d{moment_of(day * DAY_US):%Y%m%d}"


def days_of(connection: Connection, table: str) -> list[tuple[str, int]]:
    """Partitions that exist, with their day."""
    rows = connection.execute(
        text("SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = CAST(:table AS regclass)"),
        {"table": table},
    )
    found = []
    for (name,) in rows:
        moment = datetime.strptime(name.rsplit("_d", 1)[1], "%Y%m%d").replace(tzinfo=UTC)
        found.append((name, int(moment.timestamp()) // 86_400))
    return sorted(found, key=lambda item: item[1])


def drop_before(connection: Connection, table: str, until_us: int) -> int:
    """Drop whole days before `until_us`; returns how many."""
    old = [name for name, day in days_of(connection, table) if (day + 1) * DAY_US <= until_us]
    for name in old:
        connection.execute(text(f'DROP TABLE "{name}"'))
    return len(old)
