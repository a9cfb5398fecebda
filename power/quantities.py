"""Energy with its provenance: how many joules, how they were obtained, how far they can be trusted."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

Clock = Callable[[], float]
"""Monotonic seconds: `time.monotonic` in production, a virtual clock in simulation."""

JOULES_PER_KWH = 3_600_000.0


class Method(enum.StrEnum):
    """How a figure was obtained, strongest first."""

    MEASURED = "measured"
    ESTIMATED = "estimated"
    SIMULATED = "simulated"


_STRENGTH = {Method.SIMULATED: 0, Method.ESTIMATED: 1, Method.MEASURED: 2}


def weakest(methods: Iterable[Method]) -> Method | None:
    """The method a sum of figures inherits; `None` for no figures."""
    return min(methods, key=lambda method: _STRENGTH[method], default=None)


class Source(enum.StrEnum):
    """Where joules come from."""

    NVML_COUNTER = "nvml_energy_counter"
    NVML_POWER = "nvml_power_integral"
    RAPL = "rapl"
    TWIN = "twin"


class Scope(enum.StrEnum):
    """What the figure covers."""

    GPU = "gpu"
    MODULE = "module"
    PACKAGE = "package"
    HOST = "host"


@dataclass(frozen=True, slots=True)
class Energy:
    """Joules over `interval_s` seconds. `uncertainty_percent` is `None` when no bound can be given."""

    joules: float
    method: Method
    source: Source
    scope: Scope
    interval_s: float
    uncertainty_percent: float | None

    @property
    def kwh(self) -> float:
        return self.joules / JOULES_PER_KWH

    @property
    def mean_power_w(self) -> float | None:
        return self.joules / self.interval_s if self.interval_s > 0 else None


def root_sum_square(percents: Iterable[float | None]) -> float | None:
    """Combine independent uncertainties; one unknown makes the whole unknown."""
    total = 0.0
    for percent in percents:
        if percent is None:
            return None
        total += percent * percent
    return math.sqrt(total)
