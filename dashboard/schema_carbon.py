"""Intensity, forecast, plan of directives and the quality behind it.

The fields of the admin API this dashboard reads; others are ignored. Units stand in names, null is unknown."""

from __future__ import annotations

from msgspec import Struct

from dashboard.schema_state import Intensity


class ForecastPoint(Struct, frozen=True):
    start_unix_s: float
    end_unix_s: float
    g_per_kwh: float
    low_g_per_kwh: float | None
    high_g_per_kwh: float | None


class ForecastState(Struct, frozen=True):
    source: str
    made_unix_s: float
    relative_error: float | None
    points: list[ForecastPoint]


class ClassMix(Struct, frozen=True):
    key: str
    probabilities: dict[str, float]
    saving: float
    quality: float | None
    note: str | None
    cost_method: str | None
    weight: float | None


class PlannedHour(Struct, frozen=True):
    start_unix_s: float
    g_per_kwh: float
    saving: float


class PlanState(Struct, frozen=True):
    strategy: str
    made_unix_s: float
    g_per_kwh: float | None
    tier: str
    saving: float | None
    static_saving: float | None
    mixes: list[ClassMix]
    notes: list[str]
    ahead: list[PlannedHour]


class LevelState(Struct, frozen=True):
    level_id: str
    text: str | None
    max_tokens: int | None


class QualityEntry(Struct, frozen=True):
    key: str
    level_id: str
    duels: float
    relative_quality: float | None
    low: float | None
    high: float | None


class EvaluatorRun(Struct, frozen=True):
    started_unix_s: float
    finished_unix_s: float
    reason: str
    judge: str
    judged: int
    verdicts: dict[str, str]
    ended_by: str
    joules: float | None
    grams: float | None
    failures: int
    error: str | None = None


class EvaluatorState(Struct, frozen=True):
    due: bool
    reason: str
    judged_unix_s: float | None
    quality: list[QualityEntry]
    running: bool
    waiting_for: str | None
    prompts: dict[str, int]
    runs: list[EvaluatorRun]


class CarbonState(Struct, frozen=True):
    enforce: bool
    intensity: Intensity
    levels: list[LevelState]
    forecast: ForecastState | None
    plan: PlanState | None
    history: list[ForecastPoint]
