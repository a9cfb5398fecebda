"""GPUs and power: each device now, its last 15 minutes, and where the joules went."""

from __future__ import annotations

import streamlit as st

from dashboard import session, show
from dashboard.live_series import WINDOW_S
from dashboard.views import devices as view
from dashboard.views.formats import joules, plain
from dashboard.views.origin import aged, of_method, of_power, sources


def page() -> None:
    show.heading("GPUs and power", "What each device draws, at which clock, under which limit, and what may be set.")
    snapshot = session.snapshot()
    if snapshot.state is None:
        return
    if snapshot.state.power is None or not snapshot.state.power.devices:
        st.info(plain(f"No power device: {of_power(snapshot.state).reason}."), icon=":material/power_off:")
        return
    for note in view.permission_notes(snapshot.state.power):
        st.warning(plain(note), icon=":material/lock:")
    for note in view.remarks(snapshot.state.power):
        st.caption(plain(note))
    now()
    frame = session.live().frame(snapshot.state.now_unix_s)
    labels = view.gpus(frame)
    if not labels:
        st.info("No series of single devices yet.", icon=":material/hourglass_empty:")
        return
    gpu = st.segmented_control(
        "Device", labels, default=labels[0], required=True, key="gpu", format_func="GPU {}".format
    )
    chart(str(gpu or labels[0]))


@st.fragment(run_every=1.0)
def now() -> None:
    snapshot = session.snapshot()
    state = snapshot.state
    if state is None or state.power is None:
        return
    show.tile_row(view.tiles(state), snapshot)
    show.table(view.rows(state.power), "gpu-table", "Devices: power, limits, clocks, temperature.", "No device.")
    totals = state.power.totals
    of_totals = aged(of_method(totals.method, sources(state.power.devices), 0.0), snapshot)
    st.caption(f"Where the {plain(joules(totals.counter_j))} since start went · {show.origin_line(of_totals)}")
    parts = ", ".join(f"{name} {value:,.0f} J" for name, value in view.energy_parts(state.power))
    st.echarts_chart(
        view.energy_spec(state.power, session.colours()), height=74, key="energy-parts", alt=f"Energy by part: {parts}."
    )


@st.fragment(run_every=1.0)
def chart(gpu: str) -> None:
    snapshot = session.snapshot()
    state = snapshot.state
    if state is None:
        return
    frame = session.live().frame(state.now_unix_s)
    now_ms = state.now_unix_s * 1000
    show.panels(
        frame,
        view.panels(frame, gpu, of_power(state), session.colours()),
        (now_ms - WINDOW_S * 1000, now_ms),
        snapshot,
        "gpu-stack",
        f"Power, clock and temperature of GPU {gpu} over 15 minutes.",
    )


page()
