"""`spec.directives` and `spec.tenants`: how briefly answers may be given, at what quality, for whom."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from serving.policy.base import Name, NonNegative, Positive, Section, Share, Text

OptimizerName = Literal["off", "fixed", "sprout", "classed", "quality_budget", "carbon_budget"]
OnExceed = Literal["brief", "refuse", "warn"]
ScheduleName = Literal["forecast", "sprout"]
JudgeName = Literal["self", "exact", "endpoint"]


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


class JudgeEndpoint(Section):
    """An OpenAI-compatible model that judges; https, or http on loopback."""

    url: Text
    model: Text
    key_env: Text | None = None
    """Environment variable with its key."""
    max_calls: int | None = Field(default=None, ge=1)
    """Calls a run may make at most."""
    max_cost: Positive | None = None
    """Cost of a run at most, in the currency of the prices."""
    prompt_price_per_million: NonNegative = 0.0
    output_price_per_million: NonNegative = 0.0


class Evaluator(Section):
    """When and by whom the levels' quality is judged. Judging waits for a clean grid, and is forced by age."""

    enabled: bool = True
    schedule: ScheduleName = "forecast"
    """forecast: at the cleanest hour forecast before the deadline. sprout: SPROUT's opportunistic rule."""
    grace_h: NonNegative | None = None
    """Never again within this time; null: 72 for forecast, 6 for sprout."""
    max_idle_h: Positive | None = None
    """After this time at the latest; null: 168 for forecast, 72 for sprout."""
    judge: JudgeName = "self"
    """self: the served model. exact: known answers of `prompts` are matched. endpoint: `endpoint` is asked."""
    endpoint: JudgeEndpoint | None = None
    prompts: Text | None = None
    """JSON lines of prompts to judge by: class, and prompt or messages; answer where it is known."""
    keep_prompts: bool = False
    """Everybody agreed that their prompts are kept for judging, encrypted and bounded; else each tenant for itself."""
    max_prompts: int = Field(default=200, ge=1, le=10_000)
    """Of a class, in one run."""
    max_tokens: int = Field(default=1024, ge=1)
    """Of each answer that is judged."""

    @property
    def hours(self) -> tuple[float, float]:
        """The grace and the longest idle time in force."""
        grace, idle = (72.0, 168.0) if self.schedule == "forecast" else (6.0, 72.0)
        return (grace if self.grace_h is None else self.grace_h, idle if self.max_idle_h is None else self.max_idle_h)

    @model_validator(mode="after")
    def gaps_in_order(self) -> Self:
        grace, idle = self.hours
        if grace >= idle:
            raise ValueError(f"grace_h ({grace:g}) must be below max_idle_h ({idle:g})")
        return self

    @model_validator(mode="after")
    def judge_is_there(self) -> Self:
        if self.judge == "endpoint" and self.endpoint is None:
            raise ValueError("judge: endpoint needs `endpoint` with url and model")
        if self.judge == "exact" and self.prompts is None:
            raise ValueError("judge: exact needs `prompts`, a file with known answers")
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
    keep_prompts: bool = False
    """The tenant has agreed that its prompts are kept for judging quality, encrypted and bounded."""
