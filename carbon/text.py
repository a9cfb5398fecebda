"""What the command line prints, as lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from carbon.evaluator.judges import JudgeCost
from carbon.evaluator.run import EvaluationResult
from carbon.feed_chain import Forecast
from carbon.intensity import IntensityReading
from carbon.plan_values import ClassState, MixPlan
from carbon.quality_book import QualityBook
from carbon.reports import ReportLine


def reading_lines(reading: IntensityReading) -> Iterator[str]:
    value = reading.intensity
    if value is None:
        yield f"unknown: {reading.reason}"
        return
    yield f"{value.g_per_kwh:.1f} gCO2e/kWh in {value.zone}, {value.methodology}, {value.kind}"
    yield f"for {value.start:%Y-%m-%d %H:%M} to {value.end:%Y-%m-%d %H:%M} UTC, from {value.source}"
    yield f"tier {reading.tier}" + (f", {reading.age_s / 60:.0f} min past its interval" if reading.age_s else "")
    if value.method:
        yield value.method
    if reading.reason:
        yield reading.reason


def forecast_lines(forecast: Forecast) -> Iterator[str]:
    yield f"from {forecast.source}"
    if forecast.model is not None:
        error = forecast.model.error
        yield (
            f"error on held-out weeks: {error.mae_g_per_kwh:.1f} g/kWh over 24 h ({100 * error.relative:.0f} %), "
            f"persistence {error.persistence_mae_g_per_kwh:.1f}"
        )
    for value in forecast.series:
        band = "" if value.low is None or value.high is None else f"  [{value.low:.0f}, {value.high:.0f}]"
        yield f"{value.start:%Y-%m-%d %H:%M}  {value.g_per_kwh:6.1f}{band}"


def plan_lines(plan: MixPlan, levels: Sequence[str], classes: Sequence[ClassState]) -> Iterator[str]:
    intensity = "unknown intensity" if plan.g_per_kwh is None else f"{plan.g_per_kwh:.1f} gCO2e/kWh"
    yield f"{plan.strategy} at {intensity} ({plan.tier}): keeps {100 * plan.share:.1f} % of L0's quality"
    yield f"{'class':24} {'  '.join(f'{name:>6}' for name in levels)}  saving  quality  judged  costs"
    known = {entry.key: entry for entry in classes}
    for key, mix in plan.mixes.items():
        shares = "  ".join(f"{100 * share:5.1f}%" for share in mix.probabilities)
        quality = "-" if mix.quality is None else f"{100 * mix.quality:.0f}%"
        judged, costs = known[key].quality.observations, known[key].cost_method
        yield f"{key:24} {shares}  {100 * mix.saving:5.1f}%  {quality:>7}  {judged:6.0f}  {costs}"
    if plan.saving is not None:
        static = (
            "" if plan.static_saving is None else f"; a static mix of equal quality {100 * plan.static_saving:.1f} %"
        )
        yield f"expected saving {100 * plan.saving:.1f} %{static}"
    for note in plan.notes:
        yield f"note: {note}"


def evaluation_lines(
    result: EvaluationResult, book: QualityBook, levels: Sequence[str], judge: JudgeCost | None
) -> Iterator[str]:
    yield f"{len(result.duels)} answers judged against L0; {result.spared} spared by early stopping"
    for (name, number), verdict in result.verdicts.items():
        quality = book.estimate(name)
        score = 100 * quality.mean[number] / quality.mean[0]
        yield f"{name:24} {levels[number]}  {score:5.1f} % of L0's quality  {verdict}"
    cost = result.cost
    grams = f"{cost.energy_j:.1f} J, {cost.grams:.3f} gCO2e"
    missing = max(cost.unreported, cost.without_grams)
    if missing:
        grams = f"joules and grams not reported for {missing} of them"
    yield f"own cost: {cost.generations} answers, {cost.output_tokens} tokens, {grams}"
    if judge is not None:
        yield f"judge: {judge.calls} calls, {judge.prompt_tokens + judge.output_tokens} tokens"
    if result.ended_by != "all tests ended":
        yield f"ended early: {result.ended_by}"


def report_lines(lines: Sequence[ReportLine], by: Sequence[str]) -> Iterator[str]:
    width = max([len(" ".join(line.key)) for line in lines] + [len(" ".join(by)), 8])
    yield (
        f"{' '.join(by):{width}}  requests        joules  operational g  embodied g    market g"
        "  g/Mtoken in  g/Mtoken out"
    )
    for line in lines:
        score = line.sci
        yield (
            f"{' '.join(line.key):{width}}  {line.requests:8}  {line.energy_j:12.1f}  {line.operational_g:13.4f}  "
            f"{line.embodied_g:10.4f}  {_or_dash(line.market_g, 4):>10}  "
            f"{_or_dash(score.g_per_million_prompt_tokens, 1):>11}  "
            f"{_or_dash(score.g_per_million_output_tokens, 1):>12}"
        )


def plan_record(plan: MixPlan, classes: Sequence[ClassState]) -> Mapping[str, object]:
    """The same as values, for `--json`."""
    known = {entry.key: entry for entry in classes}
    return {
        "at": plan.made_at,
        "strategy": str(plan.strategy),
        "g_per_kwh": plan.g_per_kwh,
        "tier": str(plan.tier),
        "share": plan.share,
        "saving": plan.saving,
        "static_saving": plan.static_saving,
        "notes": plan.notes,
        "mixes": {
            key: {
                "probabilities": mix.probabilities,
                "saving": mix.saving,
                "quality": mix.quality,
                "note": mix.note,
                "judged": known[key].quality.observations,
                "costs": known[key].cost_method,
            }
            for key, mix in plan.mixes.items()
        },
    }


def _or_dash(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
