"""What each kind of experiment shows in its report: sections of text, a table and plots, and the honest finding."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from traces.arrivals import SECONDS_AN_HOUR
from traces.experiment_plots import (
    Plot,
    Plotter,
    against_load,
    by_hour,
    energy_split,
    latency_cdfs,
    over_time,
    pareto,
    row_power,
    sweep_curves,
)
from traces.experiment_summary import ACTIVE, Point, Summary
from traces.experiment_sweeps import against_batch, against_clock

Place = tuple[str, str, str | None]
WANTED_SAVING = 0.35
WANTED_GRAMS = 0.70


@dataclass(frozen=True, slots=True)
class Section:
    title: str
    text: Sequence[str] = ()
    table: Sequence[Sequence[str]] = ()
    plots: Sequence[Plot] = field(default_factory=tuple)


def plain_study(plotter: Plotter) -> list[Section]:
    """For experiments of the user's own."""
    return [_comparison(plotter, place) for place in plotter.summary.places]


def dvfs_study(plotter: Plotter) -> list[Section]:
    """Savings against load, beside the best static clock in hindsight."""
    summary, sections = plotter.summary, []
    for trace in dict.fromkeys(place[0] for place in summary.places):
        loads = {place[1]: plotter.loads[place[1]] for place in summary.places if place[0] == trace}
        peak = summary.peak_load(trace, loads, None)
        lines = [_peak_line(summary, trace, peak)]
        third = _nearest(loads, peak[1] / 3) if peak else None
        if peak is not None and third is not None:
            lines += _third_lines(summary, (trace, third, None), loads[third] / peak[1])
        lines += _beats_static(summary, trace, peak[1] if peak else None, loads)
        slug = _slug(trace)
        plots = [against_load(plotter, trace, None, f"savings-{slug}.png")]
        place = (trace, third or next(iter(loads)), None)
        plots += _place_plots(plotter, place, slug)
        sections.append(Section(trace, lines, _load_table(summary, trace, peak, loads), plots))
    sections.append(_sweeps(plotter))
    return sections


def directives_study(plotter: Plotter) -> list[Section]:
    """Directives by hour and zone, at the quality they keep."""
    summary, sections = plotter.summary, []
    for place in summary.places:
        points = [point for point in summary.points if point.place == place]
        slug = _slug("-".join(part for part in place if part))
        plots = [energy_split(plotter, place, f"split-{slug}.png")]
        if max(point.mean("duration") or 0.0 for point in points) > 2 * SECONDS_AN_HOUR:
            plots.insert(0, by_hour(plotter, points, f"hours-{slug}.png"))
        label = ", ".join(part for part in place if part)
        sections.append(Section(label, _gram_lines(summary, points), _gram_table(summary, points), plots))
    return sections


def together_study(plotter: Plotter) -> list[Section]:
    """Clocks, directives and fewer servers, alone and together."""
    summary = plotter.summary
    sections = directives_study(plotter)
    lines = []
    for place in summary.places:
        points = [point for point in summary.points if point.place == place and point.policy != summary.baseline]
        good = [p for p in points if (p.lowest("quality_relative") or 1.0) >= 1.0 and summary.keeps(p)]
        best = max(good, key=lambda p: _saved(summary, p), default=None)
        if best is None:
            lines.append(f"{place[2] or place[0]}: no policy keeps quality and SLO.")
            continue
        saved = _saved(summary, best)
        verdict = "reaches" if saved >= WANTED_GRAMS else f"misses by {100 * (WANTED_GRAMS - saved):.1f} points"
        lines.append(
            f"{place[2] or place[0]}: {best.policy} saves {100 * saved:.1f} % of the grams of a request at "
            f"{100 * (best.lowest('quality_relative') or 1.0):.1f} % of L0's preference or more in every seed and at "
            f"least 99 % of the baseline's SLO attainment, which {verdict} the wanted 70 %."
        )
    return [Section("The finding", lines), *sections]


def row_study(plotter: Plotter) -> list[Section]:
    """Servers added within one row's power."""
    summary = plotter.summary
    header = (
        "servers, policy, peak of budget, over budget, brakes, HP held, T2, HP P50, HP P99, LP P50, LP P99, verdict"
    )
    table = [header.split(", ")]
    added: dict[str, list[float]] = {}
    for place in summary.places:
        base = summary.at(place, plotter.summary.baseline)
        assert base is not None
        for point in (point for point in summary.points if point.place == place):
            slow = {name: _slowdown(point, base, name) for name in ROW_LIMITS}
            brakes = _total(point, "row_brakes")
            over_s = _total(point, "row_over_budget_s")
            fine = brakes == 0 and over_s == 0 and all(slow[name] <= limit for name, limit in ROW_LIMITS.items())
            if fine and point.policy != summary.baseline:
                added.setdefault(point.policy, []).append(point.rows[0]["servers"])
            table.append(
                [
                    place[1], point.policy, _percent(_highest(point, "row_peak_share")),
                    f"{over_s:.0f} s", f"{brakes:.0f}", f"{_held_high_s(point):.0f} s",
                    _percent(point.mean("row_t2")),
                    *(f"{100 * value:+.1f} %" for value in slow.values()),
                    "not capped" if point.policy == summary.baseline else "within POLCA's SLOs" if fine else "fails",
                ]
            )  # fmt: skip
    servers = [point.rows[0]["servers"] for point in summary.points]
    fewest = min(servers)
    lines = [
        "Slowdowns are of end-to-end latency against the same requests on the same servers without any cap, the worst "
        "seed's. Peak and time over budget are those of one meter for every policy; HP held: how long decisions held "
        "the high pool too, brakes included."
    ]
    for policy in summary.policies:
        if policy == summary.baseline:
            continue
        most = max(added.get(policy, [0]))
        if most:
            lines.append(
                f"{policy}: up to {most:.0f} servers in the power of {fewest} ({100 * (most / fewest - 1):+.0f} %) "
                "with zero brakes, no reading over the budget, and within POLCA's SLOs in every seed."
            )
        else:
            lines.append(f"{policy}: not within POLCA's SLOs at any size tried.")
    budget = next(p for p in plotter.experiment.policies if p.row is not None).row
    assert budget is not None
    plots = []
    for place in summary.places[-3:]:
        points = [point for point in summary.points if point.place == place]
        plots.append(row_power(plotter, points, budget.budget_w, f"row-{_slug(place[1])}.png"))
    return [Section("Servers in the same row power", lines, table, plots)]


ROW_LIMITS = {"high_p50_e2el_ms": 0.01, "high_p99_e2el_ms": 0.05, "low_p50_e2el_ms": 0.05, "low_p99_e2el_ms": 0.50}
"""POLCA's limits: slowdown of high and low priority at P50 and P99."""

STUDIES: Mapping[str, Callable[[Plotter], list[Section]]] = {
    "plain": plain_study,
    "dvfs": dvfs_study,
    "row": row_study,
    "directives": directives_study,
    "together": together_study,
}


def _comparison(plotter: Plotter, place: Place) -> Section:
    label = ", ".join(part for part in place if part)
    return Section(label, (), (), _place_plots(plotter, place, _slug(label)))


def _place_plots(plotter: Plotter, place: Place, slug: str) -> list[Plot]:
    summary = plotter.summary
    shown = _shown_policies(summary, place)
    return [
        over_time(plotter, shown, f"time-{slug}.png"),
        pareto(plotter, place, f"pareto-{slug}.png"),
        latency_cdfs(plotter, shown, f"cdf-{slug}.png"),
        energy_split(plotter, place, f"split-{slug}.png"),
    ]


def _shown_policies(summary: Summary, place: Place) -> list[Point]:
    """The baseline, the best static clock, and all that is not static."""
    best = summary.best_static(place)
    return [
        point
        for point in summary.points
        if point.place == place and (not point.policy.startswith("static") or point is best)
    ]


def _peak_line(summary: Summary, trace: str, peak: tuple[str, float] | None) -> str:
    if peak is None:
        return (
            f"{summary.baseline} keeps the SLO for 99 % of the requests at no load tried: there is no peak to speak of."
        )
    return (
        f"Peak load: {peak[0]} the recorded rate, the highest tried at which {summary.baseline} keeps both limits for "
        "99 % of the requests in every seed."
    )


def _third_lines(summary: Summary, place: Place, share: float) -> list[str]:
    lines = []
    best = summary.best_static(place)
    reference = summary.saving(best) if best is not None else None
    for policy in summary.policies:
        point = summary.at(place, policy)
        if point is None or policy.startswith("static") or policy == summary.baseline:
            continue
        saving = summary.saving(point)
        if saving is None:
            continue
        kept = "keeps" if summary.keeps(point) else "does not keep"
        active = summary.saving(point, ACTIVE)
        gap = saving.mean - WANTED_SAVING
        lines.append(
            f"At {place[1]} ({100 * share:.0f} % of the peak) {policy} saves {saving.text(3, 100)} % of J/output token "
            f"and {kept} 99 % of the baseline's attainment; "
            + (
                "that reaches the wanted 35 %"
                if gap >= 0
                else f"that misses the wanted 35 % by {-100 * gap:.1f} points"
            )
            + (f"; best static clock in hindsight: {reference.text(3, 100)} %" if reference else "")
            + (f". Without the idle power: {active.text(3, 100)} %." if active else ".")
        )
    return lines


def _beats_static(summary: Summary, trace: str, peak: float | None, loads: Mapping[str, float]) -> list[str]:
    lines = []
    for policy in summary.policies:
        if policy.startswith("static") or policy == summary.baseline:
            continue
        lost = []
        for variant, load in loads.items():
            if peak is not None and load > peak:
                continue
            place = (trace, variant, None)
            point, best = summary.at(place, policy), summary.best_static(place)
            if point is None or best is None:
                continue
            mine, theirs = summary.saving(point), summary.saving(best)
            if mine is None or theirs is None:
                continue
            if mine.mean < theirs.mean or not summary.keeps(point):
                lost.append(f"{variant} ({100 * (mine.mean - theirs.mean):+.1f} points against {best.policy})")
        lines.append(
            f"{policy} beats the best static clock in hindsight at every load up to the peak."
            if not lost
            else f"{policy} does not beat the best static clock in hindsight at " + ", ".join(lost) + "."
        )
    return lines


def _load_table(
    summary: Summary, trace: str, peak: tuple[str, float] | None, loads: Mapping[str, float]
) -> list[list[str]]:
    table = [
        [
            "load",
            "share of peak",
            *(f"{policy}: saved %" for policy in summary.policies if policy != summary.baseline),
            "best static",
        ]
    ]
    for variant, load in loads.items():
        cells = [variant, f"{100 * load / peak[1]:.0f} %" if peak else "–"]
        for policy in summary.policies:
            if policy == summary.baseline:
                continue
            point = summary.at((trace, variant, None), policy)
            saving = summary.saving(point) if point is not None else None
            mark = "" if point is not None and summary.keeps(point) else " (misses SLO)"
            cells.append("–" if saving is None else saving.text(3, 100.0) + mark)
        best = summary.best_static((trace, variant, None))
        cells.append(best.policy if best is not None else "none keeps the SLO")
        table.append(cells)
    return table


def _gram_lines(summary: Summary, points: Sequence[Point]) -> list[str]:
    lines = []
    for point in points:
        if point.policy == summary.baseline:
            continue
        saving = summary.saving(point, "co2e_g_per_request")
        if saving is None:
            continue
        quality = point.figure("quality_relative")
        shown = f" at {quality.text(4, 100)} % of L0's preference" if quality else ""
        note = "" if summary.keeps(point) else "; it does not keep 99 % of the baseline's SLO attainment"
        lines.append(f"{point.policy}: {saving.text(3, 100)} % fewer grams a request, idle included{shown}{note}.")
    return lines


def _gram_table(summary: Summary, points: Sequence[Point]) -> list[list[str]]:
    header = (
        "policy, mg/request, saved %, mg/request without idle, saved %, J/request, output tokens/request, quality %"
    )
    table = [[*header.split(", "), "SLO %", "GPUs"]]
    for point in points:
        own, base = _active_grams(point), None
        reference = summary.at(point.place, summary.baseline)
        if reference is not None:
            base = _active_grams(reference)
        saved = 100 * (1 - own / base) if own is not None and base else None
        saving = summary.saving(point, "co2e_g_per_request")
        tokens, done = point.mean("total_output_tokens"), point.mean("completed")
        table.append(
            [
                point.policy,
                _text(point.mean("co2e_g_per_request"), 1e3),
                saving.text(3, 100.0) if saving else "–",
                _text(own, 1e3),
                "–" if saved is None else f"{saved:.1f}",
                _text(point.mean("energy_j_per_request")),
                _text(tokens / done if tokens is not None and done else None),
                _text(point.mean("quality_relative"), 100.0),
                _text(point.mean("slo_attainment"), 100.0),
                _text(point.mean("gpus")),
            ]
        )
    return table


def _active_grams(point: Point) -> float | None:
    """Grams a request without any idle power: prefill and decode energy at the run's mean intensity."""
    prefill, decode = point.mean("prefill_j"), point.mean("decode_j")
    grams, energy, done = point.mean("device_co2e_g"), point.mean("energy_j"), point.mean("completed")
    if None in (prefill, decode, grams, energy, done):
        return None
    assert prefill is not None
    assert decode is not None
    return (prefill + decode) / energy * grams / done if energy and grams is not None and done else None


def _sweeps(plotter: Plotter) -> Section:
    twin = plotter.experiment.settings_of(plotter.experiment.all_variants[0]).make_twin()
    curves, sweet = against_clock(twin)
    spots = ", ".join(f"{label}: {clock:.0f} MHz" for label, (clock, _) in sweet.items())
    plots = [
        sweep_curves(curves, sweet, plotter.save, "SM clock [MHz]", "sweet-spot.png",
                     "J per output token against the clock, each batch held; circles mark the sweet spots."),
        sweep_curves(against_batch(twin), {}, plotter.save, "batch", "batch.png",
                     "J per output token against the batch, at default clocks and at each batch's best clock."),
    ]  # fmt: skip
    text = f"Sweet spots at a held batch (512 tokens of prompt, 256 of answer): {spots}."
    return Section("J/token against clock and batch", [text], (), plots)


def _slowdown(point: Point, base: Point, key: str) -> float:
    """The worst seed's."""
    theirs = {row["seed"]: row[key] for row in base.rows}
    return float(max(row[key] / theirs[row["seed"]] - 1.0 for row in point.rows))


def _held_high_s(point: Point) -> float:
    states = [row.get("row_state_s") or {} for row in point.rows]
    return math.fsum(seconds.get("T2_HIGH", 0.0) + seconds.get("BRAKE", 0.0) for seconds in states)


def _total(point: Point, key: str) -> float:
    return math.fsum(row.get(key) or 0.0 for row in point.rows)


def _highest(point: Point, key: str) -> float | None:
    values = [row[key] for row in point.rows if row.get(key) is not None]
    return max(values, default=None)


def _saved(summary: Summary, point: Point) -> float:
    saving = summary.saving(point, "co2e_g_per_request")
    return -math.inf if saving is None else saving.mean


def _nearest(loads: Mapping[str, float], wanted: float) -> str:
    return min(loads, key=lambda name: abs(math.log(loads[name] / wanted)))


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _text(value: float | None, scale: float = 1.0) -> str:
    return "–" if value is None else f"{value * scale:.4g}"


def _slug(text: str) -> str:
    return "".join(char if char.isalnum() else "-" for char in text.lower()).strip("-")
