"""Benchmarks, run beside peers in one run and reported as ratios."""
