"""`spec.power`: the governor with its parameters, the band it may move in, the row it shares.

Names and defaults are those of `power.governors`, with units in the keys; a test keeps the two together.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from serving.policy.base import Fraction, Megahertz, Name, NonNegative, Positive, Section

GovernorName = Literal["default", "static", "slo_slack", "phase_aware"]


class ClockBand(Section):
    """SM clocks the governor may ask for. An absent end is the device's own."""

    min: Megahertz | None = None
    max: Megahertz | None = None

    @model_validator(mode="after")
    def ends_in_order(self) -> Self:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"the clock band is empty: min {self.min} MHz is above max {self.max} MHz")
        return self


class PowerLimit(Section):
    max: Positive | None = None
    """Power limit of each GPU, W; it always guards, whatever the governor wishes."""


class StaticSettings(Section):
    clock_mhz: Megahertz
    """The one clock for all loads."""


class SloSlackSettings(Section):
    margin: Fraction = 0.6
    """Share of the SLO a prediction may use."""
    waiting_margin: Fraction = 0.8
    """The same for requests that wait already: their work is known."""
    guard: Fraction = 0.97
    """Share of the SLO at which a measured latency raises the caution, and a waiting request ends the slack."""
    lost: Positive = 1.1
    """Share of the SLO above which a measured latency raises the caution twice, and ends the slack where that is at its
    limit."""
    guard_s: NonNegative = 5.0
    """How long it stays ended."""
    deaf_s: NonNegative = 30.0
    """How long after a breach only a worse one is heard: measured latencies look back 30 s."""
    worse: float = Field(default=1.02, ge=1.0)
    """By how much it must be worse."""
    near: Fraction = 0.85
    """Share of the SLO below which the caution fades."""
    alarm: float = Field(default=1.07, ge=1.0)
    """Factor of the caution at each breach."""
    headroom: float = Field(default=1.08, ge=1.0)
    """Growth of the load to be ready for."""
    leave_headroom: float = Field(default=1.2, ge=1.0)
    """The same while at the driver's default clock: near saturation nothing is given away."""
    learning: Fraction = 0.2
    """Weight of a new measured step time in the twin's correction."""
    forgetting: Fraction = 0.0016
    """How fast the caution fades with each decision, at most."""
    prompt_forgetting: Fraction = 0.0005
    """How fast the length of a long prompt is forgotten, with each decision."""
    max_caution: float = Field(default=2.0, ge=1.0)
    trusted_min: Positive = 0.3
    trusted_max: Positive = 3.0
    """Corrections outside `trusted_min .. trusted_max` are not believed: the driver's default is used."""

    @model_validator(mode="after")
    def trusted_in_order(self) -> Self:
        if self.trusted_min >= self.trusted_max:
            raise ValueError("trusted_min must be below trusted_max")
        return self


class PhaseAwareSettings(Section):
    prefill_mhz: Megahertz | None = None
    """Clock while prompts are computed; null for the driver's default."""
    decode_mhz: Megahertz | None = None
    """Clock while tokens are drawn; null leaves the choice to slo_slack."""
    switch_latency_s: Positive = 0.013
    worth: Positive = 10.0
    """A prefill must last this many switch latencies to be worth a switch."""


class Stability(Section):
    """What keeps a governor from hunting."""

    lower_after_s: NonNegative = 1.0
    dwell_s: NonNegative = 0.5
    dead_band_mhz: int = Field(default=45, ge=0)
    max_lower_mhz: int = Field(default=600, gt=0)
    raise_gap_s: Positive = 0.1
    switch_cost_j: NonNegative = 5.0
    payback_s: Positive = 2.0


class RowBudget(Section):
    """A power budget with a brake over all GPUs under control, beside whichever governor each one has."""

    watts: Positive
    """What the row may draw in all."""
    rule: Literal["steps", "proportional"] = "steps"
    """steps: POLCA's thresholds t1 and t2 with fixed clocks. proportional: nothing below t2; above it the low-priority
    clock gives back the excess, down to half the top clock, before the high-priority pool is held."""
    meter_s: Positive = 2.0
    """Power is judged by its mean over this time: prefills that coincide for an instant are no overload."""
    t1: float = Field(default=0.80, gt=0.0, lt=1.0)
    """Share of the budget above which the steps rule caps the low-priority pool, and the lowest t2 that auto finds."""
    t2: Literal["auto"] | float = "auto"
    """Upper threshold; auto leaves room for the worst rise measured over one reaction_s."""
    hysteresis: float = Field(default=0.05, gt=0.0, lt=1.0)
    reaction_s: Positive = 1.0
    """Actuation plus telemetry delay: nothing is escalated before an action could show."""
    relax_dwell_s: NonNegative = 5.0
    min_history_s: NonNegative = 3600.0
    """Telemetry needed before `t2: auto` trusts its own history; until then t2 is 0.89."""
    low_priority_gpus: tuple[Name, ...] = ()
    """UUIDs of the GPUs of the low-priority pool; the others are high priority."""

    @model_validator(mode="after")
    def thresholds_in_order(self) -> Self:
        if self.hysteresis >= self.t1:
            raise ValueError(f"hysteresis {self.hysteresis:g} must be below t1 {self.t1:g}")
        if isinstance(self.t2, float) and not self.t1 < self.t2 < 1.0:
            raise ValueError(f"t2 {self.t2:g} must lie between t1 {self.t1:g} and 1")
        return self


class PrefillThrottle(Section):
    """Fewer prompt tokens a step while the row's brake, the power limit or heat holds clocks at their floor, where a
    step full of prompt tokens would hold up every answer under way. Prompts wait longer instead."""

    min_step_tokens: int = Field(default=256, ge=1)
    """Never fewer tokens a step than this, nor than the requests the engine may run at once."""
    react_s: Positive = 1.0
    """Between two halvings of the budget."""
    relax_s: Positive = 5.0
    """Quiet before it is doubled again."""


class CarbonFollow(Section):
    """Narrows clock band and row budget while the grid is dirty, around whichever governor is chosen."""

    floor_fraction: Fraction = 0.6
    """Ceiling of the clock over the top clock, at the dirtiest grid."""
    budget_floor: Fraction = 0.75
    """Share of the row budget then."""
    steps: int = Field(default=5, ge=1, le=100)


class Power(Section):
    governor: GovernorName = "default"
    clock_mhz: ClockBand = ClockBand()
    power_limit_w: PowerLimit = PowerLimit()
    static: StaticSettings | None = None
    slo_slack: SloSlackSettings = SloSlackSettings()
    phase_aware: PhaseAwareSettings = PhaseAwareSettings()
    stability: Stability = Stability()
    row_budget: RowBudget | None = None
    prefill_throttle: PrefillThrottle | None = None
    carbon_follow: CarbonFollow | None = None
