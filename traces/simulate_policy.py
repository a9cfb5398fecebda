"""What a simulation varies: the policy, as plain settings; policy files are translated into it by the command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from power.governors import (
    Bounds,
    CarbonFollow,
    DefaultGovernor,
    Governor,
    PrefillThrottle,
    RowBudget,
    RowTrim,
    Slo,
    Stability,
    StaticGovernor,
)
from power.row import METER_S
from power.twin import Twin

GovernorName = Literal["default", "static", "slo_slack", "phase_aware"]
DirectiveKind = Literal["static", "sprout", "classed", "budgeted"]
RouterName = Literal["spread", "pack"]


class SloSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits of each request, ms; attainment is the share of requests that keep both."""

    ttft_ms: float = 1000.0
    tpot_ms: float = 50.0

    def __post_init__(self) -> None:
        if not (self.ttft_ms > 0 and self.tpot_ms > 0):
            raise ValueError(f"slo: limits must be above 0 ms, got {self.ttft_ms} and {self.tpot_ms}")

    @property
    def slo(self) -> Slo:
        return Slo(self.ttft_ms / 1e3, self.tpot_ms / 1e3)

    @property
    def limits_ms(self) -> dict[str, float]:
        return {"ttft": self.ttft_ms, "tpot": self.tpot_ms}


class RowSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A power budget over all GPUs. `t2=None` learns it from the worst rise over `reaction_s` after `min_history_s`.

    `rule`: POLCA's steps, or clocks in proportion to the excess over T2, with `trim` for fields of that rule.
    `meter_s`: power is judged by its mean over this time, for every policy alike. `start_s`: rises before are the empty
    servers of a simulation filling up, and teach nothing.
    `control_delay_s`: from a decision to its effect beyond the actuation latency (40 s for POLCA's out-of-band
    control, 0 in-band); `telemetry_s`: how often row power is looked at.
    """

    budget_w: float
    t1: float = 0.80
    t2: float | None = None
    hysteresis: float = 0.05
    reaction_s: float = 1.0
    relax_dwell_s: float = 5.0
    control_delay_s: float = 0.0
    telemetry_s: float = 1.0
    min_history_s: float = 3600.0
    capping: bool = True
    rule: Literal["steps", "proportional"] = "steps"
    meter_s: float = METER_S
    start_s: float = 0.0
    trim: Mapping[str, float] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.budget_w <= 0 or self.telemetry_s <= 0 or self.control_delay_s < 0 or self.meter_s <= 0:
            raise ValueError("row: budget_w, telemetry_s and meter_s must be above 0, control_delay_s at least 0")

    @property
    def rules(self) -> RowBudget | RowTrim:
        if self.rule == "proportional":
            return RowTrim(self.t1, self.hysteresis, self.reaction_s, self.relax_dwell_s, **self.trim)
        return RowBudget(self.t1, self.hysteresis, self.reaction_s, self.relax_dwell_s)


class DirectiveSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which answer lengths are asked for. `static`: one mix for all hours (`mix`, or, without one, the mix over all
    hours that keeps `target` of L0's quality in the training rows); the others are the optimizers of `carbon`."""

    kind: DirectiveKind
    mix: tuple[float, ...] | None = None
    tolerance: float = 0.1
    target: float = 1.0
    confidence: float = 0.6


class CarbonFollowSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    floor_fraction: float = 0.6
    budget_floor: float = 0.75
    steps: int = 5


class ThrottleSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Fewer prompt tokens a step under the row's brake, once clocks are at their floor."""

    min_step_tokens: int = 256
    react_s: float = 1.0
    relax_s: float = 5.0


class SimulationPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`clock_mhz`: of the static governor. `governor_options`, `stability`: overrides of the governor's own fields.

    `servers`: fewer than the experiment offers, with `router: pack` for the fewest that keep their queues short.
    """

    name: str
    governor: GovernorName = "default"
    clock_mhz: int | None = None
    min_mhz: int | None = None
    max_mhz: int | None = None
    power_limit_w: float | None = None
    governor_options: Mapping[str, float] = msgspec.field(default_factory=dict)
    stability: Mapping[str, float] = msgspec.field(default_factory=dict)
    carbon_follow: CarbonFollowSettings | None = None
    directives: DirectiveSettings | None = None
    row: RowSettings | None = None
    throttle: ThrottleSettings | None = None
    servers: int | None = None
    router: RouterName = "spread"

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("a policy needs a name")
        if (self.governor == "static") != (self.clock_mhz is not None):
            raise ValueError(f"policy {self.name}: clock_mhz goes with governor static, and only with it")

    def make_governor(self, twin: Twin) -> Governor:
        """A governor of `power.governors`. Raises `ValueError` for an option it does not have."""
        # See `SimulationSettings.make_twin`.
        from traces.simulate_governor import QuickPhaseAware, QuickSloSlack

        bounds = Bounds(self.min_mhz, self.max_mhz, self.power_limit_w)
        options: dict[str, Any] = dict(self.governor_options)
        paced: dict[str, Any] = dict(self.stability)
        governor: Governor
        try:
            if self.governor == "static":
                assert self.clock_mhz is not None
                governor = StaticGovernor(self.clock_mhz, bounds)
            elif self.governor == "slo_slack":
                governor = QuickSloSlack(twin, bounds, Stability(**paced), **options)
            elif self.governor == "phase_aware":
                governor = QuickPhaseAware(twin, bounds=bounds, stability=Stability(**paced), **options)
            else:
                governor = DefaultGovernor(bounds)
        except TypeError as error:
            raise ValueError(f"policy {self.name}: {error}") from None
        if self.carbon_follow is not None:
            follow = self.carbon_follow
            governor = CarbonFollow(governor, follow.floor_fraction, follow.budget_floor, follow.steps)
        return governor

    def make_throttle(self) -> PrefillThrottle | None:
        given = self.throttle
        if given is None:
            return None
        return PrefillThrottle(given.min_step_tokens, given.react_s, given.relax_s, self.min_mhz)

    @property
    def controls(self) -> bool:
        """Whether anything is ever asked of the devices."""
        return (
            self.governor != "default"
            or self.row is not None
            or self.throttle is not None
            or self.carbon_follow is not None
            or bool(self.max_mhz or self.power_limit_w)
        )
