"""Alembic's scripts, one folder a database. A script is frozen once released: it never imports `tables`."""
