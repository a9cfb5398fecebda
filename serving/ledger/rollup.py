"""Roll-ups: raw samples to seconds to minutes, and what is kept how long.

Each step takes whole buckets older than `LAG_US`, once, and remembers how far it came. A counter's `increase` in a
bucket bridges from the sample before the bucket, so the sum of all increases is what the counter grew by, whatever
the bucket width and whichever raw samples are gone. A counter that falls has restarted: it counts from 0 again.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, text

from serving.ledger.partitions import drop_before
from serving.ledger.rows import DAY_US

SECOND_US = 1_000_000
MINUTE_US = 60 * SECOND_US
LAG_US = 5 * SECOND_US
"""How late a sample may arrive and still be rolled up."""


@dataclass(frozen=True, slots=True)
class Retention:
    """Days each resolution is kept."""

    raw_days: float = 1.0
    second_days: float = 14.0
    minute_days: float = 400.0


_SECONDS = """
INSERT INTO samples_1s (series, start_us, count, min, max, sum, last, increase)
SELECT series, start_us, count(*), min(value), max(value), sum(value),
       max(CASE WHEN newest = 1 THEN value END),
       CASE WHEN max(CASE WHEN is_counter THEN 1 ELSE 0 END) = 1 THEN
           sum(CASE WHEN before IS NULL THEN 0 WHEN value >= before THEN value - before ELSE value END) END
FROM (
    SELECT samples.series AS series, samples.value AS value, series.is_counter AS is_counter,
           samples.at_us - samples.at_us % 1000000 AS start_us,
           COALESCE(LAG(samples.value) OVER (PARTITION BY samples.series ORDER BY samples.at_us), series.rolled)
               AS before,
           ROW_NUMBER() OVER (
               PARTITION BY samples.series, samples.at_us - samples.at_us % 1000000 ORDER BY samples.at_us DESC
           ) AS newest
    FROM series CROSS JOIN samples
    WHERE samples.series = series.id AND samples.at_us >= :since AND samples.at_us < :until
) AS spans
GROUP BY series, start_us
"""

_ROLLED = """
UPDATE series SET
    rolled_us = COALESCE(
        (SELECT max(at_us) FROM samples WHERE series = series.id AND at_us >= :since AND at_us < :until), rolled_us),
    rolled = COALESCE(
        (SELECT value FROM samples WHERE samples.series = series.id AND at_us >= :since AND at_us < :until
         ORDER BY at_us DESC LIMIT 1), rolled)
"""

_MINUTES = """
INSERT INTO samples_1min (series, start_us, count, min, max, sum, last, increase)
SELECT series, minute_us, sum(count), min(min), max(max), sum(sum),
       max(CASE WHEN newest = 1 THEN last END), sum(increase)
FROM (
    SELECT samples_1s.*, samples_1s.start_us - samples_1s.start_us % 60000000 AS minute_us,
           ROW_NUMBER() OVER (
               PARTITION BY series, start_us - start_us % 60000000 ORDER BY start_us DESC
           ) AS newest
    FROM series CROSS JOIN samples_1s
    WHERE samples_1s.series = series.id AND start_us >= :since AND start_us < :until
) AS spans
GROUP BY series, minute_us
"""

# Series first: the primary keys begin with it, and a range of times alone would read the whole table.
_DELETE = "DELETE FROM {table} WHERE series IN (SELECT id FROM series) AND {column} < :until"


def roll_up(connection: Connection, until_us: int) -> None:
    """Roll up all whole buckets before `until_us`."""
    seconds_us = until_us - until_us % SECOND_US
    since_us = _reached(connection, "1s")
    if seconds_us > since_us:
        bounds = {"since": since_us, "until": seconds_us}
        connection.execute(text(_SECONDS), bounds)
        connection.execute(text(_ROLLED), bounds)
        _set_reached(connection, "1s", seconds_us)
    minutes_us = seconds_us - seconds_us % MINUTE_US
    since_us = _reached(connection, "1min")
    if minutes_us > since_us:
        connection.execute(text(_MINUTES), {"since": since_us, "until": minutes_us})
        _set_reached(connection, "1min", minutes_us)


def prune(connection: Connection, now_us: int, retention: Retention) -> None:
    """Remove what is older than its retention, but nothing that the next level has not taken in."""
    raw_us = min(now_us - round(retention.raw_days * DAY_US), _reached(connection, "1s"))
    if connection.dialect.name == "postgresql":
        drop_before(connection, "samples", raw_us)
    else:
        connection.execute(text(_DELETE.format(table="samples", column="at_us")), {"until": raw_us})
    seconds_us = min(now_us - round(retention.second_days * DAY_US), _reached(connection, "1min"))
    connection.execute(text(_DELETE.format(table="samples_1s", column="start_us")), {"until": seconds_us})
    minutes_us = now_us - round(retention.minute_days * DAY_US)
    connection.execute(text(_DELETE.format(table="samples_1min", column="start_us")), {"until": minutes_us})


def _reached(connection: Connection, level: str) -> int:
    found = connection.execute(text("SELECT until_us FROM rollup_state WHERE level = :level"), {"level": level})
    return int(found.scalar() or 0)


def _set_reached(connection: Connection, level: str, until_us: int) -> None:
    connection.execute(
        text(
            "INSERT INTO rollup_state (level, until_us) VALUES (:level, :until) "
            "ON CONFLICT (level) DO UPDATE SET until_us = excluded.until_us"
        ),
        {"level": level, "until": until_us},
    )
