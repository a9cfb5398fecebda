"""Indexes for the questions readers ask."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

INDEXES = (
    ("requests_by_id", "requests", ["request_id"]),
    ("requests_by_tenant", "requests", ["tenant", "arrived_us"]),
    ("audit_by_body", "audit", ["policy_body", "at_us"]),
    ("audit_by_time", "audit", ["at_us"]),
    ("policy_revisions_by_revision", "policy_revisions", ["revision"]),
)


def upgrade() -> None:
    for name, table, columns in INDEXES:
        op.create_index(name, table, columns)


def downgrade() -> None:
    for name, table, _ in INDEXES:
        op.drop_index(name, table)
