"""Trace formats, workload synthesis, replay, virtual-time simulation and experiments."""
