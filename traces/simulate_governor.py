"""The governors that search with the twin, compiled for simulation: the same choices in a hundredth of the time.

Only the arithmetic is replaced; rules, caution and pacing are `power.governors`' own. Tests hold the two together.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import numpy as np

from power.governors import EngineView, Observation, PhaseAwareGovernor, Slo, SloSlackGovernor
from power.governors.prediction import Forecast, asked_tokens_per_s
from traces.governor_arithmetic import choose_clock, engine_numbers, expected_step_s, forecast_clock
from traces.twin_arithmetic import Numbers
from traces.twin_step import PreparedTwin


@dataclass(frozen=True, slots=True)
class QuickSloSlack(SloSlackGovernor):
    """`SloSlackGovernor` whose predictions are compiled. Its twin must be a `PreparedTwin`."""

    def choose(
        self, observation: Observation, engine: EngineView, slo: Slo, correction: float, caution: float = 1.0
    ) -> Forecast | None:
        clocks = clock_numbers(observation.clocks_mhz, self.bounds.min_mhz or 0)
        if not len(clocks):
            return None
        share, waiting_share = self.margin / caution, self.waiting_margin / caution
        asked = asked_tokens_per_s(self.twin, engine, observation.current_mhz)
        place = choose_clock(
            numbers_of(self.twin),
            engine_numbers(engine),
            clocks,
            float(asked),
            float(correction),
            waiting_share * slo.ttft_s,
            share * slo.ttft_s,
            share * slo.tpot_s,
        )
        return None if place < 0 else self.forecast(engine, int(clocks[place]), asked, correction)

    def forecast(self, engine: EngineView, clock_mhz: int, asked_per_s: float, correction: float) -> Forecast:
        numbers = numbers_of(self.twin)
        found = forecast_clock(numbers, engine_numbers(engine), float(clock_mhz), float(asked_per_s), float(correction))
        return Forecast(clock_mhz, *found)

    def expected_step_s(self, engine: EngineView, clock_mhz: float) -> float:
        tokens = float(round(engine.step_tokens)) if engine.step_tokens >= 1.0 else 0.0
        return expected_step_s(
            numbers_of(self.twin), float(engine.running), float(engine.kv_tokens), tokens, float(clock_mhz)
        )


@dataclass(frozen=True, slots=True)
class QuickPhaseAware(PhaseAwareGovernor):
    """`PhaseAwareGovernor` whose decode clock is found by `QuickSloSlack`."""

    _decoding: SloSlackGovernor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_decoding", QuickSloSlack(self.twin, self.bounds, self.stability))

    def decode_governor(self) -> SloSlackGovernor:
        return self._decoding


def numbers_of(twin: object) -> Numbers:
    assert isinstance(twin, PreparedTwin), "compiled predictions need a PreparedTwin"
    return twin.numbers


@functools.lru_cache(maxsize=64)
def clock_numbers(clocks_mhz: tuple[int, ...], lowest_mhz: int) -> Numbers:
    """Supported clocks from `lowest_mhz` on."""
    return np.array([clock for clock in clocks_mhz if clock >= lowest_mhz], dtype=np.float64)
