"""Requests: search, and one request's life."""

from __future__ import annotations

import streamlit as st

from dashboard import session, show
from dashboard.schema_records import RequestRecord
from dashboard.views import requests as view
from dashboard.views.formats import clock, plain

PAGE = 100


def page() -> None:
    show.heading("Requests", "Finished requests, newest first, with joules and grams of each.")
    left, middle, right = st.columns([2, 2, 1], vertical_alignment="bottom")
    wanted = left.text_input("Request id", key="request-id", placeholder="exact id")
    tenant = middle.text_input("Tenant", key="request-tenant", placeholder="any")
    cursors: list[str | None] = st.session_state.setdefault("request-cursors", [None])
    if right.button("Newest", icon=":material/refresh:", key="request-newest", width="stretch"):
        cursors[:] = [None]
    if wanted.strip():
        record = session.ask(lambda api: api.request(wanted.strip()))
        if record is not None:
            life(record)
        return
    if st.session_state.get("request-listed-tenant") != tenant:
        st.session_state["request-listed-tenant"] = tenant
        cursors[:] = [None]
    found = session.ask(lambda api: api.requests(PAGE, cursors[-1], tenant.strip() or None))
    if found is None:
        return
    if found.requests:
        # Between the fields and the table: its tools float above its right end.
        st.caption("Select a row to see the life of that request.")
    chosen = show.table(
        view.rows(found.requests),
        "request-table",
        "Requests with tokens, latency, joules and grams.",
        "No finished request here yet. Send one, or clear the filters.",
        on_select="rerun",
        selection_mode="single-row",
        column_config={"Request": st.column_config.TextColumn(width=120)},
    )
    with st.container(horizontal=True):
        if st.button("Newer", icon=":material/chevron_left:", key="request-newer", disabled=len(cursors) == 1):
            cursors.pop()
            st.rerun()
        if st.button("Older", icon=":material/chevron_right:", key="request-older", disabled=found.next_cursor is None):
            cursors.append(found.next_cursor)
            st.rerun()
    picked = chosen.selection.rows if chosen is not None else []
    if picked and picked[0] < len(found.requests):
        life(found.requests[picked[0]])


def life(record: RequestRecord) -> None:
    st.subheader(plain(f"Request {record.request_id}"))
    st.caption(plain(f"{clock(record.arrived_unix_s)} UTC, {record.tenant or 'no tenant'}, {record.model}"))
    spec = view.life_spec(record, session.colours())
    if spec is None:
        st.info("Neither times nor joules are on record for this request.", icon=":material/block:")
    else:
        spoken = ", ".join(f"{phase.name} {phase.seconds:.3f} s" for phase in view.phases(record))
        st.echarts_chart(spec, height=176, key="life", alt=f"Life of the request: {spoken}.")
    st.caption("Joules " + show.origin_line(view.energy_origin(record)))
    st.caption("Grams " + show.origin_line(view.carbon_origin(record)))
    show.facts(view.facts(record))


page()
