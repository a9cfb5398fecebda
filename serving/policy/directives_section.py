"""`spec.directives` and `spec.tenants`: how briefly answers may be given, at what quality, for whom."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from serving.policy.base import Name, NonNegative, Positive, Section, Share, Text

OptimizerName = Literal["off", "fixed", "sprout", "classed", "quality_budget", "carbon_budget"]
OnExceed = Literal["brief", "refuse", "warn"]


class Level(Section):
    id: Name
    text: Text | None = None
    """The system message; a level without one leaves the prompt as it is."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Cap on the answer's tokens at this level."""
    quality: NonNegative | None = None
    """Known quality relative to the undirected answer's; null where the evaluator is to find out."""


class MixShare(Section):
    level: Name
    share: Share


class Budget(Section):
    """What the budgeted optimizers spend over a window."""

    window_h: int = Field(default=720, ge=1, le=8784)
    quality_target: Share = 1.0
    """quality_budget: mean quality relative to L0's over the window."""
    grams: Positive | None = None
    """carbon_budget: grams the window may cost."""
    fair: bool = False
    """A budget for each prompt class instead of one pooled over all."""


class PromptClass(Section):
    name: Name
    quality_floor: Share | None = None
    directed: bool = True
    """False keeps this class at the undirected level always."""


class Evaluator(Section):
    """When judged samples of the levels' quality are taken (SPROUT's opportunistic rule)."""

    enabled: bool = True
    grace_h: NonNegative = 6.0
    """Never again within this time."""
    max_idle_h: Positive = 72.0
    """After this time at the latest."""

    @model_validator(mode="after")
    def gaps_in_order(self) -> Self:
        if self.grace_h >= self.max_idle_h:
            raise ValueError("grace_h must be below max_idle_h")
        return self


class Directives(Section):
    levels: tuple[Level, ...] = Field(min_length=1, max_length=8)
    """The first is the undirected answer (L0)."""
    optimizer: OptimizerName | None = None
    """null: carbon_budget where budget.grams is given, quality_budget where a budget is, else classed."""
    quality_floor: float = Field(default=1.0, ge=0.0)
    """Share of L0's quality that every prompt class keeps, whatever the grid."""
    tolerance: Share = 0.1
    """What a class may give up at the dirtiest grid, as far as the floor allows."""
    confidence: float = Field(default=0.75, ge=0.5, lt=1.0)
    """One-sided confidence of every floor; 0.5 is the plain mean."""
    min_judged: float = Field(default=30.0, ge=1.0)
    """Prompts judged at each level before a class gets anything but the undirected level."""
    mix: tuple[MixShare, ...] = ()
    """The shares of `optimizer: fixed`."""
    budget: Budget | None = None
    classes: tuple[PromptClass, ...] = Field(default=(), max_length=64)
    evaluator: Evaluator = Evaluator()

    @property
    def chosen_optimizer(self) -> OptimizerName:
        if self.optimizer is not None:
            return self.optimizer
        if self.budget is None:
            return "classed"
        return "quality_budget" if self.budget.grams is None else "carbon_budget"


class Tenant(Section):
    """Limits and wishes of one owner of API keys, by the key's name."""

    name: Name
    carbon_budget_g_per_day: Positive | None = None
    energy_budget_j_per_day: Positive | None = None
    soft_share: float = Field(default=0.8, gt=0.0, le=1.0)
    """Share of the budget beyond which it counts as nearly used."""
    soft_quality: Share = 0.85
    """Share of L0's quality that the tenant's classes keep from then on."""
    on_exceed: OnExceed = "warn"
    directive: Name = "auto"
    """auto, off, or a level's id."""
    quality_floor: float | None = Field(default=None, ge=0.0)
    low_priority: bool = False
    store_prompt_text: bool = False
    """The tenant has agreed that prompts and answers are kept in the ledger."""
