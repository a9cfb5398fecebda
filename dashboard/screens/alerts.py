"""Alerts: what the server itself sees as wrong now. Routing and silencing is Alertmanager's."""

from __future__ import annotations

import streamlit as st

from dashboard import session, show
from dashboard.views import system as view
from dashboard.views.formats import plain
from dashboard.views.health import slo_breaches


def page() -> None:
    show.heading("Alerts", "What is wrong now. To be called at night, use the Prometheus rules with Alertmanager.")
    now()


@st.fragment(run_every=2.0)
def now() -> None:
    state = session.snapshot().state
    if state is None:
        return
    show.table(view.alarm_rows(state.alarms, state.now_unix_s), "alarm-table", "Alarms of the server.", "No alarm.")
    for breach in slo_breaches(state):
        st.warning(plain(breach), icon=":material/timer:")


page()
