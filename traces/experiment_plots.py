"""The plots of an experiment's report, drawn with matplotlib to PNG files."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pyarrow.parquet as pq

from traces.experiment import Cell, Experiment
from traces.experiment_run import TIMELINE_FILE
from traces.experiment_summary import Figure, Point, Summary
from traces.results_io import REQUESTS_FILE
from traces.simulate_timeline import Timeline

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.colors import to_hex
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, ScalarFormatter

# Okabe and Ito's palette: told apart by colour-blind readers.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7F7F7F", "#8C564B", "#BCBD22")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
DPI = 110
MOST_PLAIN_CLOCKS = 3


@dataclass(frozen=True, slots=True)
class Plot:
    """A drawn file with what it shows."""

    file: str
    caption: str


def colours(policies: Sequence[str]) -> dict[str, str]:
    """One for each policy: many static clocks take shades of one scale, so that the others stand out from them."""
    clocks = [name for name in policies if re.fullmatch(r"static \d+", name)]
    if len(clocks) <= MOST_PLAIN_CLOCKS:
        clocks = []
    shades = plt.get_cmap("cividis")(np.linspace(0.15, 0.95, len(clocks)))
    named = {name: to_hex(shade) for name, shade in zip(clocks, shades)}
    others = [name for name in policies if name not in named]
    return named | {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(others)}


class Plotter:
    """Draws into `folder`; `out` holds the experiment's runs."""

    def __init__(self, experiment: Experiment, summary: Summary, out: Path) -> None:
        self.experiment, self.summary = experiment, summary
        self.runs = out / "runs"
        self.folder = out / "plots"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.loads = {variant.name: variant.load for variant in experiment.all_variants}
        self._colour = colours(summary.policies)
        self._marker = {name: MARKERS[place % len(MARKERS)] for place, name in enumerate(summary.policies)}

    def save(self, name: str, figure: Any, caption: str) -> Plot:
        figure.savefig(self.folder / name, dpi=DPI, bbox_inches="tight")
        plt.close(figure)
        return Plot(f"plots/{name}", caption)

    def style(self, policy: str) -> dict[str, Any]:
        dashed = policy.startswith("static")
        return {
            "color": self._colour[policy],
            "marker": self._marker[policy],
            "linestyle": ":" if dashed else "-",
            "linewidth": 1.2 if dashed else 2.0,
            "markersize": 5,
            "label": policy,
        }

    def timeline(self, point: Point) -> Timeline:
        return Timeline.read(self._run(point) / TIMELINE_FILE)

    def requests(self, point: Point) -> Mapping[str, np.ndarray[Any, Any]]:
        """Latencies of the completed requests of the first seed, seconds."""
        columns = ["scheduled_s", "first_token_s", "last_token_s", "output_tokens", "outcome"]
        table = pq.read_table(self._run(point) / REQUESTS_FILE, columns=columns).to_pandas()
        done = table[table.outcome == "completed"]
        ttft = (done.first_token_s - done.scheduled_s).to_numpy()
        e2e = (done.last_token_s - done.scheduled_s).to_numpy()
        several = done[done.output_tokens > 1]
        tpot = ((several.last_token_s - several.first_token_s) / (several.output_tokens - 1)).to_numpy()
        return {"TTFT": ttft, "TPOT": tpot, "E2E latency": e2e}

    def _run(self, point: Point) -> Path:
        return self.runs / Cell(point.policy, point.trace, point.variant, point.zone, point.rows[0]["seed"]).key


def against_load(plotter: Plotter, trace: str, zone: str | None, name: str) -> Plot:
    """Savings against load with the SLO attainment below."""
    summary = plotter.summary
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(8, 7.2), sharex=True, height_ratios=(2, 1))
    for policy in summary.policies:
        found = _by_load(plotter, trace, zone, policy)
        style = plotter.style(policy)
        savings = [(load, summary.saving(point)) for load, point in found]
        _band(top, [(load, value) for load, value in savings if value is not None], style, 100.0)
        attained = [(load, 100.0 * (point.lowest("slo_attainment") or 0.0)) for load, point in found]
        bottom.plot([x for x, _ in attained], [y for _, y in attained], **style)
    best = [
        (load, saving)
        for variant, load in plotter.loads.items()
        if (point := summary.best_static((trace, variant, zone))) is not None
        and (saving := summary.saving(point)) is not None
    ]
    top.plot(
        [load for load, _ in best], [100 * value.mean for _, value in best],
        color="#666666", linewidth=6, alpha=0.25, label="best static clock in hindsight", zorder=0,
    )  # fmt: skip
    top.axhline(0.0, color="black", linewidth=0.8)
    top.set_ylabel(f"J per output token saved against {summary.baseline} [%]")
    top.legend(fontsize=8, ncol=2)
    bottom.axhline(99.0, color="black", linewidth=0.8, linestyle="--")
    bottom.set_ylim(min(80.0, bottom.get_ylim()[0]) if bottom.get_ylim()[0] > 50 else 50.0, 100.5)
    bottom.set_ylabel("SLO attainment,\nworst seed [%]")
    bottom.set_xlabel("load (times the recorded request rate)")
    top.set_title(trace)
    caption = (
        "Energy per output token saved, mean of the seeds with 95 % intervals, idle energy included; below, the share "
        "of requests within both SLO limits (dashed: 99 %)."
    )
    return plotter.save(name, figure, caption)


def over_time(plotter: Plotter, points: Sequence[Point], name: str) -> Plot:
    """Power and request rate over time, with strips for clock and carbon intensity."""
    timelines = [(point.policy, plotter.timeline(point)) for point in points]
    intensity = timelines[0][1].column("g_per_kwh")
    has_grid = not bool(np.isnan(intensity).all())
    rows = 4 if has_grid else 3
    heights = (3, 1.4, 1.2, 1.0)[:rows]
    figure, axes = plt.subplots(rows, 1, figsize=(9, 2.0 * rows + 1), sharex=True, height_ratios=heights)
    hours = float(timelines[0][1].column("end_s")[-1]) > 3 * 3600
    unit, scale = ("h", 3600.0) if hours else ("min", 60.0)
    for policy, timeline in timelines:
        times, power, clock, arrivals = _smoothed(timeline)
        colour = plotter.style(policy)["color"]
        axes[0].plot(times / scale, power, color=colour, linewidth=1.1, label=policy)
        axes[2].plot(times / scale, clock, color=colour, linewidth=1.0)
    axes[1].fill_between(times / scale, arrivals, color="#999999", step="mid", alpha=0.7)
    axes[0].set_ylabel("power, all GPUs [W]")
    axes[0].set_ylim(0)
    axes[0].legend(fontsize=8, ncol=3)
    axes[1].set_ylabel("requests/s")
    axes[2].set_ylabel("SM clock\n[MHz]")
    if has_grid:
        first = timelines[0][1]
        axes[3].plot(first.column("end_s") / scale, intensity, color="#009E73")
        axes[3].set_ylabel("g/kWh")
        axes[3].set_ylim(0)
    axes[-1].set_xlabel(f"time [{unit}]")
    where = f"{points[0].trace}, {points[0].variant}" + (f", {points[0].zone}" if points[0].zone else "")
    axes[0].set_title(f"{where}, seed {points[0].rows[0]['seed']}")
    caption = f"Power and request rate over time ({where}); clock asked of the GPUs" + (
        " and carbon intensity below." if has_grid else " below."
    )
    return plotter.save(name, figure, caption)


def pareto(plotter: Plotter, place: tuple[str, str, str | None], name: str) -> Plot:
    """J/request against P99 TTFT and P99 TPOT."""
    summary = plotter.summary
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True)
    experiment = plotter.experiment
    limits = experiment.settings_of(experiment.all_variants[0], experiment.trace_named(place[0])).slo.limits_ms
    for axis, (key, label) in zip(axes, (("p99_ttft_ms", "P99 TTFT [ms]"), ("p99_tpot_ms", "P99 TPOT [ms]"))):
        for policy in summary.policies:
            point = summary.at(place, policy)
            if point is None or (x := point.figure(key)) is None or (y := point.figure("energy_j_per_request")) is None:
                continue
            style = plotter.style(policy)
            axis.errorbar(
                x.mean, y.mean, xerr=x.half, yerr=y.half, color=style["color"], marker=style["marker"],
                markersize=7, linestyle="none", elinewidth=0.8, label=policy,
            )  # fmt: skip
        axis.axvline(limits["ttft" if "ttft" in key else "tpot"], color="black", linewidth=0.8, linestyle="--")
        axis.set_xlabel(label)
        _log_axis(axis)
    axes[0].set_ylabel("J per request, idle included")
    axes[1].legend(fontsize=8)
    figure.suptitle(f"{place[0]}, {place[1]}")
    caption = "Energy per request against tail latency; lower left is better, dashed is the SLO limit, bars are 95 %."
    return plotter.save(name, figure, caption)


def latency_cdfs(plotter: Plotter, points: Sequence[Point], name: str) -> Plot:
    """CDFs of TTFT, TPOT and end-to-end latency, all requests of the first seed."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.8), sharey=True)
    for point in points:
        style = plotter.style(point.policy)
        for axis, (label, values) in zip(axes, plotter.requests(point).items()):
            ordered = np.sort(values[values > 0.0])
            axis.plot(
                ordered * 1e3, np.arange(1, len(ordered) + 1) / max(len(ordered), 1),
                color=style["color"], linestyle=style["linestyle"], linewidth=1.4, label=point.policy,
            )  # fmt: skip
            axis.set_xlabel(f"{label} [ms]")
            _log_axis(axis)
    axes[0].set_ylabel("share of requests")
    axes[0].legend(fontsize=8)
    figure.suptitle(f"{points[0].trace}, {points[0].variant}, seed {points[0].rows[0]['seed']}")
    return plotter.save(name, figure, "Distributions of TTFT, TPOT and end-to-end latency over all requests.")


def energy_split(plotter: Plotter, place: tuple[str, str, str | None], name: str) -> Plot:
    """Idle, prefill and decode energy of each policy, stacked."""
    summary = plotter.summary
    found = [point for policy in summary.policies if (point := summary.at(place, policy)) is not None]
    parts = (
        ("decode_j", "decode", "#0072B2"),
        ("prefill_j", "prefill", "#D55E00"),
        ("request_idle_j", "idle power while requests were there", "#BBBBBB"),
        ("unclaimed_idle_j", "idle power with nobody there", "#E5E5E5"),
    )
    figure, axis = plt.subplots(figsize=(8, 0.42 * len(found) + 1.6))
    left = np.zeros(len(found))
    for key, label, colour in parts:
        widths = np.array([(point.mean(key) or 0.0) / (point.mean("completed") or 1.0) for point in found])
        axis.barh([point.policy for point in found], widths, left=left, color=colour, label=label, edgecolor="white")
        left += widths
    axis.invert_yaxis()
    axis.set_xlabel("J per request")
    axis.set_title(f"{place[0]}, {place[1]}" + (f", {place[2]}" if place[2] else ""))
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.22), ncol=2)
    return plotter.save(name, figure, "Where the energy of a request went: idle, prefill and decode.")


def by_hour(plotter: Plotter, points: Sequence[Point], name: str) -> Plot:
    """Grams of each hour of virtual time, per policy, and the intensity."""
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(9, 5.5), sharex=True, height_ratios=(2, 1))
    pue = plotter.experiment.settings_of(plotter.experiment.all_variants[0]).pue
    for place, point in enumerate(points):
        timeline = plotter.timeline(point)
        hour = ((timeline.column("end_s") - timeline.column("seconds") / 2) // 3600).astype(int)
        grams = timeline.column("energy_j") / 3.6e6 * pue * timeline.column("g_per_kwh")
        total = np.bincount(hour, weights=grams)
        top.step(np.arange(len(total)), total, where="mid", color=plotter.style(point.policy)["color"],
                 linewidth=1.6, label=point.policy)  # fmt: skip
        if place == 0:
            intensity = np.bincount(hour, weights=timeline.column("g_per_kwh") * timeline.column("seconds"))
            seconds = np.bincount(hour, weights=timeline.column("seconds"))
            bottom.step(np.arange(len(total)), intensity / seconds, where="mid", color="#009E73")
    top.set_ylabel("gCO2e an hour, idle included")
    top.set_ylim(0)
    top.legend(fontsize=8, ncol=2)
    bottom.set_ylabel("g/kWh")
    bottom.set_ylim(0)
    bottom.set_xlabel("hour")
    top.set_title(f"{points[0].trace}, {points[0].variant}, {points[0].zone}")
    return plotter.save(name, figure, "Grams by hour, with the grid's intensity below.")


def row_power(plotter: Plotter, points: Sequence[Point], budget_w: float, name: str) -> Plot:
    """Row power of each policy against the budget: over time and as a distribution."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.2), width_ratios=(2, 1), sharey=True)
    for point in points:
        timeline = plotter.timeline(point)
        share = 100.0 * timeline.power_w / budget_w
        colour = plotter.style(point.policy)["color"]
        left.plot(timeline.column("end_s") / 60.0, share, color=colour, linewidth=0.8, label=point.policy)
        right.plot(np.linspace(0, 100, len(share)), np.sort(share), color=colour, linewidth=1.6)
    for axis in (left, right):
        axis.axhline(100.0, color="black", linewidth=1.0)
    left.set_xlabel("time [min]")
    left.set_ylabel("row power [% of the budget]")
    left.legend(fontsize=8)
    right.set_xlabel("share of the time [%]")
    figure.suptitle(f"{points[0].variant} servers, seed {points[0].rows[0]['seed']}")
    return plotter.save(name, figure, "Row power against its budget over time, and sorted. Above 100 % the row brakes.")


def sweep_curves(curves: Mapping[str, Sequence[tuple[float, float]]], sweet: Mapping[str, tuple[float, float]],
                 save: Callable[[str, Any, str], Plot], x_label: str, name: str, caption: str) -> Plot:  # fmt: skip
    """J/token curves, each with its lowest point marked."""
    figure, axis = plt.subplots(figsize=(7, 4.4))
    for place, (label, points) in enumerate(curves.items()):
        colour = COLOURS[place % len(COLOURS)]
        axis.plot([x for x, _ in points], [y for _, y in points], color=colour, linewidth=1.8, label=label)
        if label in sweet:
            axis.plot(*sweet[label], marker="o", color=colour, markersize=8, markerfacecolor="white")
    axis.set_xlabel(x_label)
    axis.set_ylabel("J per output token")
    axis.set_yscale("log")
    if x_label == "batch":
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.legend(fontsize=8)
    return save(name, figure, caption)


def _log_axis(axis: Any) -> None:
    """Logarithmic, labelled in plain numbers at 1, 2 and 5."""
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.tick_params(axis="x", labelrotation=45)


def _by_load(plotter: Plotter, trace: str, zone: str | None, policy: str) -> list[tuple[float, Point]]:
    found = [
        (load, point)
        for variant, load in plotter.loads.items()
        if (point := plotter.summary.at((trace, variant, zone), policy)) is not None
    ]
    return sorted(found, key=lambda pair: pair[0])


def _band(axis: Any, values: Sequence[tuple[float, Figure]], style: Mapping[str, Any], scale: float) -> None:
    x = [load for load, _ in values]
    y = np.array([value.mean for _, value in values]) * scale
    half = np.array([value.half or 0.0 for _, value in values]) * scale
    axis.plot(x, y, **style)
    axis.fill_between(x, y - half, y + half, color=style["color"], alpha=0.12, linewidth=0)


def _smoothed(timeline: Timeline, most: int = 400) -> tuple[Any, Any, Any, Any]:
    """At most `most` bins, so that lines stay readable; means weighted by time."""
    ends, seconds = timeline.column("end_s"), timeline.column("seconds")
    bins = np.minimum((ends / max(float(ends[-1]), 1e-9) * most).astype(int), most - 1)
    span = np.bincount(bins, weights=seconds, minlength=most)
    used = span > 0
    energy = np.bincount(bins, weights=timeline.column("energy_j"), minlength=most)
    clock = np.bincount(bins, weights=timeline.column("clock_mhz") * seconds, minlength=most)
    arrivals = np.bincount(bins, weights=timeline.column("arrivals"), minlength=most)
    last = np.zeros(most)
    np.maximum.at(last, bins, ends)
    return last[used], energy[used] / span[used], clock[used] / span[used], arrivals[used] / span[used]
