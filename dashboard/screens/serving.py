"""Serving: what the engine does with requests."""

from __future__ import annotations

import streamlit as st

from dashboard import session, show
from dashboard.live_series import WINDOW_S
from dashboard.views import serving as view
from dashboard.views.formats import plain


def page() -> None:
    show.heading("Serving", "Queue, batch, KV cache, throughput and latency of the last 15 minutes.")
    live()


@st.fragment(run_every=1.0)
def live() -> None:
    snapshot = session.snapshot()
    state = snapshot.state
    if state is None:
        return
    engine = state.engine
    st.caption(
        plain(f"{engine.model}, {engine.weight_format} on {engine.device}, context {engine.max_model_len:,} tokens")
    )
    show.tile_row(view.tiles(state), snapshot)
    frame = session.live().frame(state.now_unix_s)
    now_ms = state.now_unix_s * 1000
    show.panels(
        frame,
        view.panels(frame, state, session.colours()),
        (now_ms - WINDOW_S * 1000, now_ms),
        snapshot,
        "serving-stack",
        "Running and waiting requests, KV cache, output tokens per second, TTFT and TPOT p99 over 15 minutes.",
        panel_px=92,
    )


page()
