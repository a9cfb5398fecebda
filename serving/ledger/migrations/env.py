"""Alembic's entry: migrates the connection it is handed."""

from alembic import context

from serving.ledger.tables import LEDGER, TELEMETRY

connection = context.config.attributes["connection"]
database = context.config.attributes["database"]
context.configure(
    connection=connection,
    target_metadata=LEDGER if database == "ledger" else TELEMETRY,
    version_table=f"{database}_version",
    render_as_batch=connection.dialect.name == "sqlite",
)
with context.begin_transaction():
    context.run_migrations()
