"""Versions of the disposable database."""
