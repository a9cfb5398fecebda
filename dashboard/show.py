"""How view-models are drawn: tiles, states, banners, charts, small tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import streamlit as st

from dashboard import session
from dashboard.views.charts import PANEL_PX, Panel, height_px, stack
from dashboard.views.formats import plain
from dashboard.views.health import Banner, Level, markdown
from dashboard.views.origin import DataState, Origin
from dashboard.views.overview import Tile

ICONS = {
    DataState.LIVE: (":material/sensors:", "green"),
    DataState.STALE: (":material/history:", "orange"),
    DataState.ESTIMATED: (":material/calculate:", "blue"),
    DataState.SIMULATED: (":material/science:", "violet"),
    DataState.MISSING: (":material/block:", "gray"),
}


def origin_line(origin: Origin) -> str:
    """State with icon and word (never colour alone), then source and age."""
    icon, colour = ICONS[origin.state]
    return f":{colour}-badge[{icon} {origin.state.value}] {plain(origin.text)}"


def origin(of: Origin) -> None:
    st.caption(origin_line(of))


def tile(made: Tile) -> None:
    with st.container(border=True, height="stretch", gap="xsmall"):
        flag = ":orange[:material/warning:] " if made.bad else ""
        st.metric(flag + made.label, made.value, help=made.help or None)
        st.caption(plain(made.against) or " ")
        origin(made.origin)


def tile_row(made: Sequence[Tile], columns: int = 6, min_px: int = 136) -> None:
    with st.grid(columns, min_column_width=min_px, gap="small"):
        for each in made:
            tile(each)


def banner(made: Banner) -> None:
    if made.level is Level.BAD:
        st.error(markdown(made), icon=":material/cloud_off:")
    else:
        st.warning(markdown(made), icon=":material/front_hand:")


def panels(
    frame: pd.DataFrame,
    made: Sequence[Panel],
    window_ms: tuple[float, float],
    key: str,
    alt: str,
    now_ms: float | None = None,
    panel_px: int = PANEL_PX,
) -> None:
    option = stack(frame, made, window_ms, session.colours(), now_ms, panel_px)
    st.echarts_chart(option, height=height_px(made, panel_px), key=key, alt=alt)


def table(rows: Sequence[Mapping[str, Any]], key: str, alt: str, empty: str, **options: Any) -> Any:
    """Text in cells is plain text: nothing of a tenant's or a model's is interpreted."""
    if not rows:
        st.info(empty, icon=":material/inbox:")
        return None
    return st.dataframe(pd.DataFrame(rows), hide_index=True, key=key, alt=alt, **options)


def heading(title: str, text: str) -> None:
    st.title(title)
    st.caption(text)


def facts(pairs: Mapping[str, str]) -> None:
    """A short list of named values."""
    st.markdown("  \n".join(f"{plain(name)}: **{plain(value)}**" for name, value in pairs.items()))
