"""From the first schema to the present one, with rows in it, on both back ends."""

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text

from serving.ledger import migrate
from serving.ledger.engine import writer_engine
from serving.ledger.reader import LedgerReader
from serving.ledger.tables import LEDGER, TELEMETRY
from serving.ledger.writer import LedgerWriter


@pytest.mark.parametrize(("database", "metadata"), [("ledger", LEDGER), ("telemetry", TELEMETRY)])
def test_migrations_arrive_at_the_tables(location, database, metadata):
    engine = writer_engine(location, database)
    migrate.upgrade(engine, database)
    migrate.upgrade(engine, database)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": f"{database}_version"})
        assert compare_metadata(context, metadata) == []
        names = set(inspect(connection).get_table_names())
        assert names == {*metadata.tables, f"{database}_version"}
    engine.dispose()


def test_rows_of_the_first_schema_are_still_there_after_an_upgrade(location, quick, make_request, noon_us):
    engine = writer_engine(location, "ledger")
    migrate.upgrade(engine, "ledger", "0001")
    day_us = noon_us // 86_400_000_000 * 86_400_000_000
    with engine.begin() as connection:
        if not location.is_sqlite:
            span = f"FROM ({day_us}) TO ({day_us + 86_400_000_000})"
            connection.execute(text(f"CREATE TABLE requests_d20260115 PARTITION OF requests FOR VALUES {span}"))
        connection.execute(
            text("INSERT INTO requests (request_id, arrived_us, model, tenant) VALUES ('old', :at, 'm', 't')"),
            {"at": noon_us},
        )
        assert not [index for index in inspect(connection).get_indexes("requests") if index["name"] == "requests_by_id"]
    engine.dispose()
    with LedgerWriter(location, quick) as writer:
        writer.submit(make_request(1, queue_s=0.25)).result(20)
    reader = LedgerReader(location)
    assert {row["request_id"]: row["queue_s"] for row in reader.requests()} == {"old": None, "r1": 0.25}
    with reader.engine.connect() as connection:
        assert [index for index in inspect(connection).get_indexes("requests") if index["name"] == "requests_by_id"]
    reader.close()


def test_a_failed_upgrade_leaves_the_schema_before_it(location):
    engine = writer_engine(location, "ledger")
    migrate.upgrade(engine, "ledger", "0001")
    script = ScriptDirectory.from_config(migrate.configuration("ledger")).get_revision("0002").module
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE in_the_way (id INTEGER)"))
        connection.execute(text(f"CREATE INDEX {script.INDEXES[-1][0]} ON in_the_way (id)"))
    with pytest.raises(Exception, match="exists"):
        migrate.upgrade(engine, "ledger")
    with engine.connect() as connection:
        assert connection.execute(text("SELECT version_num FROM ledger_version")).scalar() == "0001"
        assert inspect(connection).get_indexes("audit") == []
    engine.dispose()


@pytest.mark.parametrize("database", migrate.DATABASES)
def test_every_migration_can_be_undone(location, database):
    from alembic import command

    engine = writer_engine(location, database)
    migrate.upgrade(engine, database)
    with engine.begin() as connection:
        command.downgrade(migrate.configuration(database, connection), "base")
        assert set(inspect(connection).get_table_names()) <= {f"{database}_version"}
    engine.dispose()


def test_versions_form_one_line():
    for database in migrate.DATABASES:
        scripts = ScriptDirectory.from_config(migrate.configuration(database))
        assert len(scripts.get_heads()) == 1
        assert len(scripts.get_bases()) == 1
