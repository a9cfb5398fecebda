"""Finished requests: the list, and the life of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dashboard.schema_records import RequestRecord
from dashboard.views.formats import UNKNOWN, clock, count, grams, number, seconds
from dashboard.views.origin import DataState, Origin, missing, of_method
from dashboard.views.palette import Palette

UNSPLIT = "queue and prefill"


def rows(records: Sequence[RequestRecord]) -> list[dict[str, Any]]:
    return [_row(record) for record in records]


def _row(record: RequestRecord) -> dict[str, Any]:
    return {
        "Request": record.request_id,
        "Arrived (UTC)": clock(record.arrived_unix_s),
        "Tenant": record.tenant or UNKNOWN,
        "Class": record.task_class or UNKNOWN,
        "Directive": record.directive or UNKNOWN,
        "Prompt": count(record.prompt_tokens),
        "Output": count(record.completion_tokens),
        "TTFT": seconds(record.ttft_s),
        "Total": seconds(record.e2e_s),
        "Energy": number(record.energy_j, "J"),
        "CO2e": grams(total_grams(record)),
        "How": record.energy_method or "missing",
        "End": record.finish_reason or UNKNOWN,
    }


def total_grams(record: RequestRecord) -> float | None:
    """Operational and embodied; operational alone where no embodied share is set."""
    if record.operational_g is None:
        return None
    return record.operational_g + (record.embodied_g or 0.0)


def energy_origin(record: RequestRecord) -> Origin:
    if record.energy_j is None:
        return missing(record.energy_source or "energy", "not measured for this request")
    origin = of_method(record.energy_method, record.energy_source or "", None)
    if record.energy_uncertainty_percent is None:
        return origin
    return Origin(origin.state, f"{origin.source} ±{record.energy_uncertainty_percent:g} %")


def carbon_origin(record: RequestRecord) -> Origin:
    if record.operational_g is None:
        return missing(record.intensity_source or "intensity", "no joules or no intensity for this request")
    states = {"live": DataState.LIVE, "stale": DataState.STALE}
    state = states.get(record.intensity_tier or "", DataState.ESTIMATED)
    return Origin(state, f"{record.intensity_source or 'no source'} ({record.intensity_kind or 'kind not known'})")


@dataclass(frozen=True)
class Phase:
    """A stretch of a request's life. `joules` None: not known, or no work is done in it."""

    name: str
    seconds: float
    joules: float | None


def phases(record: RequestRecord) -> list[Phase]:
    """In order. Without a time of admission on record waiting and prefill cannot be told apart."""
    if record.e2e_s is None or record.ttft_s is None:
        return []
    decode = Phase("decode", max(0.0, record.e2e_s - record.ttft_s), record.decode_j)
    if record.queue_s is None:
        return [Phase(UNSPLIT, record.ttft_s, record.prefill_j), decode]
    queue = min(record.queue_s, record.ttft_s)
    return [Phase("queue", queue, None), Phase("prefill", record.ttft_s - queue, record.prefill_j), decode]


def life_spec(record: RequestRecord, colours: Palette) -> dict[str, Any] | None:
    """Time above, joules below, each as one split bar. None where the record has neither."""
    times = [(phase.name, phase.seconds) for phase in phases(record)]
    parts = [("prefill", record.prefill_j), ("decode", record.decode_j), ("idle share", record.idle_j)]
    known = [(name, value) for name, value in parts if value is not None]
    if not times and not known:
        return None
    tints = {
        "queue": colours.orange,
        UNSPLIT: colours.sky,
        "prefill": colours.sky,
        "decode": colours.blue,
        "idle share": colours.grey,
    }
    axis = {"axisLabel": {"color": colours.text}, "splitLine": {"lineStyle": {"color": colours.grid}}}
    series: list[dict[str, Any]] = []
    for index, values in enumerate((times, known)):
        for name, value in values:
            series.append(
                {
                    "type": "bar",
                    "name": f"{name} {seconds(value) if index == 0 else number(value, 'J')}",
                    "stack": str(index),
                    "xAxisIndex": index,
                    "yAxisIndex": index,
                    "barWidth": 24,
                    "data": [value],
                    "itemStyle": {"color": tints[name], "opacity": 0.75 if index else 1},
                }
            )

    def category(index: int, name: str) -> dict[str, Any]:
        label = {"color": colours.text}
        return {"type": "category", "data": [name], "gridIndex": index, "axisLabel": label}

    return {
        "animation": False,
        "legend": {"top": 0, "left": 0, "icon": "rect", "textStyle": {"color": colours.text}},
        "tooltip": {"trigger": "item", "valueFormatter": "%.4g"},
        "grid": [
            {"left": 60, "right": 48, "top": 34, "height": 34},
            {"left": 60, "right": 48, "top": 108, "height": 34},
        ],
        "xAxis": [
            {"type": "value", "gridIndex": 0, "name": "s", **axis},
            {"type": "value", "gridIndex": 1, "name": "J", **axis},
        ],
        "yAxis": [category(0, "time"), category(1, "energy")],
        "series": series,
    }


def facts(record: RequestRecord) -> dict[str, str]:
    """What was decided for it and why."""
    directive = record.directive or UNKNOWN
    if record.directive_reason:
        directive += f" ({record.directive_reason})"
    return {
        "Directive": directive,
        "Policy revision": f"{record.policy_revision or UNKNOWN} ({record.policy_mode or 'mode not known'})",
        "Tokens": f"{count(record.prompt_tokens)} prompt, of which {count(record.cached_tokens)} cached, "
        f"{count(record.completion_tokens)} output",
        "Joules per output token": number(
            record.energy_j / record.completion_tokens if record.energy_j and record.completion_tokens else None, "J"
        ),
        "Grid": f"{number(record.intensity_g_per_kwh, 'g/kWh')} in {record.zone or UNKNOWN}",
        "Waited": "not on record" if record.queue_s is None else seconds(record.queue_s),
        "Operational": grams(record.operational_g),
        "Embodied": grams(record.embodied_g),
        "Time per output token": seconds(record.tpot_s),
    }
