"""GPUs and power: each device now, its last 15 minutes, and where the joules went."""

from __future__ import annotations

import streamlit as st

from dashboard import session, show
from dashboard.live_series import WINDOW_S
from dashboard.views import devices as view
from dashboard.views.formats import plain
from dashboard.views.origin import of_power


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
    state = session.snapshot().state
    if state is None or state.power is None:
        return
    show.tile_row(view.tiles(state))
    show.table(view.rows(state.power), "gpu-table", "Devices: power, limits, clocks, temperature.", "No device.")
    st.caption("Where the joules since start went")
    parts = ", ".join(f"{name} {value:,.0f} J" for name, value in view.energy_parts(state.power))
    st.echarts_chart(
        view.energy_spec(state.power, session.colours()), height=74, key="energy-parts", alt=f"Energy by part: {parts}."
    )


@st.fragment(run_every=1.0)
def chart(gpu: str) -> None:
    state = session.snapshot().state
    if state is None:
        return
    frame = session.live().frame(state.now_unix_s)
    now_ms = state.now_unix_s * 1000
    show.panels(
        frame,
        view.panels(frame, gpu, session.colours()),
        (now_ms - WINDOW_S * 1000, now_ms),
        "gpu-stack",
        f"Power, clock and temperature of GPU {gpu} over 15 minutes.",
    )


page()
