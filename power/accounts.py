"""One request's account, and the figure that is given out of it."""

from __future__ import annotations

from dataclasses import dataclass

from power.books import Meter, RequestEnergy
from power.quantities import Method, Source, root_sum_square, weakest


@dataclass(slots=True)
class Account:
    """Joules gathered so far, and what spoils their certainty."""

    admitted_s: float
    retired_s: float | None = None
    prefill_j: float = 0.0
    decode_j: float = 0.0
    idle_j: float = 0.0
    estimated: bool = False
    gap: bool = False
    foreign: bool = False


def request_energy(
    request_id: str, account: Account, ended_s: float, meter: Meter, idle_w: float | None, *, settled: bool
) -> RequestEnergy:
    """The figure of an account that ends at `ended_s`. Uncertainty: the sensor's gain, and half an update of the
    counter at each end of the request."""
    duration = max(0.0, ended_s - account.admitted_s)
    warnings = []
    timing: float | None = 100.0 * min(1.0, meter.update_s / (2 * duration)) if duration > 0 else 100.0
    if account.foreign:
        warnings.append("other processes used the board; their energy cannot be told apart")
        timing = None
    if account.gap:
        warnings.append("samples are missing; energy was spread over a gap")
    if account.estimated and meter.source == Source.NVML_COUNTER:
        warnings.append("part of the energy was integrated from power samples")
    method = meter.method
    if account.estimated or not settled:
        method = weakest([method, Method.ESTIMATED]) or method
    idle_known = idle_w is not None
    return RequestEnergy(
        request_id=request_id,
        prefill_j=account.prefill_j,
        decode_j=account.decode_j,
        idle_j=account.idle_j if idle_known else None,
        method=method,
        source=meter.source,
        scope=meter.scope,
        duration_s=duration,
        uncertainty_percent=root_sum_square([meter.gain_error_percent, timing]),
        settled=settled,
        idle_reason=None if idle_known else "the board has not been seen idle and no idle power is configured",
        warnings=tuple(warnings),
    )
