"""Holds: freeze, pin or give back the clocks, with a reason and an expiry; and release."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from dashboard import session, show
from dashboard.client import AdminClient
from dashboard.errors import ApiError
from dashboard.schema_policy import HoldAnswer
from dashboard.views import holds as view
from dashboard.views.formats import plain


def page() -> None:
    show.heading(
        "Holds", "Take the clocks from the policy for a while. Every hold has a reason, and reverts by itself."
    )
    outcome()
    answer = session.ask(lambda api: api.holds())
    if answer is None:
        return
    allowed = session.may("operator")
    if not allowed:
        st.info("Placing and releasing holds needs the role operator.", icon=":material/lock:")
    if answer.active is not None:
        st.subheader("In force")
        show.table(view.rows([answer.active]), "hold-active", "The hold in force.", "")
        release(allowed)
    else:
        st.caption("No hold is in force: the policy has the clocks.")
    place(allowed)
    st.subheader("On record as not released")
    show.table(view.rows(answer.recorded), "hold-recorded", "Holds on record.", "None.")


def outcome() -> None:
    done: HoldAnswer | None = st.session_state.pop("hold-done", None)
    failed: ApiError | None = st.session_state.pop("hold-failed", None)
    if failed is not None:
        session.show_error(failed)
    if done is None:
        return
    if done.hold is None:
        st.success("Released: the policy has the clocks again.", icon=":material/check:")
    else:
        st.success(plain(f"Placed: {view.MODES.get(done.hold.mode, done.hold.mode)}."), icon=":material/check:")
    if done.actuations:
        show.table(
            view.result_rows(done.actuations), "hold-results", "What was asked of each device and read back.", ""
        )


def act(order: Callable[[AdminClient], HoldAnswer]) -> None:
    try:
        st.session_state["hold-done"] = order(session.client())
    except ApiError as error:
        st.session_state["hold-failed"] = error
    st.rerun()


def release(allowed: bool) -> None:
    with st.form("release", border=False), st.container(horizontal=True, vertical_alignment="bottom"):
        reason = st.text_input("Reason for the release", value="no longer needed", max_chars=300)
        sent = st.form_submit_button("Release", type="primary", icon=":material/lock_open:", disabled=not allowed)
    if sent:
        act(lambda api: api.release(reason.strip()))


def place(allowed: bool) -> None:
    st.subheader("Place a hold")
    state = session.snapshot().state
    devices = state.power.devices if state is not None and state.power is not None else []
    span = view.clock_range(devices)
    with st.container(border=True):
        mode = st.radio("What", list(view.MODES), format_func=lambda m: view.MODES[m], horizontal=True, key="hold-mode")
        clock: int | None = None
        if mode == "pin":
            low, high = span or (1, 10000)
            clock = int(st.number_input("Clock (MHz)", low, high, high, step=15, key="hold-clock"))
            if span is None:
                st.caption("The devices do not say which clocks they have; the server checks.")
        durations = [*view.DURATIONS] + (["until released"] if mode == "defaults" else [])
        until = st.selectbox("For", durations, index=1, key="hold-duration", width=200)
        reason = st.text_input("Reason", key="hold-reason", max_chars=300)
        ready = allowed and bool(reason.strip())
        if st.button(
            "Place the hold", type="primary", icon=":material/front_hand:", key="hold-place", disabled=not ready
        ):
            duration_s = view.DURATIONS.get(str(until))
            act(lambda api: api.hold(str(mode), reason.strip(), duration_s, clock))


page()
