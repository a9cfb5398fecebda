"""Access: who you are here, and the keys of tenants and operators."""

from __future__ import annotations

import streamlit as st

from dashboard import session, show
from dashboard.errors import ApiError
from dashboard.schema_access import KeyInfo, NewKey
from dashboard.views import system as view
from dashboard.views.formats import UNKNOWN


def page() -> None:
    show.heading(
        "Access", "Roles are the admin API's to check: viewer reads, operator acts, admin edits policy and keys."
    )
    me = session.whoami()
    name, role = me if me else (UNKNOWN, UNKNOWN)
    show.facts({"You are": name, "Role": role, "Access": session.settings().access})
    if not session.may("admin"):
        st.info("Keys are shown to the role admin.", icon=":material/lock:")
        return
    new: NewKey | None = st.session_state.pop("key-new", None)
    if new is not None:
        st.success("Copy the secret now; it is not shown again.", icon=":material/key:")
        st.code(new.secret, language=None)
    failed: ApiError | None = st.session_state.pop("key-failed", None)
    if failed is not None:
        session.show_error(failed)
    state = session.snapshot().state
    answer = session.ask(lambda api: api.keys())
    if answer is None or state is None:
        return
    show.table(view.key_rows(answer.keys, state.now_unix_s), "key-table", "Keys without their secrets.", "No key.")
    create()
    if answer.keys:
        change(answer.keys)


def create() -> None:
    st.subheader("New key")
    with st.form("key-create"):
        left, right = st.columns(2)
        name = left.text_input("For (tenant or person)", max_chars=64)
        scopes = right.multiselect("Scopes", list(view.SCOPES), default=["inference"], format_func=_scope)
        expiry = left.selectbox("Expires after", list(view.EXPIRIES), index=1)
        reason = right.text_input("Reason", max_chars=300)
        sent = st.form_submit_button("Create", type="primary", icon=":material/add:")
    if sent:
        try:
            made = session.client().create_key(name.strip(), scopes, view.EXPIRIES[str(expiry)], reason.strip())
        except ApiError as error:
            st.session_state["key-failed"] = error
        else:
            st.session_state["key-new"] = made
        st.rerun()


def _scope(scope: str) -> str:
    return f"{scope}: {view.SCOPES[scope]}"


def change(keys: list[KeyInfo]) -> None:
    st.subheader("Rotate or revoke")
    names = {key.key_id: f"{key.key_id}: {key.name} ({', '.join(key.scopes)})" for key in keys}
    with st.form("key-change"):
        chosen = str(st.selectbox("Key", list(names), format_func=lambda key_id: names[key_id]))
        reason = st.text_input("Reason", max_chars=300)
        with st.container(horizontal=True):
            rotate = st.form_submit_button("Rotate", icon=":material/autorenew:")
            revoke = st.form_submit_button("Revoke", icon=":material/block:")
    if rotate or revoke:
        try:
            if rotate:
                st.session_state["key-new"] = session.client().rotate_key(chosen, reason.strip())
            else:
                session.client().revoke_key(chosen, reason.strip())
        except ApiError as error:
            st.session_state["key-failed"] = error
        st.rerun()


page()
