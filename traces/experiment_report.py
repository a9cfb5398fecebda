"""An experiment's report: one HTML file that holds its tables and plots, and nothing from elsewhere."""

from __future__ import annotations

import base64
import csv
import html
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from traces.experiment import Experiment, TraceSource
from traces.experiment_checks import check_equal_load
from traces.experiment_plots import Plot, Plotter
from traces.experiment_studies import STUDIES, Section
from traces.experiment_summary import ACTIVE, Figure, Point, Row, Summary

RESULTS_JSON, RESULTS_CSV, REPORT = "results.json", "results.csv", "report.html"

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#1a1a1a}
h1{font-size:1.7em}h2{margin-top:2em;border-bottom:1px solid #ccc;padding-bottom:.2em}
table{border-collapse:collapse;font-size:13px;margin:1em 0;display:block;overflow-x:auto}
th,td{padding:.3em .6em;border-bottom:1px solid #e3e3e3;text-align:right;white-space:nowrap}
th{background:#f5f5f5;position:sticky;top:0}td:first-child,th:first-child{text-align:left}
tr.base{background:#fafaf0}td.bad{color:#b00020}
figure{margin:1.5em 0}figure img{max-width:100%;height:auto}figcaption{font-size:13px;color:#555}
.badge{background:#fff3cd;border:1px solid #e0c96b;border-radius:3px;padding:.1em .5em;font-size:13px}
details{margin:1em 0}
"""


@dataclass(frozen=True, slots=True)
class Column:
    """One figure of the big table: where it stands in a row, its unit, and how it is shown."""

    key: str
    header: str
    scale: float = 1.0
    digits: int = 4


@dataclass(frozen=True, slots=True)
class Report:
    """What was written."""

    html: Path
    json: Path
    csv: Path
    plots: Sequence[Path] = field(default_factory=tuple)


COLUMNS = (
    Column("submitted", "requests"),
    Column("dropped_requests", "dropped"),
    Column("request_rate", "offered req/s", digits=3),
    Column("request_throughput", "achieved req/s", digits=3),
    Column("total_input_tokens", "input tokens"),
    Column("total_output_tokens", "output tokens"),
    Column("energy_wh", "Wh"),
    Column("energy_j_per_request", "J/request"),
    Column("energy_j_per_output_token", "J/output token", digits=3),
    Column(ACTIVE, "without idle power", digits=3),
    Column("wh_per_1k", "Wh per 1k requests"),
    Column("device_average_power_w", "mean W"),
    Column("device_p50_power_w", "P50 W"),
    Column("device_p99_power_w", "P99 W"),
    Column("device_peak_power_w", "peak W"),
    Column("co2e_g_per_request", "gCO2e/request", digits=3),
    Column("device_co2e_g", "gCO2e in all"),
    Column("device_mean_intensity_g_per_kwh", "mean g/kWh"),
    Column("p50_ttft_ms", "TTFT P50 ms"),
    Column("p90_ttft_ms", "P90"),
    Column("p99_ttft_ms", "P99"),
    Column("p50_tpot_ms", "TPOT P50 ms", digits=3),
    Column("p90_tpot_ms", "P90", digits=3),
    Column("p99_tpot_ms", "P99", digits=3),
    Column("p99_e2el_ms", "E2E P99 ms"),
    Column("slo_attainment", "SLO attainment %", 100.0),
    Column("request_goodput", "goodput req/s", digits=3),
    Column("goodput_per_w", "goodput/kW", 1e3, 3),
    Column("energy_delay_product_js", "EDP J s"),
    Column("device_mean_clock_mhz", "mean MHz"),
    Column("device_clock_changes", "clock changes"),
    Column("busy_share", "busy %", 100.0, 3),
    Column("quality_relative", "quality of L0 %", 100.0),
)


def write_report(experiment: Experiment, rows: Sequence[Row], out: Path) -> Report:
    """Check the rows against each other, then write JSON, CSV, plots and the HTML report.

    Raises `ValueError` where policies were not offered the same load.
    """
    check_equal_load(rows)
    rows = [{**row, "wh_per_1k": _per_thousand(row), ACTIVE: _active(row)} for row in rows]
    summary = Summary(rows, experiment.baseline)
    _write(out / RESULTS_JSON, msgspec.json.format(msgspec.json.encode({"experiment": experiment, "rows": rows})))
    _write_csv(out / RESULTS_CSV, rows)
    plotter = Plotter(experiment, summary, out)
    sections = STUDIES[experiment.study](plotter)
    page = "\n".join(_page(experiment, rows, summary, sections, out))
    _write(out / REPORT, page.encode())
    plots = [out / plot.file for section in sections for plot in section.plots]
    return Report(out / REPORT, out / RESULTS_JSON, out / RESULTS_CSV, plots)


def _page(
    experiment: Experiment, rows: Sequence[Row], summary: Summary, sections: Sequence[Section], out: Path
) -> Iterator[str]:
    title = html.escape(experiment.title)
    yield f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
    yield '<link rel="icon" href="data:,"><meta name="viewport" content="width=device-width,initial-scale=1">'
    yield f"<style>{_STYLE}</style></head><body><h1>{title}</h1>"
    yield '<p><span class="badge">simulated</span> Every joule, gram and second here comes from the twin of a GPU.</p>'
    yield f"<p>{html.escape(experiment.description)}</p>"
    yield from _setting(experiment, rows)
    for section in sections:
        yield f"<h2>{html.escape(section.title)}</h2>"
        yield from (f"<p>{html.escape(line)}</p>" for line in section.text)
        if section.table:
            yield from _plain_table(section.table)
        for plot in section.plots:
            yield from _image(plot, out)
    yield "<h2>All figures</h2>"
    yield "<p>Means over the seeds, ± half of the 95 % interval. Energy covers the whole run from the first second to "
    yield "the last answer, idle power included. TTFT: first token minus arrival; TPOT: (E2E minus TTFT) over (output "
    yield "tokens minus 1). SLO attainment: share of requests that keep both limits.</p>"
    for place in summary.places:
        yield from _figures(summary, place)
    yield "</body></html>"


def _setting(experiment: Experiment, rows: Sequence[Row]) -> Iterator[str]:
    settings = experiment.settings_of(experiment.all_variants[0])
    used = sorted({f"{row['trace']}: {row['trace_used']} ({row['trace_obtained']})" for row in rows})
    sources = sorted({row["device_intensity_source"] for row in rows if row.get("device_intensity_source")})
    cpu_s = sum(row["cpu_s"] for row in rows)
    facts = [
        ("GPU", f"{settings.gpu}, {settings.tensor_parallel} for each engine, engine profile {settings.engine}"),
        ("model", settings.model),
        ("SLO of each request", "; ".join(_slo(experiment, trace) for trace in experiment.traces)),
        ("control", f"every {settings.control_s:g} s, by the production controller"),
        ("traffic", "; ".join(used)),
        ("carbon intensity", "; ".join(sources) or "none"),
        ("seeds", ", ".join(map(str, experiment.seeds)) + _training(experiment)),
        ("baseline", f"{experiment.baseline}, same requests"),
        ("runs", f"{len(rows)}, {sum(row['submitted'] for row in rows):,} requests, {cpu_s:,.0f} s of processor time"),
        ("checks", "every request accounted for, every joule with an owner, equal load: passed for every run"),
    ]
    yield "<table>"
    for name, text in facts:
        yield f'<tr><td>{name}</td><td style="text-align:left;white-space:normal">{html.escape(text)}</td></tr>'
    yield "</table>"


def _training(experiment: Experiment) -> str:
    learns = any(policy.directives is not None for policy in experiment.policies)
    return f" (directive mixes learned with seed {experiment.training_seed})" if learns else ""


def _slo(experiment: Experiment, trace: TraceSource) -> str:
    slo = experiment.settings_of(experiment.all_variants[0], trace).slo
    return f"{trace.name}: TTFT {slo.ttft_ms:g} ms, TPOT {slo.tpot_ms:g} ms"


def _figures(summary: Summary, place: tuple[str, str, str | None]) -> Iterator[str]:
    points = [point for point in summary.points if point.place == place]
    columns = [column for column in COLUMNS if any(point.mean(column.key) is not None for point in points)]
    label = ", ".join(part for part in place if part)
    yield f"<details><summary>{html.escape(label)}</summary><table><tr><th>policy</th>"
    yield "".join(f"<th>{html.escape(column.header)}</th>" for column in columns) + "<th>J/token saved %</th></tr>"
    for point in points:
        yield f"<tr{' class=base' if point.policy == summary.baseline else ''}><td>{html.escape(point.policy)}</td>"
        yield "".join(f"<td>{_shown(point, column)}</td>" for column in columns)
        saving = summary.saving(point)
        bad = "" if summary.keeps(point) else " class=bad"
        yield f"<td{bad}>{saving.text(3, 100.0) if saving else '–'}</td></tr>"
    yield "</table><p>Savings in red: below 99 % of the baseline's SLO attainment in at least one seed.</p></details>"


def _shown(point: Point, column: Column) -> str:
    found: Figure | None = point.figure(column.key)
    if found is None:
        return "–"
    half = f" ± {found.half * column.scale:.2g}" if found.half else ""
    value = found.mean * column.scale
    shown = f"{value:,.0f}" if abs(value) >= 10 ** (column.digits - 1) else f"{value:.{column.digits}g}"
    return shown + half


def _plain_table(table: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "<table><tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in table[0]) + "</tr>"
    for row in table[1:]:
        yield "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
    yield "</table>"


def _image(plot: Plot, out: Path) -> Iterator[str]:
    encoded = base64.b64encode((out / plot.file).read_bytes()).decode()
    caption = html.escape(plot.caption)
    yield f'<figure><img alt="{caption}" src="data:image/png;base64,{encoded}">'
    yield f"<figcaption>{caption}</figcaption></figure>"


def _per_thousand(row: Row) -> float | None:
    wh, completed = row.get("energy_wh"), row.get("completed")
    return wh / completed * 1000.0 if wh is not None and completed else None


def _active(row: Row) -> float | None:
    """J per output token without any idle power: what clocks and directives can act on."""
    tokens = row.get("total_output_tokens")
    return (row["prefill_j"] + row["decode_j"]) / tokens if tokens else None


def _write_csv(path: Path, rows: Sequence[Row]) -> None:
    """One row a run; nested figures are left to the JSON."""
    names = list(dict.fromkeys(n for row in rows for n, v in row.items() if not isinstance(v, dict | list | tuple)))
    scratch = path.with_name(f".{path.name}.part")
    with scratch.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(scratch, path)


def _write(path: Path, content: bytes) -> None:
    scratch = path.with_name(f".{path.name}.part")
    scratch.write_bytes(content)
    os.replace(scratch, path)
