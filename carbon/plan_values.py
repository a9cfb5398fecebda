"""What the planner is told and what it says: settings, the classes as it sees them, everything a plan depends on."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from carbon.intensity import IntensityReading, Tier
from carbon.optimizer.classed import DEFAULT_CONFIDENCE, ClassedPolicy, LevelCosts
from carbon.optimizer.mix import DirectiveMix
from carbon.quality import QualityEstimate

Array = NDArray[np.float64]


class Strategy(enum.StrEnum):
    OFF = "off"
    SPROUT = "sprout"
    CLASSED = "classed"
    BUDGETED = "budgeted"
    CARBON_BUDGET = "carbon_budget"
    FIXED = "fixed"


@dataclass(frozen=True, slots=True)
class PlanSettings:
    """`tolerance`, `quality_floor`, `confidence`: see `ClassedPolicy`. For `budgeted`: `target` of L0's quality over
    `window_h`, `class_floor` no class falls below, `fair` for a budget a class instead of a pool. For
    `carbon_budget`: `budget_g` over `window_h`, above `class_floor`. For `fixed`: `shares` of the levels, whatever the
    grid. `floors`: of single classes, instead of `quality_floor` and `class_floor` where they are higher.
    `bound_quantiles`: of the trailing window, for the grid's clean and dirty end. `min_judged`: prompts judged at each
    level before a class gets anything but L0. `declared`: quality of each level relative to L0's that the operator
    vouches for, used by classes with less evidence than that; None: nothing is declared."""

    strategy: Strategy = Strategy.CLASSED
    tolerance: float = 0.1
    quality_floor: float = 0.0
    confidence: float = DEFAULT_CONFIDENCE
    target: float = 1.0
    class_floor: float | None = 0.8
    fair: bool = False
    window_h: float = 720.0
    bound_quantiles: tuple[float, float] = (0.0, 1.0)
    min_judged: float = 30.0
    floors: Mapping[str, float] = field(default_factory=dict)
    budget_g: float | None = None
    shares: tuple[float, ...] | None = None
    declared: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.strategy is Strategy.CARBON_BUDGET and self.budget_g is None:
            raise ValueError("a carbon budget needs budget_g")
        if self.strategy is Strategy.FIXED and self.shares is None:
            raise ValueError("a fixed mix needs the shares of its levels")

    @property
    def policy(self) -> ClassedPolicy:
        return ClassedPolicy(self.tolerance, self.quality_floor, self.confidence)

    def with_floor(self, floor: float) -> PlanSettings:
        """The same for a tenant that was promised `floor` of L0's quality in every class."""
        target = max(self.target, floor)
        return replace(self, quality_floor=floor, class_floor=floor, target=target, floors={})


@dataclass(frozen=True, slots=True)
class ClassState:
    """A class, or a band of one, as the planner sees it. `cost_method`: measured, estimated, lengths or
    assumed (see `class_states`)."""

    key: str
    owner: str
    costs: LevelCosts
    quality: QualityEstimate
    weight: float
    cost_method: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything a plan depends on. `window`: hourly g/kWh of the trailing days; `ahead`: of the coming hours, which
    begin at `ahead_starts` where that is told; `served`, `spent_g`, `hours_left`: requests by key and level, grams, and
    what remains of the budget's window. `requests_per_h_and_weight`: what a unit of the classes' weight means in
    arrivals."""

    now: datetime
    reading: IntensityReading
    classes: tuple[ClassState, ...]
    window: tuple[float, ...] = ()
    ahead: tuple[float, ...] = ()
    ahead_starts: tuple[datetime, ...] = ()
    embodied_g_per_s: float = 0.0
    served: Mapping[str, Array] = field(default_factory=dict)
    spent_g: float = 0.0
    hours_left: float | None = None
    requests_per_h_and_weight: float = 1.0


@dataclass(frozen=True, slots=True)
class MixPlan:
    """`mixes` by key. `saving`, `static_saving`: expected share of L0's grams saved by the plan and by a static mix of
    equal quality, None where there is nothing to weigh. `notes`: what could not be done as asked. `hourly_saving`: of
    a budget, which is planned over now and the hours ahead; empty for every other strategy."""

    made_at: datetime
    strategy: Strategy
    mixes: Mapping[str, DirectiveMix]
    share: float
    g_per_kwh: float | None
    tier: Tier
    saving: float | None
    static_saving: float | None
    notes: tuple[str, ...] = ()
    hourly_saving: tuple[float, ...] = ()
