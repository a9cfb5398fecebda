"""Versions of the durable database."""
