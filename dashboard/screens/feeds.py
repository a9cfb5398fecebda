"""Feeds and health: sources of intensity, background jobs, the ledger, versions."""

from __future__ import annotations

import streamlit as st

from dashboard import session, show
from dashboard.views import system as view
from dashboard.views.formats import duration, plain


def page() -> None:
    show.heading(
        "Feeds and health", "Where intensity comes from, what runs in the background, and whether records are kept."
    )
    allowed = session.may("operator")
    if st.button(
        "Ask the feeds now",
        icon=":material/refresh:",
        key="feeds-refresh",
        disabled=not allowed,
        help=None if allowed else "Needs the role operator.",
    ):
        session.ask(lambda api: api.refresh_feeds())
    health()


@st.fragment(run_every=5.0)
def health() -> None:
    state = session.snapshot().state
    if state is None:
        return
    now = state.now_unix_s
    feeds = session.ask(lambda api: api.feeds())
    if feeds is not None:
        st.subheader(plain(f"Feeds of zone {feeds.zone}"))
        show.table(
            view.feed_rows(feeds.feeds, now), "feed-table", "Feeds and their health.", "The policy names no feed."
        )
    jobs = session.ask(lambda api: api.jobs())
    if jobs is not None:
        st.subheader("Background jobs")
        show.table(view.job_rows(jobs.jobs, now), "job-table", "Background jobs.", "No job runs.")
    st.subheader("Ledger")
    if state.ledger is None:
        st.info(
            "This server keeps no ledger: no requests, no audit, no budgets across restarts.", icon=":material/block:"
        )
    else:
        if state.ledger.alarm:
            st.error(plain(state.ledger.alarm), icon=":material/error:")
        show.facts(view.ledger_facts(state.ledger))
    st.caption(plain(f"gridserve {state.version}, up {duration(now - state.started_unix_s)}, {session.settings().api}"))


page()
