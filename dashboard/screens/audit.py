"""Audit: who or what changed what, when, why and with which result; and whether the record is whole."""

from __future__ import annotations

from functools import partial

import streamlit as st

from dashboard import session, show
from dashboard.views import audit as view
from dashboard.views.formats import plain

PAGE = 200


def page() -> None:
    show.heading("Audit", "Decisions, actuations, holds and edits, newest first, in a hash chain.")
    left, right = st.columns([2, 3], vertical_alignment="bottom")
    kind = left.selectbox("Kind", ["any", *view.KINDS], key="audit-kind")
    words = right.text_input("Words in actor, reason, rule, device or result", key="audit-words")
    marks: list[int | None] = st.session_state.setdefault("audit-before", [None])
    if st.session_state.get("audit-listed") != kind:
        st.session_state["audit-listed"] = kind
        marks[:] = [None]
    found = session.ask(lambda api: api.audit(PAGE, marks[-1], None if kind == "any" else str(kind)))
    if found is None:
        return
    rows = view.filtered(found.rows, words)
    st.caption(f"{len(rows)} of {len(found.rows)} rows on this page")
    empty = "No such row." if found.rows else "Nothing is on record yet, or this server keeps no ledger."
    chosen = show.table(
        view.rows(rows), "audit-table", "Audit rows.", empty, on_select="rerun", selection_mode="single-row"
    )
    with st.container(horizontal=True):
        if st.button("Newer", icon=":material/chevron_left:", key="audit-newer", disabled=len(marks) == 1):
            marks.pop()
            st.rerun()
        if st.button(
            "Older", icon=":material/chevron_right:", key="audit-older", disabled=found.next_before_seq is None
        ):
            marks.append(found.next_before_seq)
            st.rerun()
        verify = st.button("Check the hash chain", icon=":material/link:", key="audit-verify")
        export()
    if verify:
        check_chain()
    picked = chosen.selection.rows if chosen is not None else []
    if picked and picked[0] < len(rows):
        st.code(view.in_full(rows[picked[0]]), language="json")


def check_chain() -> None:
    check = session.ask(lambda api: api.verify_audit())
    if check is None:
        return
    ok, text = view.verdict(check)
    if ok:
        st.success(plain(text), icon=":material/verified:")
    else:
        st.error(plain(text), icon=":material/gpp_bad:")


def export() -> None:
    allowed = session.may("operator")
    client = session.client()
    for name in ("csv", "json"):
        st.download_button(
            f"Export {name.upper()}",
            data=partial(client.export, "audit", name, None, None),
            file_name=f"gridserve-audit.{name}",
            mime="text/csv" if name == "csv" else "application/json",
            icon=":material/download:",
            key=f"audit-{name}",
            disabled=not allowed,
            help=None if allowed else "Needs the role operator.",
            on_click="ignore",
        )


page()
