"""J/token of the twin at a held batch: against the clock, where the sweet spot shows, and against the batch."""

from __future__ import annotations

from collections.abc import Sequence

from power.twin import Twin, steady_state

PROMPT_TOKENS, OUTPUT_TOKENS = 512, 256.0
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CLOCK_BATCHES = (1, 8, 32, 128)
Curve = Sequence[tuple[float, float]]


def against_clock(twin: Twin) -> tuple[dict[str, Curve], dict[str, tuple[float, float]]]:
    """Curves by batch and the lowest point of each."""
    curves: dict[str, Curve] = {}
    for batch in CLOCK_BATCHES:
        points = [(float(clock), _joules(twin, batch, float(clock))) for clock in twin.gpu.clocks_mhz[10::5]]
        curves[f"batch {batch}"] = points
    return curves, {label: min(points, key=lambda point: point[1]) for label, points in curves.items()}


def against_batch(twin: Twin) -> dict[str, Curve]:
    """At the top clock, and at the sweet spot of each batch."""
    top = float(twin.gpu.clock_max_mhz)
    clocks = [float(clock) for clock in twin.gpu.clocks_mhz[10::5]]
    return {
        "default clocks": [(float(batch), _joules(twin, batch, top)) for batch in BATCHES],
        "the clock with the least J/token": [
            (float(batch), min(_joules(twin, batch, clock) for clock in clocks)) for batch in BATCHES
        ],
    }


def _joules(twin: Twin, batch: int, clock_mhz: float) -> float:
    context = PROMPT_TOKENS + OUTPUT_TOKENS / 2
    return steady_state(twin, batch, PROMPT_TOKENS, OUTPUT_TOKENS, context, clock_mhz=clock_mhz).joules_per_token
