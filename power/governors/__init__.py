"""Governors: pure functions of an observation that choose clocks, limits and admission."""
