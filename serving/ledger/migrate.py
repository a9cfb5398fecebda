"""Bring the databases to the present schema, with Alembic, from any earlier one."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine

DATABASES = ("ledger", "telemetry")
_SCRIPTS = Path(__file__).parent / "migrations"


def configuration(database: str, connection: Connection | None = None) -> Config:
    """Alembic's configuration for `ledger` or `telemetry`; each has versions and a version table of its own."""
    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    config.set_main_option("version_locations", str(_SCRIPTS / database).replace("%", "%%"))
    config.set_main_option("path_separator", "newline")
    config.attributes.update(connection=connection, database=database)
    return config


def upgrade(engine: Engine, database: str, revision: str = "head") -> None:
    """In one transaction: a failed upgrade leaves the earlier schema."""
    with engine.begin() as connection:
        command.upgrade(configuration(database, connection), revision)
