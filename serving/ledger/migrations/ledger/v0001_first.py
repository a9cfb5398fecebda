"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

SERIAL = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "requests",
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("arrived_us", sa.BigInteger(), nullable=False),
        sa.Column("finished_us", sa.BigInteger()),
        sa.Column("tenant", sa.Text()),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("endpoint", sa.Text()),
        sa.Column("task_class", sa.Text()),
        sa.Column("directive", sa.Text()),
        sa.Column("directive_reason", sa.Text()),
        sa.Column("policy_revision", sa.Text()),
        sa.Column("policy_mode", sa.Text()),
        sa.Column("priority", sa.Integer()),
        sa.Column("prompt_tokens", sa.Integer()),
        sa.Column("completion_tokens", sa.Integer()),
        sa.Column("cached_tokens", sa.Integer()),
        sa.Column("choices", sa.Integer()),
        sa.Column("queue_s", sa.Double()),
        sa.Column("ttft_s", sa.Double()),
        sa.Column("tpot_s", sa.Double()),
        sa.Column("e2e_s", sa.Double()),
        sa.Column("energy_j", sa.Double()),
        sa.Column("prefill_j", sa.Double()),
        sa.Column("decode_j", sa.Double()),
        sa.Column("idle_j", sa.Double()),
        sa.Column("energy_method", sa.Text()),
        sa.Column("energy_source", sa.Text()),
        sa.Column("energy_scope", sa.Text()),
        sa.Column("attribution_method", sa.Text()),
        sa.Column("energy_uncertainty_percent", sa.Double()),
        sa.Column("operational_g", sa.Double()),
        sa.Column("embodied_g", sa.Double()),
        sa.Column("pue", sa.Double()),
        sa.Column("intensity_g_per_kwh", sa.Double()),
        sa.Column("intensity_source", sa.Text()),
        sa.Column("intensity_kind", sa.Text()),
        sa.Column("intensity_tier", sa.Text()),
        sa.Column("intensity_basis", sa.Text()),
        sa.Column("intensity_boundary", sa.Text()),
        sa.Column("intensity_age_s", sa.Double()),
        sa.Column("zone", sa.Text()),
        sa.Column("finish_reason", sa.Text()),
        sa.Column("status", sa.Integer()),
        sa.Column("experiment_id", sa.Text()),
        sa.Column("prompt_text", sa.Text()),
        sa.Column("answer_text", sa.Text()),
        sa.PrimaryKeyConstraint("arrived_us", "request_id"),
        sqlite_with_rowid=False,
        postgresql_partition_by="RANGE (arrived_us)",
    )
    op.create_table(
        "audit",
        sa.Column("seq", SERIAL, primary_key=True, autoincrement=False),
        sa.Column("at_us", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("decision_id", sa.Text()),
        sa.Column("policy_revision", sa.Text()),
        sa.Column("policy_body", sa.Text()),
        sa.Column("policy_mode", sa.Text()),
        sa.Column("rule", sa.Text()),
        sa.Column("device", sa.Text()),
        sa.Column("asked", sa.Text()),
        sa.Column("read_back", sa.Text()),
        sa.Column("result", sa.Text()),
        sa.Column("latency_s", sa.Double()),
        sa.Column("inputs", sa.Text()),
        sa.Column("slo_violated", sa.Boolean()),
        sa.Column("reason", sa.Text()),
        sa.Column("prev_hash", sa.Text(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
    )
    op.create_table(
        "audit_anchors",
        sa.Column("seq", SERIAL, primary_key=True, autoincrement=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("pruned_us", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "policy_revisions",
        sa.Column("id", SERIAL, primary_key=True),
        sa.Column("revision", sa.Text(), nullable=False),
        sa.Column("body_revision", sa.Text(), nullable=False),
        sa.Column("mode", sa.Text(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("activated_us", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
    )
    op.create_table(
        "holds",
        sa.Column("hold_id", sa.Text(), primary_key=True),
        sa.Column("mode", sa.Text(), nullable=False),
        sa.Column("device", sa.Text()),
        sa.Column("clock_mhz", sa.Integer()),
        sa.Column("placed_us", sa.BigInteger(), nullable=False),
        sa.Column("placed_by", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("expires_us", sa.BigInteger()),
        sa.Column("released_us", sa.BigInteger()),
        sa.Column("released_by", sa.Text()),
    )
    op.create_table(
        "budgets",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("day_us", sa.BigInteger(), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("joules", sa.Double(), nullable=False),
        sa.Column("grams", sa.Double(), nullable=False),
        sa.Column("requests_without_joules", sa.BigInteger(), nullable=False),
        sa.Column("requests_without_grams", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "day_us"),
    )
    op.create_table(
        "feed_values",
        sa.Column("zone", sa.Text(), nullable=False),
        sa.Column("start_us", sa.BigInteger(), nullable=False),
        sa.Column("end_us", sa.BigInteger(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("fetched_us", sa.BigInteger(), nullable=False),
        sa.Column("issued_us", sa.BigInteger()),
        sa.Column("g_per_kwh", sa.Double(), nullable=False),
        sa.Column("low_g_per_kwh", sa.Double()),
        sa.Column("high_g_per_kwh", sa.Double()),
        sa.Column("basis", sa.Text(), nullable=False),
        sa.Column("boundary", sa.Text(), nullable=False),
        sa.Column("mix", sa.Text()),
        sa.Column("method", sa.Text()),
        sa.PrimaryKeyConstraint("zone", "start_us", "source", "kind", "fetched_us"),
    )
    op.create_table(
        "experiments",
        sa.Column("experiment_id", sa.Text(), primary_key=True),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("started_us", sa.BigInteger(), nullable=False),
        sa.Column("ended_us", sa.BigInteger()),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("config", sa.Text(), nullable=False),
        sa.Column("result", sa.Text()),
    )
    op.create_table(
        "writer_state",
        sa.Column("id", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("batch", sa.Text(), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("writer_state")
    op.drop_table("experiments")
    op.drop_table("feed_values")
    op.drop_table("budgets")
    op.drop_table("holds")
    op.drop_table("policy_revisions")
    op.drop_table("audit_anchors")
    op.drop_table("audit")
    op.drop_table("requests")
