"""Overview: is it well, what does it draw and emit, which policy acts and why."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from dashboard import session, show
from dashboard.live_series import WINDOW_S
from dashboard.snapshot import Snapshot
from dashboard.views import overview as view
from dashboard.views.charts import height_px
from dashboard.views.formats import plain
from dashboard.views.health import Level, verdict
from dashboard.views.origin import aged

RANGES = {"15 min": WINDOW_S, "1 h": 3600.0, "6 h": 21600.0, "24 h": 86400.0}
CHART_DUE = "overview-chart-due"
AHEAD = 1 / 5  # of the range, shown ahead of now for the forecast
COLOURS = {Level.GOOD: "green", Level.WARNING: "orange", Level.BAD: "red"}
SIGNS = {Level.GOOD: ":material/check_circle:", Level.WARNING: ":material/warning:", Level.BAD: ":material/error:"}


def page() -> None:
    left, right = st.columns([3, 2], vertical_alignment="bottom")
    left.title("Overview")
    with right.container(horizontal=True, horizontal_alignment="right"):
        span = st.segmented_control(
            "Time range",
            list(RANGES),
            default="15 min",
            key="overview-range",
            required=True,
            label_visibility="collapsed",
        )
    span_s = RANGES[str(span or "15 min")]
    tiles()
    if span_s <= WINDOW_S:
        live_chart(span_s)
    else:
        long_chart(span_s)


@st.fragment(run_every=1.0)
def tiles() -> None:
    snapshot = session.snapshot()
    judged = verdict(snapshot)
    reasons = f" — {plain(' · '.join(judged.reasons[:3]))}" if judged.reasons else ""
    st.markdown(f":{COLOURS[judged.level]}[{SIGNS[judged.level]} **{judged.word}**]{reasons}")
    show.tile_row(view.tiles(snapshot), snapshot)
    state = snapshot.state
    if state is None:
        return
    gap = view.attribution_gap(state)
    lines = [f"{plain(gap.text)} · {show.origin_line(aged(gap.origin, snapshot))}", view.why(state, session.carbon())]
    st.caption("  \n".join(line for line in lines if line))


@st.fragment(run_every=1.0)
def live_chart(span_s: float) -> None:
    """A tick after the tiles in a new session: two megabytes of the charts' scripts would hold those up in the browser
    for about a second."""
    snapshot = session.snapshot()
    if CHART_DUE not in st.session_state:
        st.session_state[CHART_DUE] = True
        with st.container(height=height_px(view.PANELS), border=False):
            st.caption("Charts follow in a moment.")
    elif snapshot.state is not None:
        draw(snapshot, session.live().frame(snapshot.state.now_unix_s), span_s)


@st.fragment(run_every=15.0)
def long_chart(span_s: float) -> None:
    snapshot = session.snapshot()
    if snapshot.state is None:
        return
    session.live().frame(snapshot.state.now_unix_s)
    wanted = ("power_w", "power_limit_w{", "sm_clock_mhz{", "asked_clock_mhz{", "intensity_g_per_kwh", "ttft_p9")
    names = [info.name for info in session.live().catalogue() if info.name.startswith(wanted)]
    frame = session.ask(lambda _: session.history(names, span_s, snapshot.state.now_unix_s if snapshot.state else 0.0))
    if frame is not None:
        draw(snapshot, frame, span_s)


def draw(snapshot: Snapshot, frame: pd.DataFrame, span_s: float) -> None:
    state = snapshot.state
    if state is None:
        return
    now_ms = state.now_unix_s * 1000
    since_ms = now_ms - span_s * 1000
    frame = view.with_total_limit(frame)
    happened = view.marks(session.recent_audit(), since_ms)
    made = view.panels(frame, state, session.carbon(), happened, session.colours())
    alt = (
        "Power and cap, SM clock, carbon intensity with forecast and plan, and TTFT p95 and p99 with SLO, "
        "on one time axis."
    )
    window_ms = (since_ms, now_ms + AHEAD * span_s * 1000)
    show.panels(frame, made, window_ms, snapshot, "overview-stack", alt, now_ms)
    span = next(name for name, seconds in RANGES.items() if seconds == span_s)
    st.caption(f"Range: {span}. Times are UTC. Dotted lines: actuations and operators' acts. Vertical line: now.")


page()
