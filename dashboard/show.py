"""How view-models are drawn: tiles, states, banners, charts, small tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import pandas as pd
import streamlit as st

from dashboard import session
from dashboard.snapshot import Snapshot
from dashboard.views.charts import PANEL_PX, Panel, height_px, stack
from dashboard.views.formats import plain
from dashboard.views.health import Banner, Level, markdown
from dashboard.views.origin import DataState, Origin, aged
from dashboard.views.overview import Tile

TILE_PX, TILES_PX = 128, 410
TABLE_PX = 420

ICONS = {
    DataState.LIVE: (":material/sensors:", "green"),
    DataState.STALE: (":material/history:", "orange"),
    DataState.ESTIMATED: (":material/calculate:", "blue"),
    DataState.SIMULATED: (":material/science:", "violet"),
    DataState.MISSING: (":material/block:", "gray"),
}


def origin_line(origin: Origin) -> str:
    """State with icon and word (never colour alone), then source and age."""
    return " ".join(origin_parts(origin))


def origin_parts(origin: Origin) -> tuple[str, str]:
    icon, colour = ICONS[origin.state]
    return f":{colour}-badge[{icon} {origin.state.value}]", plain(origin.text)


def origin(of: Origin) -> None:
    badge, text = origin_parts(of)
    st.markdown(f"{badge} :small[:gray[{text}]]")


def tile(made: Tile) -> None:
    with st.container(border=True, height="stretch", gap="xsmall"):
        flag = ":orange[:material/warning:] " if made.bad else ""
        st.metric(flag + made.label, made.value, help=made.help or None)
        badge, text = origin_parts(made.origin)
        # Not a caption: its faded text takes the contrast out of the badge.
        st.markdown(f":small[{plain(made.against) or ' '}]  \n{badge}  \n:small[:gray[{text}]]")


def tile_row(made: Sequence[Tile], snapshot: Snapshot) -> None:
    """All in one row on a wide page, one half below the other on a narrow one. All grow stale with the snapshot."""
    with st.grid(2, min_column_width=TILES_PX, gap="small"):
        half = -(-len(made) // 2)
        for part in filter(None, (made[:half], made[half:])):
            with st.grid(len(part), min_column_width=TILE_PX, gap="small", height="stretch"):
                for each in part:
                    tile(replace(each, origin=aged(each.origin, snapshot)))


def banner(made: Banner) -> None:
    if made.level is Level.BAD:
        st.error(markdown(made), icon=":material/cloud_off:")
    else:
        st.warning(markdown(made), icon=":material/front_hand:")


def panels(
    frame: pd.DataFrame,
    made: Sequence[Panel],
    window_ms: tuple[float, float],
    snapshot: Snapshot,
    key: str,
    alt: str,
    now_ms: float | None = None,
    panel_px: int = PANEL_PX,
) -> None:
    shown = [each if each.origin is None else replace(each, origin=aged(each.origin, snapshot)) for each in made]
    option = stack(frame, shown, window_ms, session.colours(), now_ms, panel_px)
    st.echarts_chart(option, height=height_px(len(made), panel_px), key=key, alt=alt)


def table(
    rows: Sequence[Mapping[str, Any]], key: str, alt: str, empty: str, most_rows: int = 12, **options: Any
) -> Any:
    """Text in cells is plain text: nothing of a tenant's or a model's is interpreted. Longer ones scroll."""
    if not rows:
        st.info(empty, icon=":material/inbox:")
        return None
    height: int | Literal["content"] = "content" if len(rows) <= most_rows else TABLE_PX
    return st.dataframe(pd.DataFrame(rows), hide_index=True, key=key, alt=alt, height=height, **options)


def heading(title: str, text: str) -> None:
    st.title(title)
    st.caption(text)


def facts(pairs: Mapping[str, str]) -> None:
    """A short list of named values."""
    st.markdown("  \n".join(f"{plain(name)}: **{plain(value)}**" for name, value in pairs.items()))
