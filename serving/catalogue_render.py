"""What is made from the catalogue: Grafana dashboard, alert rules, the page of metrics. Written, never edited:

python -m serving.catalogue_render
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from serving.alert_rules import RULES
from serving.control_catalogue import CONTROL
from serving.metric_catalogue import CATALOGUE, VLLM_NAMES, MetricSpec

ROOT = Path(__file__).parents[1]
DASHBOARD = Path("deploy/grafana/gridserve.json")
ALERTS = Path("deploy/prometheus/alerts.yml")
PAGE = Path("docs/metrics.md")
NOTE = "Made by `python -m serving.catalogue_render`; change serving/metric_catalogue.py and its neighbours instead."
ALL = (*CONTROL, *CATALOGUE)


@dataclass(frozen=True, slots=True)
class Panel:
    """`queries`: PromQL and its legend. `unit`: Grafana's name of it."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    kind: str = "timeseries"
    width: int = 8


def _quantiles(metric: str) -> tuple[tuple[str, str], ...]:
    return tuple(
        (f"histogram_quantile({share}, sum by (le) (rate({metric}_bucket[5m])))", f"p{round(100 * share)}")
        for share in (0.5, 0.9, 0.99)
    )


ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "Now",
        (
            Panel("Power", "watt", (("sum(gridserve_gpu_power_watts)", "all GPUs"),), "stat", 4),
            Panel(
                "Joules a token",
                "joule",
                (
                    (
                        "sum(rate(gridserve_energy_counter_joules_total[5m])) "
                        "/ sum(rate(gridserve_generation_tokens_total[5m]))",
                        "J/token",
                    ),
                ),
                "stat",
                4,
            ),
            Panel(
                "Grams a thousand tokens",
                "massg",
                (
                    (
                        "1000 * sum(rate(gridserve_carbon_emissions_grams_total[5m])) "
                        "/ sum(rate(gridserve_generation_tokens_total[5m]))",
                        "g/1k",
                    ),
                ),
                "stat",
                4,
            ),
            Panel("Waiting", "short", (("sum(gridserve_num_requests_waiting)", "waiting"),), "stat", 4),
            Panel("Mode", "short", (("gridserve_policy_mode == 1", "{{mode}}"),), "stat", 4),
            Panel("Alarms", "short", (("sum(gridserve_alarms)", "alarms"),), "stat", 4),
        ),
    ),
    (
        "Power",
        (
            Panel(
                "Power and limit",
                "watt",
                (("gridserve_gpu_power_watts", "{{gpu}}"), ("gridserve_gpu_power_limit_watts", "limit {{gpu}}")),
            ),
            Panel(
                "SM clock",
                "hertz",
                (("gridserve_gpu_sm_clock_hertz", "{{gpu}}"), ("gridserve_gpu_clock_locked_hertz", "asked {{gpu}}")),
            ),
            Panel(
                "Watts by phase", "watt", (("sum by (phase) (rate(gridserve_energy_joules_total[5m]))", "{{phase}}"),)
            ),
            Panel("Actuations", "short", (("increase(gridserve_power_actuations_total[5m])", "{{outcome}}"),)),
            Panel("Temperature", "celsius", (("gridserve_gpu_temperature_celsius", "{{gpu}}"),)),
            Panel(
                "Unattributed share",
                "percentunit",
                (
                    (
                        'sum(rate(gridserve_energy_joules_total{phase="unattributed"}[5m])) '
                        "/ sum(rate(gridserve_energy_counter_joules_total[5m]))",
                        "unattributed",
                    ),
                ),
            ),
        ),
    ),
    (
        "Carbon",
        (
            Panel(
                "Intensity (g/kWh)", "none", (("gridserve_grid_carbon_intensity_grams_per_kwh", "{{zone}} {{tier}}"),)
            ),
            Panel(
                "Grams an hour by tenant",
                "massg",
                (("sum by (tenant) (3600 * rate(gridserve_carbon_emissions_grams_total[15m]))", "{{tenant}}"),),
            ),
            Panel(
                "Directives given",
                "reqps",
                (("sum by (directive) (rate(gridserve_directive_requests_total[5m]))", "{{directive}}"),),
            ),
            Panel("Budget used", "percentunit", (("gridserve_budget_used_ratio", "{{tenant}} {{budget}}"),)),
            Panel("Joules of a request", "joule", _quantiles("gridserve_request_energy_joules")),
            Panel("Age of the signal", "s", (("time() - gridserve_carbon_signal_end_timestamp_seconds", "{{zone}}"),)),
        ),
    ),
    (
        "Serving",
        (
            Panel("Time to first token", "s", _quantiles("gridserve_time_to_first_token_seconds")),
            Panel("Time between tokens", "s", _quantiles("gridserve_inter_token_latency_seconds")),
            Panel("Whole request", "s", _quantiles("gridserve_e2e_request_latency_seconds")),
            Panel(
                "Tokens a second",
                "short",
                (
                    ("sum(rate(gridserve_generation_tokens_total[1m]))", "generated"),
                    ("sum(rate(gridserve_prompt_tokens_total[1m]))", "prompt"),
                ),
            ),
            Panel(
                "Running and waiting",
                "short",
                (("gridserve_num_requests_running", "running"), ("gridserve_num_requests_waiting", "waiting")),
            ),
            Panel("KV cache", "percentunit", (("gridserve_kv_cache_usage_ratio", "used"),)),
        ),
    ),
    (
        "Health",
        (
            Panel("Ledger queue", "short", (("gridserve_ledger_queued_rows", "rows"),)),
            Panel("Job failures", "short", (("increase(gridserve_job_failures_total[1h])", "{{job}}"),)),
            Panel("Held back and refused", "short", (
                ("gridserve_requests_held_back", "held back"),
                ("rate(gridserve_tenant_refusals_total[5m])", "refused: {{why}}"),
            )),
        ),
    ),
)  # fmt: skip


def dashboard() -> str:
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS:
        panels.append({"type": "row", "title": title, "id": len(panels) + 1, "gridPos": _place(0, y, 24, 1)})
        x, y = 0, y + 1
        height = 4 if row[0].kind == "stat" else 8
        for panel in row:
            if x + panel.width > 24:
                x, y = 0, y + height
            panels.append(_panel(panel, len(panels) + 1, _place(x, y, panel.width, height)))
            x += panel.width
        y += height
    document = {
        "title": "gridserve",
        "uid": "gridserve",
        "description": NOTE,
        "tags": ["gridserve", "energy", "carbon"],
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-15m", "to": "now"},
        "templating": {"list": [{"name": "datasource", "type": "datasource", "query": "prometheus"}]},
        "panels": panels,
    }
    return json.dumps(document, indent=1) + "\n"


def _place(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    targets = [
        {"refId": chr(ord("A") + index), "datasource": source, "expr": expr, "legendFormat": legend}
        for index, (expr, legend) in enumerate(panel.queries)
    ]
    legend = {"displayMode": "table", "placement": "bottom", "calcs": ["mean", "lastNotNull", "max"]}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "gridPos": place,
        "datasource": source,
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "options": {"legend": legend} if panel.kind == "timeseries" else {},
        "targets": targets,
    }


def alerts() -> str:
    rules = [
        {
            "alert": rule.name,
            "expr": rule.expr,
            "for": rule.hold,
            "labels": {"severity": rule.severity},
            "annotations": {"summary": rule.summary, "description": rule.action},
        }
        for rule in RULES
    ]
    yaml = YAML()
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    text = io.StringIO()
    yaml.dump({"groups": [{"name": "gridserve", "rules": rules}]}, text)
    return f"# {NOTE}\n{text.getvalue()}"


def page() -> str:
    lines = [
        "# Metrics",
        "",
        f"<!-- {NOTE} -->",
        "",
        "`GET /metrics` on the inference API (open on loopback, with a key elsewhere) and on the admin API (viewer).",
        "Counters of joules and grams are the truth; `rate()` of joules is watts. A figure that is unknown is absent.",
        "`DCGM_FI_*` carry the names and units of NVIDIA's DCGM exporter, so that tools which read it (aiperf is one)",
        "compute energy per token of this server from outside.",
        "",
        "| series | type | labels | |",
        "|---|---|---|---|",
    ]
    lines += [_line(spec) for spec in sorted(ALL, key=lambda spec: spec.name)]
    lines += [
        "",
        "With `--vllm-metric-names` these are exported once more under vLLM's names:",
        "",
        "| here | there |",
        "|---|---|",
        *(f"| `{ours}` | `{theirs}` |" for ours, theirs in sorted(VLLM_NAMES.items())),
        "",
        "## Alerts",
        "",
        f"[{ALERTS.name}](../{ALERTS}) holds these rules; the dashboard is [{DASHBOARD.name}](../{DASHBOARD}).",
        "",
        "| alert | severity | when | do |",
        "|---|---|---|---|",
        *(f"| {rule.name} | {rule.severity} | {rule.summary} | {rule.action} |" for rule in RULES),
    ]
    return "\n".join(lines) + "\n"


def _line(spec: MetricSpec) -> str:
    return f"| `{spec.name}` | {spec.kind} | {', '.join(spec.labels) or '-'} | {spec.help} |"


def rendered() -> dict[Path, str]:
    """Each file with what it should hold."""
    return {DASHBOARD: dashboard(), ALERTS: alerts(), PAGE: page()}


if __name__ == "__main__":
    for path, content in rendered().items():
        target = ROOT / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content, encoding="utf-8")
