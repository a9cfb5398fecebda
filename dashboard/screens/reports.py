"""Reports: what was served, with which joules and grams, by hour, day, tenant, class or directive."""

from __future__ import annotations

import streamlit as st

from dashboard import session, show
from dashboard.client import AdminClient
from dashboard.schema_records import RequestRecord
from dashboard.views import reports as view
from dashboard.views.formats import clock

PAGE = 1000
MAX_REQUESTS = 50_000


def page() -> None:
    show.heading("Reports", "Recorded requests with their joules and grams, to read, compare or file.")
    snapshot = session.snapshot()
    if snapshot.state is None:
        return
    left, right = st.columns(2)
    span = left.selectbox("Period", list(view.SPANS), key="report-span")
    group = right.selectbox("Group by", list(view.GROUPS), key="report-group")
    until = snapshot.state.now_unix_s
    since = until - view.SPANS[str(span)]
    found = session.ask(lambda api: collect(api, since, until))
    if found is None:
        return
    records, whole = found
    made = view.lines(records, str(group))
    show.table(view.rows(made), "report-table", "Requests, joules and grams by group.", "No request in this period.")
    if not whole:
        st.warning(f"Only the newest {MAX_REQUESTS:,} requests of the period are counted; export for all.")
    st.caption(f"{clock(since)} to {clock(until)} UTC. No saving is stated here: a saving needs a counterfactual.")
    if not made:
        return
    title = f"gridserve: {str(span).lower()} by {str(group).lower()}"
    with st.container(horizontal=True):
        st.download_button(
            "CSV", view.to_csv(made), "gridserve-report.csv", "text/csv", icon=":material/download:", on_click="ignore"
        )
        page_text = view.to_html(made, title, since, until)
        st.download_button(
            "HTML", page_text, "gridserve-report.html", "text/html", icon=":material/download:", on_click="ignore"
        )


def collect(api: AdminClient, since: float, until: float) -> tuple[list[RequestRecord], bool]:
    """Requests of the period, and whether they are all."""
    records: list[RequestRecord] = []
    cursor: str | None = None
    while len(records) < MAX_REQUESTS:
        found = api.requests(PAGE, cursor, None, since, until)
        records += found.requests
        if found.next_cursor is None:
            return records, True
        cursor = found.next_cursor
    return records, False


page()
