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
        "series",
        sa.Column("id", SERIAL, primary_key=True),
        sa.Column("name", sa.Text(), nullable=False, unique=True),
        sa.Column("unit", sa.Text(), nullable=False),
        sa.Column("is_counter", sa.Boolean(), nullable=False),
        sa.Column("latest_us", sa.BigInteger()),
        sa.Column("latest", sa.Double()),
        sa.Column("rolled_us", sa.BigInteger()),
        sa.Column("rolled", sa.Double()),
    )
    op.create_table(
        "samples",
        sa.Column("series", sa.BigInteger(), nullable=False),
        sa.Column("at_us", sa.BigInteger(), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("series", "at_us"),
        sqlite_with_rowid=False,
        postgresql_partition_by="RANGE (at_us)",
    )
    op.create_table(
        "samples_1s",
        sa.Column("series", sa.BigInteger(), nullable=False),
        sa.Column("start_us", sa.BigInteger(), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("min", sa.Double(), nullable=False),
        sa.Column("max", sa.Double(), nullable=False),
        sa.Column("sum", sa.Double(), nullable=False),
        sa.Column("last", sa.Double(), nullable=False),
        sa.Column("increase", sa.Double()),
        sa.PrimaryKeyConstraint("series", "start_us"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "samples_1min",
        sa.Column("series", sa.BigInteger(), nullable=False),
        sa.Column("start_us", sa.BigInteger(), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("min", sa.Double(), nullable=False),
        sa.Column("max", sa.Double(), nullable=False),
        sa.Column("sum", sa.Double(), nullable=False),
        sa.Column("last", sa.Double(), nullable=False),
        sa.Column("increase", sa.Double()),
        sa.PrimaryKeyConstraint("series", "start_us"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "rollup_state",
        sa.Column("level", sa.Text(), primary_key=True),
        sa.Column("until_us", sa.BigInteger(), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("rollup_state")
    op.drop_table("samples_1min")
    op.drop_table("samples_1s")
    op.drop_table("samples")
    op.drop_table("series")
