"""What goes into the carbon plane and what comes out: tenants and settings, decisions and outcomes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from carbon.accounting import MarketFactor, RequestEnergy, check_pue
from carbon.directives import SPROUT_LEVELS, LevelSet, Reason, TenantRules
from carbon.embodied import EmbodiedProfile
from carbon.plan_values import PlanSettings
from carbon.tenant_budget import BudgetState, TenantBudget


@dataclass(frozen=True, slots=True)
class Tenant:
    """What the policy says of a tenant. `prompt_class` declares the class of all its requests; `quality_floor`: share
    of L0's quality that its requests keep in every class, instead of the policy's."""

    rules: TenantRules = field(default_factory=TenantRules)
    budget: TenantBudget | None = None
    prompt_class: str | None = None
    quality_floor: float | None = None


@dataclass(frozen=True, slots=True)
class PlaneSettings:
    """`enforce` False: decisions are made and reported in `would_be`, every request gets L0.

    `embodied`: profiles of all hardware charged per device second. `classes`: names the classifier may predict.
    """

    levels: LevelSet = SPROUT_LEVELS
    plan: PlanSettings = field(default_factory=PlanSettings)
    enforce: bool = True
    tenants: Mapping[str, Tenant] = field(default_factory=dict)
    default_tenant: Tenant = field(default_factory=Tenant)
    pue: float = 1.0
    embodied: tuple[EmbodiedProfile, ...] = ()
    market: MarketFactor | None = None
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_pue(self.pue)


@dataclass(frozen=True, slots=True)
class DirectiveDecision:
    """What a request gets. Everything but `text` may be reported; the text stays inside.

    `probabilities`: of each level for this request, by id. `class_source`: declared, predicted or unknown.
    `refused`: the tenant's hard budget is used up; answer 429 with `retry_after_s`.
    """

    level_id: str
    level: int
    text: str | None
    max_tokens: int | None
    reason: Reason
    probabilities: Mapping[str, float]
    prompt_class: str
    class_source: str
    class_probability: float | None
    key: str
    tenant: str
    budget: BudgetState
    would_be: str | None = None
    refused: bool = False
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished request. `prompt_text` and `declared_class` teach the classifier; the text is not kept."""

    decision: DirectiveDecision
    prompt_tokens: int
    output_tokens: int
    energy: RequestEnergy
    total_g: float | None
    prompt_text: str | None = None
    declared_class: str | None = None
