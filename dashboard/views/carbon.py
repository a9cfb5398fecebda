"""Carbon: intensity with its provenance, forecast, the mix of directives by class, and the quality behind it."""

from __future__ import annotations

import math
from typing import Any

from dashboard.schema_carbon import CarbonState, ClassMix, EvaluatorState, PlanState
from dashboard.schema_state import Intensity
from dashboard.views.charts import Line, Panel
from dashboard.views.formats import UNKNOWN, ago, clock, count, duration, grams, joules, number, share
from dashboard.views.origin import DataState, Origin, missing, of_intensity
from dashboard.views.overview import Tile, forecast_band, plan_line
from dashboard.views.palette import Palette

COUNTERFACTUAL = "against every answer at L0"
QUALITY_STEPS = 50  # of one
HISTORY_S, AHEAD_S, MARGIN_S = 86400.0, 48 * 3600.0, 3600.0


def tiles(carbon: CarbonState, now_unix_s: float) -> list[Tile]:
    intensity, plan, forecast = carbon.intensity, carbon.plan, carbon.forecast
    verb = "expected saving" if carbon.enforce else "expected if enforced"
    made = [
        Tile(
            "Intensity",
            number(intensity.g_per_kwh, "g/kWh"),
            f"{intensity.zone}, PUE {intensity.pue:g}",
            of_intensity(intensity),
            "Of the grid, before PUE.",
        )
    ]
    if forecast is None:
        made.append(Tile("Forecast", UNKNOWN, "", missing("forecast", "no source gives one now"), ""))
    else:
        error = (
            "error not known" if forecast.relative_error is None else f"mean error {share(forecast.relative_error, 1)}"
        )
        origin = Origin(DataState.ESTIMATED, forecast.source, max(0.0, now_unix_s - forecast.made_unix_s))
        hours = (forecast.points[-1].end_unix_s - now_unix_s) if forecast.points else None
        made.append(
            Tile("Forecast", duration(hours), error, origin, "How far ahead it reaches; error on unseen weeks.")
        )
    if plan is None:
        made.append(
            Tile("Directives", UNKNOWN, "", missing("optimizer", "no plan: the policy gives no directives"), "")
        )
        return made
    made_at = Origin(DataState.ESTIMATED, plan.strategy, max(0.0, now_unix_s - plan.made_unix_s))
    nothing = missing(plan.strategy, "no class of prompts is judged yet, so nothing is shortened")
    origin = made_at if plan.saving is not None else nothing
    made.append(
        Tile("Grams saved", share(plan.saving, 1), f"{verb}, {COUNTERFACTUAL}", origin, "By the plan in force.")
    )
    origin = made_at if plan.static_saving is not None else nothing
    fixed = f"a fixed mix of the same quality, {COUNTERFACTUAL}"
    made.append(Tile("Fixed mix", share(plan.static_saving, 1), fixed, origin, "What following the grid must beat."))
    return made


def provenance(intensity: Intensity) -> dict[str, str]:
    known = {
        "Source": intensity.source,
        "Kind": intensity.kind,
        "Basis": intensity.basis,
        "Boundary": intensity.boundary,
        "Mix": intensity.mix,
        "Trust": intensity.tier,
        "Why": intensity.reason,
    }
    return {name: value for name, value in known.items() if value}


def panel(carbon: CarbonState, now_unix_s: float, colours: Palette) -> Panel:
    history = [(p.start_unix_s * 1000, p.g_per_kwh) for p in carbon.history]
    now = carbon.intensity
    if now.g_per_kwh is not None and now.start_unix_s is not None:
        history = [point for point in history if point[0] < now.start_unix_s * 1000]
        history += [(now.start_unix_s * 1000, now.g_per_kwh), (now_unix_s * 1000, now.g_per_kwh)]
    lines = [Line("intensity", colours.green, points=history, step=True, width=2)]
    if carbon.forecast is not None and carbon.forecast.points:
        last = carbon.forecast.points[-1]
        points = [(p.start_unix_s * 1000, p.g_per_kwh) for p in carbon.forecast.points]
        end = (last.end_unix_s * 1000, last.g_per_kwh)
        lines.append(Line("forecast", colours.orange, points=[*points, end], step=True, dashed=True))
        lines += plan_line(carbon, colours)
    origin = of_intensity(now)
    return Panel("Carbon intensity", "g/kWh", lines, band=forecast_band(carbon, colours), origin=origin)


def since_unix_s(carbon: CarbonState, now_unix_s: float) -> float:
    """Where the chart begins: a day ago, or at what is known after a fresh start."""
    known = [point.start_unix_s for point in carbon.history]
    if carbon.intensity.start_unix_s is not None:
        known.append(carbon.intensity.start_unix_s)
    return max(now_unix_s - HISTORY_S, min([*known, now_unix_s]) - MARGIN_S)


def levels(plan: PlanState) -> list[str]:
    return sorted({level for mix in plan.mixes for level in mix.probabilities})


def mix_spec(plan: PlanState, colours: Palette) -> dict[str, Any]:
    """One bar a class, split by level."""
    mixes = list(reversed(plan.mixes))
    shades = (colours.grey, colours.sky, colours.blue, colours.purple, colours.orange)
    return {
        "animation": False,
        "grid": {"left": 120, "right": 24, "top": 30, "bottom": 26},
        "legend": {"top": 0, "left": 0, "icon": "rect", "textStyle": {"color": colours.text}},
        "tooltip": {"trigger": "axis", "valueFormatter": "%.1f %%"},
        "xAxis": {"type": "value", "max": 100, "axisLabel": {"formatter": "{value} %", "color": colours.text}},
        "yAxis": {"type": "category", "data": [mix.key for mix in mixes], "axisLabel": {"color": colours.text}},
        "series": [
            {
                "type": "bar",
                "stack": "mix",
                "name": level,
                "barMaxWidth": 22,
                "itemStyle": {"color": shades[index % len(shades)]},
                "data": [round(100 * mix.probabilities.get(level, 0.0), 2) for mix in mixes],
            }
            for index, level in enumerate(levels(plan))
        ],
    }


def mix_rows(plan: PlanState) -> list[dict[str, Any]]:
    return [_mix_row(mix) for mix in plan.mixes]


def _mix_row(mix: ClassMix) -> dict[str, Any]:
    return {
        "Class": mix.key,
        "Mix": ", ".join(f"{level} {share(p)}" for level, p in sorted(mix.probabilities.items()) if p > 0),
        f"Grams saved {COUNTERFACTUAL}": share(mix.saving, 1),
        "Expected quality": number(mix.quality),
        "Share of requests": share(mix.weight),
        "Cost from": mix.cost_method or UNKNOWN,
        "Note": mix.note or "",
    }


def quality_rows(evaluator: EvaluatorState) -> list[dict[str, Any]]:
    return [
        {
            "Class": entry.key,
            "Level": entry.level_id,
            "Relative quality": number(entry.relative_quality, digits=4),
            "90 % interval": UNKNOWN
            if entry.low is None or entry.high is None
            else f"{entry.low:.3f} to {entry.high:.3f}",
            "Judged prompts": number(entry.duels),
        }
        for entry in evaluator.quality
    ]


def quality_spec(evaluator: EvaluatorState, colours: Palette) -> dict[str, Any] | None:
    """A dot for the estimate on a bar for its interval; 1 is L0's quality. None where nothing was judged."""
    entries = [e for e in evaluator.quality if None not in (e.low, e.high, e.relative_quality)]
    if not entries:
        return None
    entries.reverse()
    names = [f"{entry.key} {entry.level_id}" for entry in entries]
    lows = [entry.low or 0.0 for entry in entries]
    widths = [(entry.high or 0.0) - low for entry, low in zip(entries, lows)]
    hidden = {"type": "bar", "stack": "interval", "silent": True, "itemStyle": {"opacity": 0}, "data": lows}
    one = {"symbol": "none", "data": [{"xAxis": 1.0, "label": {"formatter": "L0"}}]}
    return {
        "animation": False,
        "grid": {"left": 120, "right": 24, "top": 22, "bottom": 26},
        "xAxis": {
            "type": "value",
            "scale": True,
            # Its label is written in full: a step of the axis, not 0.9249999.
            "min": math.floor(min(lows) * QUALITY_STEPS) / QUALITY_STEPS,
            "axisLabel": {"formatter": "{value}", "color": colours.text},
        },
        "yAxis": {"type": "category", "data": names, "axisLabel": {"color": colours.text}},
        "series": [
            hidden | {"name": "from"},
            {
                "type": "bar",
                "stack": "interval",
                "name": "90 % interval",
                "barMaxWidth": 8,
                "itemStyle": {"color": colours.sky, "opacity": 0.55},
                "data": widths,
                "markLine": one | {"lineStyle": {"color": colours.grey}},
            },
            {
                "type": "scatter",
                "name": "estimate",
                "symbolSize": 9,
                "itemStyle": {"color": colours.blue},
                "data": [[entry.relative_quality, name] for entry, name in zip(entries, names)],
            },
        ],
    }


def judged(evaluator: EvaluatorState, now_unix_s: float) -> str:
    due = "Judging is due" if evaluator.due else "No judging is due"
    if evaluator.running:
        due = "Judging now"
    text = f"{due}: {evaluator.reason}. Last judged {ago(evaluator.judged_unix_s, now_unix_s)}."
    if evaluator.waiting_for:
        text += f" Waiting for: {evaluator.waiting_for}."
    kept = ", ".join(f"{number} {key}" for key, number in sorted(evaluator.prompts.items()) if number)
    return f"{text} Prompts kept for judging: {kept or 'none'}."


def run_rows(evaluator: EvaluatorState) -> list[dict[str, str]]:
    """What each run of the evaluator judged, found and cost; newest first."""
    return [
        {
            "Started (UTC)": clock(run.started_unix_s),
            "Took": duration(run.finished_unix_s - run.started_unix_s),
            "Why": run.reason,
            "Judge": run.judge,
            "Judged": count(run.judged),
            "Verdicts": ", ".join(f"{key}: {verdict}" for key, verdict in sorted(run.verdicts.items())),
            "Energy": joules(run.joules),
            "CO2e": grams(run.grams),
            "Ended by": run.ended_by,
            "Failures": count(run.failures),
            "Error": run.error or "",
        }
        for run in evaluator.runs
    ]
