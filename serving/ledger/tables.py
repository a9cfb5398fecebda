"""The schema, once for both back ends.

Times are UTC microseconds since 1970 (`*_us`), durations seconds (`*_s`), energy joules, mass grams. Unknown is NULL,
never 0. JSON is canonical text, so that hashes of rows hold on every back end. `LEDGER` is durable; `TELEMETRY` may be
thrown away at any time. On SQLite each is a file of its own, on PostgreSQL they share a database.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Double, Index, Integer, MetaData, PrimaryKeyConstraint, Table, Text

LEDGER = MetaData()
TELEMETRY = MetaData()

# SQLite's row ids are INTEGER alone; a BIGINT primary key would not be one.
_Serial = BigInteger().with_variant(Integer, "sqlite")

REQUESTS = Table(
    "requests",
    LEDGER,
    Column("request_id", Text, nullable=False),
    Column("arrived_us", BigInteger, nullable=False),
    Column("finished_us", BigInteger),
    Column("tenant", Text),
    Column("model", Text, nullable=False),
    Column("endpoint", Text),
    Column("task_class", Text),
    Column("directive", Text),
    Column("directive_reason", Text),
    Column("policy_revision", Text),
    Column("policy_mode", Text),
    Column("priority", Integer),
    Column("prompt_tokens", Integer),
    Column("completion_tokens", Integer),
    Column("cached_tokens", Integer),
    Column("choices", Integer),
    Column("queue_s", Double),
    Column("ttft_s", Double),
    Column("tpot_s", Double),
    Column("e2e_s", Double),
    Column("energy_j", Double),
    Column("prefill_j", Double),
    Column("decode_j", Double),
    Column("idle_j", Double),
    Column("energy_method", Text),
    Column("energy_source", Text),
    Column("energy_scope", Text),
    Column("attribution_method", Text),
    Column("energy_uncertainty_percent", Double),
    Column("operational_g", Double),
    Column("embodied_g", Double),
    Column("pue", Double),
    Column("intensity_g_per_kwh", Double),
    Column("intensity_source", Text),
    Column("intensity_kind", Text),
    Column("intensity_tier", Text),
    Column("intensity_basis", Text),
    Column("intensity_boundary", Text),
    Column("intensity_age_s", Double),
    Column("zone", Text),
    Column("finish_reason", Text),
    Column("status", Integer),
    Column("experiment_id", Text),
    Column("prompt_text", Text),
    Column("answer_text", Text),
    PrimaryKeyConstraint("arrived_us", "request_id"),
    Index("requests_by_tenant", "tenant", "arrived_us"),
    Index("requests_by_id", "request_id"),
    sqlite_with_rowid=False,
    postgresql_partition_by="RANGE (arrived_us)",
)

AUDIT = Table(
    "audit",
    LEDGER,
    Column("seq", _Serial, primary_key=True, autoincrement=False),
    Column("at_us", BigInteger, nullable=False),
    Column("kind", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("decision_id", Text),
    Column("policy_revision", Text),
    Column("policy_body", Text),
    Column("policy_mode", Text),
    Column("rule", Text),
    Column("device", Text),
    Column("asked", Text),
    Column("read_back", Text),
    Column("result", Text),
    Column("latency_s", Double),
    Column("inputs", Text),
    Column("slo_violated", Boolean),
    Column("reason", Text),
    Column("prev_hash", Text, nullable=False),
    Column("hash", Text, nullable=False),
    Index("audit_by_time", "at_us"),
    Index("audit_by_body", "policy_body", "at_us"),
)

AUDIT_ANCHORS = Table(
    "audit_anchors",
    LEDGER,
    Column("seq", _Serial, primary_key=True, autoincrement=False),
    Column("hash", Text, nullable=False),
    Column("pruned_us", BigInteger, nullable=False),
)
"""Last row of each stretch of the audit that retention has removed: where the chain goes on from."""

POLICY_REVISIONS = Table(
    "policy_revisions",
    LEDGER,
    Column("id", _Serial, primary_key=True),
    Column("revision", Text, nullable=False),
    Column("body_revision", Text, nullable=False),
    Column("mode", Text, nullable=False),
    Column("text", Text, nullable=False),
    Column("activated_us", BigInteger, nullable=False),
    Column("actor", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Index("policy_revisions_by_revision", "revision"),
)

HOLDS = Table(
    "holds",
    LEDGER,
    Column("hold_id", Text, primary_key=True),
    Column("mode", Text, nullable=False),
    Column("device", Text),
    Column("clock_mhz", Integer),
    Column("placed_us", BigInteger, nullable=False),
    Column("placed_by", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("expires_us", BigInteger),
    Column("released_us", BigInteger),
    Column("released_by", Text),
)

BUDGETS = Table(
    "budgets",
    LEDGER,
    Column("tenant", Text, nullable=False),
    Column("day_us", BigInteger, nullable=False),
    Column("requests", BigInteger, nullable=False),
    Column("joules", Double, nullable=False),
    Column("grams", Double, nullable=False),
    Column("requests_without_joules", BigInteger, nullable=False),
    Column("requests_without_grams", BigInteger, nullable=False),
    PrimaryKeyConstraint("tenant", "day_us"),
)
"""What each tenant used on each UTC day; written in the transaction of the requests it counts."""

FEED_VALUES = Table(
    "feed_values",
    LEDGER,
    Column("zone", Text, nullable=False),
    Column("start_us", BigInteger, nullable=False),
    Column("end_us", BigInteger, nullable=False),
    Column("source", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("fetched_us", BigInteger, nullable=False),
    Column("issued_us", BigInteger),
    Column("g_per_kwh", Double, nullable=False),
    Column("low_g_per_kwh", Double),
    Column("high_g_per_kwh", Double),
    Column("basis", Text, nullable=False),
    Column("boundary", Text, nullable=False),
    Column("mix", Text),
    Column("method", Text),
    PrimaryKeyConstraint("zone", "start_us", "source", "kind", "fetched_us"),
)

EXPERIMENTS = Table(
    "experiments",
    LEDGER,
    Column("experiment_id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("started_us", BigInteger, nullable=False),
    Column("ended_us", BigInteger),
    Column("status", Text, nullable=False),
    Column("config", Text, nullable=False),
    Column("result", Text),
)

WRITER_STATE = Table(
    "writer_state",
    LEDGER,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("batch", Text, nullable=False),
)
"""The batch last committed: after a connection that broke on commit, it tells whether the batch is in."""

SERIES = Table(
    "series",
    TELEMETRY,
    Column("id", _Serial, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("unit", Text, nullable=False),
    Column("is_counter", Boolean, nullable=False),
    Column("latest_us", BigInteger),
    Column("latest", Double),
    Column("rolled_us", BigInteger),
    Column("rolled", Double),
)
"""`latest`: newest sample, so that nobody searches for it. `rolled`: the last sample taken into the roll-ups."""

SAMPLES = Table(
    "samples",
    TELEMETRY,
    Column("series", BigInteger, nullable=False),
    Column("at_us", BigInteger, nullable=False),
    Column("value", Double, nullable=False),
    PrimaryKeyConstraint("series", "at_us"),
    sqlite_with_rowid=False,
    postgresql_partition_by="RANGE (at_us)",
)


def _rollup(name: str) -> Table:
    return Table(
        name,
        TELEMETRY,
        Column("series", BigInteger, nullable=False),
        Column("start_us", BigInteger, nullable=False),
        Column("count", BigInteger, nullable=False),
        Column("min", Double, nullable=False),
        Column("max", Double, nullable=False),
        Column("sum", Double, nullable=False),
        Column("last", Double, nullable=False),
        Column("increase", Double),
        PrimaryKeyConstraint("series", "start_us"),
        sqlite_with_rowid=False,
    )


SECONDS = _rollup("samples_1s")
MINUTES = _rollup("samples_1min")
"""`increase`: what a counter grew by since the sample before this bucket's first; NULL for gauges."""

ROLLUP_STATE = Table(
    "rollup_state",
    TELEMETRY,
    Column("level", Text, primary_key=True),
    Column("until_us", BigInteger, nullable=False),
)

PARTITIONED = {"requests": "arrived_us", "samples": "at_us"}
"""Tables that are cut by day on PostgreSQL, with the column that decides."""
