"""ECharts options for panels that stand above each other on one time axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from dashboard.views.origin import Origin
from dashboard.views.palette import Palette

MAX_POINTS = 2000
NEAR_LIMIT = 10.0
BAND_OPACITY = 0.22
PANEL_PX = 104
GAP_PX = 42
TOP_PX = 34
BOTTOM_PX = 30


@dataclass(frozen=True)
class Line:
    """`column` of the frame, or `points` of its own as (milliseconds since 1970, value)."""

    label: str
    colour: str
    column: str | None = None
    points: Sequence[tuple[float, float | None]] = ()
    step: bool = False
    dashed: bool = False
    fill: bool = False
    width: float = 1.6


@dataclass(frozen=True)
class Band:
    """Between `low` and `high`, each (milliseconds, value) at the same times: drawn as two stacked lines."""

    label: str
    colour: str
    low: Sequence[tuple[float, float]]
    high: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Mark:
    """Something that happened: a vertical tick in the panel."""

    at_ms: float
    text: str


@dataclass(frozen=True)
class Panel:
    """`limit`: a line across with its name, such as an SLO. `note` stands where there is nothing to draw.
    `origin`: state, source and age of what is drawn. `whole`: the figures are counts."""

    title: str
    unit: str
    lines: Sequence[Line] = ()
    band: Band | None = None
    marks: Sequence[Mark] = ()
    limit: tuple[str, float] | None = None
    from_zero: bool = True
    note: str | None = None
    maximum: float | None = None
    origin: Origin | None = None
    whole: bool = False


def height_px(panels: int, panel_px: int = PANEL_PX) -> int:
    return TOP_PX + panels * panel_px + (panels - 1) * GAP_PX + BOTTOM_PX


def down_sample(frame: pd.DataFrame, points: int = MAX_POINTS) -> pd.DataFrame:
    """At most `points` rows: means over equal runs of rows, each at its first row's time."""
    if len(frame) <= points:
        return frame
    run = -(-len(frame) // points)
    groups = [row // run for row in range(len(frame))]
    means = frame.groupby(groups).mean()
    means.index = frame.index[::run]
    means.index.name = frame.index.name
    return means


def stack(
    frame: pd.DataFrame,
    panels: Sequence[Panel],
    window_ms: tuple[float, float],
    colours: Palette,
    now_ms: float | None = None,
    panel_px: int = PANEL_PX,
) -> dict[str, Any]:
    """One option object; the frame goes along as a dataset, so that it travels as Arrow."""
    wanted = [line.column for panel in panels for line in panel.lines if line.column in frame.columns]
    source = down_sample(frame[list(dict.fromkeys(wanted))]).reset_index() if wanted else None
    option: dict[str, Any] = {
        "animation": False,
        "useUTC": True,
        "textStyle": {"color": colours.text},
        "tooltip": {"trigger": "axis", "valueFormatter": "%.4g", "confine": True},
        "axisPointer": {"link": [{"xAxisIndex": "all"}]},
        "grid": [],
        "xAxis": [],
        "yAxis": [],
        "title": [],
        "legend": [],
        "series": [],
    }
    if source is not None:
        option["dataset"] = {"source": source}
    for index, panel in enumerate(panels):
        top = TOP_PX + index * (panel_px + GAP_PX)
        last = index == len(panels) - 1
        _axes(option, panel, index, top, panel_px, window_ms, colours, last)
        _series(option, panel, index, source, colours, now_ms)
    return option


def _axes(
    option: dict[str, Any],
    panel: Panel,
    index: int,
    top: int,
    panel_px: int,
    window_ms: tuple[float, float],
    colours: Palette,
    last: bool,
) -> None:
    option["grid"].append({"left": 56, "right": 16, "top": top, "height": panel_px})
    title = f"{panel.title} ({panel.unit})" if panel.unit else panel.title
    style = {"fontSize": 12, "fontWeight": 600, "color": colours.text}
    faint = {"fontSize": 11, "fontWeight": 400, "color": colours.grey}
    text = f"{{t|{title}}}  {{o|{_literal(panel.origin.line)}}}" if panel.origin else f"{{t|{title}}}"
    style = style | {"rich": {"t": style, "o": faint}}
    option["title"].append({"text": text, "left": 8, "top": top - 28, "textStyle": style})
    if panel.note:
        note = {"fontSize": 12, "fontWeight": 400, "color": colours.text}
        option["title"].append(
            {"text": panel.note, "left": "center", "top": top + panel_px // 2 - 8, "textStyle": note}
        )
    names: list[Any] = [line.label for line in panel.lines]
    if panel.band:
        names.append({"name": panel.band.label, "itemStyle": {"opacity": 2 * BAND_OPACITY}})
    legend = {"data": names, "right": 16, "top": top - 28, "itemWidth": 16, "itemHeight": 3, "icon": "rect"}
    option["legend"].append(legend | {"textStyle": {"color": colours.text, "fontSize": 11}, "type": "plain"})
    option["xAxis"].append(
        {
            "type": "time",
            "gridIndex": index,
            "min": window_ms[0],
            "max": window_ms[1],
            "axisLabel": {"show": last, "hideOverlap": True, "color": colours.text, "fontSize": 11},
            "axisTick": {"show": last},
            "axisLine": {"onZero": False, "lineStyle": {"color": colours.grey}},
            "splitLine": {"show": False},
        }
    )
    option["yAxis"].append(
        {
            "type": "value",
            "gridIndex": index,
            "scale": not panel.from_zero,
            "splitNumber": 3,
            "axisLabel": {"color": colours.text, "fontSize": 11, "hideOverlap": True},
            "splitLine": {"lineStyle": {"color": colours.grid}},
        }
        | ({"max": panel.maximum, "interval": panel.maximum / 2} if panel.maximum is not None else {})
        | ({"minInterval": 1} if panel.whole else {})
    )


def _literal(text: str) -> str:
    """Braces and bars would be read as style marks."""
    return text.translate(str.maketrans("{}|", "()/"))


def _series(
    option: dict[str, Any],
    panel: Panel,
    index: int,
    source: pd.DataFrame | None,
    colours: Palette,
    now_ms: float | None,
) -> None:
    if panel.band:
        option["series"] += _band(panel.band, index)
    axes = {"xAxisIndex": index, "yAxisIndex": index, "type": "line", "showSymbol": False}
    for line in panel.lines:
        style = {"color": line.colour, "width": line.width, "type": "dashed" if line.dashed else "solid"}
        drawn: dict[str, Any] = axes | {"name": line.label, "lineStyle": style, "itemStyle": {"color": line.colour}}
        if line.step:
            drawn["step"] = "end"
        if line.fill:
            drawn["areaStyle"] = {"opacity": 0.15, "color": line.colour}
        if line.column is None:
            drawn["data"] = [list(point) for point in line.points]
        elif source is not None and line.column in source.columns:
            drawn["encode"] = {"x": "t", "y": line.column}
        else:
            drawn["data"] = []
        option["series"].append(drawn)
    guides = _guides(panel, colours, now_ms)
    if guides:
        unseen = {"lineStyle": {"opacity": 0}, "tooltip": {"show": False}, "silent": True}
        # A line across does not stretch an axis; a point does. Far above the data it would flatten them instead.
        stretch = [[option["xAxis"][index]["min"], panel.limit[1]]] if panel.limit and _is_near(panel, source) else []
        option["series"].append(axes | unseen | {"name": f"guides {index}", "data": stretch, "markLine": guides})


def _is_near(panel: Panel, source: pd.DataFrame | None) -> bool:
    """Whether the limit is at most `NEAR_LIMIT` times the largest value that is drawn."""
    columns = [line.column for line in panel.lines if source is not None and line.column in source.columns]
    if source is None or panel.limit is None or not columns:
        return False
    return bool(source[columns].max().max() * NEAR_LIMIT >= panel.limit[1])


def _band(band: Band, index: int) -> list[dict[str, Any]]:
    base: dict[str, Any] = {
        "type": "line",
        "xAxisIndex": index,
        "yAxisIndex": index,
        "step": "end",
        "showSymbol": False,
        "stack": f"band {index}",
        "lineStyle": {"opacity": 0},
        "tooltip": {"show": False},
    }
    width = [[low[0], high[1] - low[1]] for low, high in zip(band.low, band.high)]
    return [
        base | {"name": f"{band.label} from", "data": [list(point) for point in band.low]},
        base
        | {
            "name": band.label,
            "data": width,
            "itemStyle": {"color": band.colour},
            "areaStyle": {"opacity": BAND_OPACITY, "color": band.colour},
        },
    ]


def _guides(panel: Panel, colours: Palette, now_ms: float | None) -> dict[str, Any] | None:
    data: list[dict[str, Any]] = []
    if panel.limit is not None:
        name, value = panel.limit
        style = {"color": colours.red, "type": "dashed", "width": 1.4}
        label = {"formatter": name, "position": "insideEndTop", "color": colours.red, "fontSize": 11}
        data.append({"yAxis": value, "lineStyle": style, "label": label})
    for mark in panel.marks:
        style = {"color": colours.purple, "type": "dotted", "width": 1.2}
        label = {"formatter": mark.text, "color": colours.purple, "fontSize": 10, "show": bool(mark.text)}
        data.append({"xAxis": mark.at_ms, "lineStyle": style, "label": label})
    if now_ms is not None:
        style = {"color": colours.grey, "type": "solid", "width": 1, "opacity": 0.7}
        data.append({"xAxis": now_ms, "lineStyle": style, "label": {"show": False}})
    return {"symbol": "none", "animation": False, "data": data} if data else None
