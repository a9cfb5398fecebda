"""Feeds, forecast, plan, and the evaluator of quality."""

from __future__ import annotations

from msgspec import Struct

from serving.admin_schema.state import Intensity


class FeedHealthState(Struct):
    name: str
    last_success_unix_s: float | None
    last_error: str | None
    failures: int
    not_before_unix_s: float | None


class FeedList(Struct):
    zone: str
    feeds: list[FeedHealthState]


class ForecastPoint(Struct):
    """`low_g_per_kwh`, `high_g_per_kwh`: p10 and p90 where the maker gives a band."""

    start_unix_s: float
    end_unix_s: float
    g_per_kwh: float
    low_g_per_kwh: float | None
    high_g_per_kwh: float | None


class ForecastState(Struct):
    """`relative_error`: mean absolute error over the mean on weeks the model had not seen, for our own model."""

    source: str
    made_unix_s: float
    relative_error: float | None
    points: list[ForecastPoint]


class ClassMix(Struct):
    """The mix of one prompt class (`code`) or of a band of it (`code/0`). `quality`: expected, relative to L0's."""

    key: str
    probabilities: dict[str, float]
    saving: float
    quality: float | None
    note: str | None
    cost_method: str | None
    weight: float | None


class PlannedHourState(Struct):
    """What the plan expects of the present hour or one to come: `saving` as a share of L0's grams, at the forecast
    `g_per_kwh`."""

    start_unix_s: float
    g_per_kwh: float
    saving: float


class PlanState(Struct):
    """`saving`: expected share of L0's grams; `static_saving`: of a fixed mix with the same quality. `ahead`: now
    and the coming hours, as far as the forecast goes; empty while nothing is known that could be saved."""

    strategy: str
    made_unix_s: float
    g_per_kwh: float | None
    tier: str
    saving: float | None
    static_saving: float | None
    mixes: list[ClassMix]
    notes: list[str]
    ahead: list[PlannedHourState]


class LevelState(Struct):
    """The text of a directive is the operator's and is not shown to viewers of requests."""

    level_id: str
    text: str | None
    max_tokens: int | None


class QualityEntry(Struct):
    """Quality of a level relative to L0's, with its 90 % interval; `duels`: judged prompts behind it."""

    key: str
    level_id: str
    duels: float
    relative_quality: float | None
    low: float | None
    high: float | None


class EvaluatorRunState(Struct):
    """A finished run of the evaluator, with what it cost itself: answers it had made (`joules`, `grams`) and its judge
    (`judge_*`; `judge_cost` in the currency of the policy's prices). Joules and grams are null where not all are known.
    """

    started_unix_s: float
    finished_unix_s: float
    reason: str
    judge: str
    judged: int
    verdicts: dict[str, str]
    ended_by: str
    generations: int
    joules: float | None
    grams: float | None
    judge_calls: int
    judge_joules: float | None
    judge_grams: float | None
    judge_cost: float
    failures: int
    inconsistent: int
    unreadable: int
    spared: int
    error: str | None = None


class EvaluatorState(Struct):
    """`prompts`: kept for judging, by class. `waiting_for`: why a run that is due does not begin. `runs`: newest
    first."""

    due: bool
    reason: str
    judged_unix_s: float | None
    quality: list[QualityEntry]
    running: bool
    waiting_for: str | None
    prompts: dict[str, int]
    runs: list[EvaluatorRunState]


class CarbonState(Struct):
    """`enforce` False: directives are decided and reported, not given."""

    enforce: bool
    intensity: Intensity
    levels: list[LevelState]
    forecast: ForecastState | None
    plan: PlanState | None
    history: list[ForecastPoint]
    """The last 24 hours as far as a feed tells them."""
