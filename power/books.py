"""Values of energy attribution: samples in, figures of requests and the running books out."""

from __future__ import annotations

from dataclasses import dataclass

from power.quantities import JOULES_PER_KWH, Method, Scope, Source

ATTRIBUTION_METHOD = "work_share"


@dataclass(frozen=True, slots=True)
class EnergySample:
    """One look at the sensor. `energy_j` is the cumulative counter, `power_w` instantaneous."""

    time_s: float
    energy_j: float | None
    power_w: float | None


@dataclass(frozen=True, slots=True)
class Meter:
    """What is known of the sensor behind the samples."""

    method: Method
    source: Source
    scope: Scope
    gain_error_percent: float | None
    update_s: float = 0.1
    window_s: float = 0.025


@dataclass(frozen=True, slots=True)
class RequestEnergy:
    """What a request cost. `idle_j` is `None` when no idle level is known (`idle_reason` says why).

    `settled` is false while the counter has not yet covered the request's last steps; the tail is then
    estimated from the work. `uncertainty_percent` covers the metering (gain, timing), not the sharing rule; `None`
    when no bound can be given, with the reason among `warnings`.
    """

    request_id: str
    prefill_j: float
    decode_j: float
    idle_j: float | None
    method: Method
    source: Source
    scope: Scope
    duration_s: float
    uncertainty_percent: float | None
    settled: bool
    attribution_method: str = ATTRIBUTION_METHOD
    idle_reason: str | None = None
    warnings: tuple[str, ...] = ()

    @property
    def joules(self) -> float:
        return self.prefill_j + self.decode_j + (self.idle_j or 0.0)

    def fields(self) -> dict[str, float | str | bool | list[str] | None]:
        """The energy part of an answer's `energy` object; what is unknown is `None`."""
        return {
            "energy_joules": self.joules,
            "energy_kwh": self.joules / JOULES_PER_KWH,
            "prefill_joules": self.prefill_j,
            "decode_joules": self.decode_j,
            "idle_joules": self.idle_j,
            "avg_power_watts": self.joules / self.duration_s if self.duration_s > 0 else None,
            "duration_seconds": self.duration_s,
            "method": self.method.value,
            "source": self.source.value,
            "scope": self.scope.value,
            "attribution_method": self.attribution_method,
            "uncertainty_percent": self.uncertainty_percent,
            "settled": self.settled,
            "warnings": [*self.warnings, *([self.idle_reason] if self.idle_reason else [])],
        }


@dataclass(slots=True)
class Books:
    """Running totals, J, and what went wrong. `counter_j` is what the counter (or its stand-in) moved."""

    counter_j: float = 0.0
    prefill_j: float = 0.0
    decode_j: float = 0.0
    request_idle_j: float = 0.0
    idle_j: float = 0.0
    unattributed_j: float = 0.0
    estimated_j: float = 0.0
    counter_resets: int = 0
    gaps: int = 0
    stuck: int = 0
    foreign_samples: int = 0
    dropped_steps: int = 0

    @property
    def requests_j(self) -> float:
        return self.prefill_j + self.decode_j + self.request_idle_j

    @property
    def closure_error_j(self) -> float:
        """Counter minus everything handed out: zero but for rounding, or the bookkeeping is wrong."""
        return self.counter_j - self.requests_j - self.idle_j - self.unattributed_j
