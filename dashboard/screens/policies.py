"""Policies: what is in force, an editor that validates, and the way from observe over shadow to enforce."""

from __future__ import annotations

import streamlit as st

from dashboard import session, show
from dashboard.errors import ApiError, ApiRefusedError
from dashboard.schema_policy import PolicyProblem, PolicyState
from dashboard.views import policies as view
from dashboard.views.formats import clock, plain

EDITOR = "policy-text"
BASE = "policy-base-revision"
WINDOWS = {"1 h": 3600.0, "6 h": 21600.0, "24 h": 86400.0}


def page() -> None:
    show.heading("Policies", "Edit, check, compare, try on a recorded window, and put in force.")
    policy = session.ask(lambda api: api.policy())
    if policy is None:
        return
    in_force(policy)
    if EDITOR not in st.session_state:
        load(policy.text, policy.revision)
    edit, past, schema = st.tabs(["Edit", "Revisions", "Schema help"], key="policy-tabs", on_change="rerun")
    if edit.open:
        with edit:
            editor(policy)
    if past.open:
        with past:
            revisions(policy)
    if schema.open:
        with schema:
            schema_help()


def load(text: str, revision: str) -> None:
    st.session_state[EDITOR] = text
    st.session_state[BASE] = revision


def in_force(policy: PolicyState) -> None:
    done = st.session_state.pop("policy-done", None)
    if done:
        st.success(plain(done), icon=":material/check:")
    if policy.alarm:
        st.error(plain(policy.alarm), icon=":material/error:")
    if policy.held_back:
        st.warning(plain(f"Asked for {policy.asked_mode}, runs as {policy.mode}: {policy.held_back}"))
    if policy.override:
        st.info(plain(f"Changed at start: {policy.override}"), icon=":material/science:")
    e = policy.effective
    show.facts(
        {
            "In force": f"{policy.name}, revision {policy.revision[:12]}",
            "Mode": f"{policy.mode}: {view.MODE_MEANS.get(policy.mode, '')}",
            "Since": f"{clock(policy.activated_unix_s)} UTC, by {policy.actor}",
            "Asks now for": f"governor {e.governor}, {view.clock_bounds(e)}, band {e.band}, directive {e.directive}",
        }
    )
    if e.rules:
        st.caption(plain("Decided by rules: " + ", ".join(f"{name} by {rule}" for name, rule in e.rules.items())))


def editor(policy: PolicyState) -> None:
    if st.session_state[BASE] != policy.revision:
        st.warning("The policy in force changed since this text was loaded.", icon=":material/sync_problem:")
    text = st.text_area("Policy (YAML)", key=EDITOR, height=420, help="Settings and their meaning: tab Schema help.")
    mode = view.mode_of(text)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        st.button("Validate", key="policy-validate", icon=":material/rule:", on_click=remember, args=("validate",))
        st.button(
            "Show differences", key="policy-diff", icon=":material/difference:", on_click=remember, args=("diff",)
        )
        st.button(
            "What if",
            key="policy-what-if",
            icon=":material/science:",
            on_click=remember,
            args=("what-if",),
            disabled=not session.may("operator"),
            help="Runs the recorded requests of this window through the simulator. Needs operator.",
        )
        window = st.selectbox("Window", list(WINDOWS), key="policy-window", width=110, label_visibility="collapsed")
        st.button("Load the policy in force", key="policy-load", on_click=load, args=(policy.text, policy.revision))
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.caption("Mode in the text", width="content")
        for each in view.MODES:
            st.button(f"Set {each}", key=f"policy-set-{each}", disabled=mode == each, on_click=set_mode, args=(each,))
    if st.session_state.get("policy-mode-error"):
        st.error(plain(st.session_state.pop("policy-mode-error")))
    shown = st.session_state.get("policy-shown")
    if shown == "validate":
        validation(text)
    elif shown == "diff":
        difference(text)
    elif shown == "what-if":
        what_if(text, WINDOWS[str(window)])
    activation(text, mode)


def remember(what: str) -> None:
    st.session_state["policy-shown"] = what


def set_mode(mode: str) -> None:
    try:
        st.session_state[EDITOR] = view.with_mode(st.session_state[EDITOR], mode)
    except ValueError as error:
        st.session_state["policy-mode-error"] = str(error)


def validation(text: str) -> None:
    answer = session.ask(lambda api: api.validate(text))
    if answer is None:
        return
    if answer.ok:
        st.success(f"Valid. It would be revision {(answer.revision or '')[:12]}.", icon=":material/check:")
    problems(answer.problems, text)


def problems(found: list[PolicyProblem] | tuple[PolicyProblem, ...], text: str) -> None:
    if not found:
        return
    wrong = sum(problem.severity == "error" for problem in found)
    if wrong:
        st.error(f"{wrong} error{'s' if wrong > 1 else ''}. The policy in force stays.", icon=":material/error:")
    st.code("\n".join(view.problem_lines(found, text)), language=None, wrap_lines=True)


def difference(text: str) -> None:
    try:
        answer = session.client().diff(text=text)
    except ApiRefusedError as error:
        session.show_error(error)
        problems(error.problems, text)
        return
    except ApiError as error:
        session.show_error(error)
        return
    show.table(
        view.change_rows(answer.changes),
        "policy-diff-table",
        "Settings that differ.",
        "No setting differs from the policy in force.",
    )


def what_if(text: str, window_s: float) -> None:
    with st.spinner("Simulating the window"):
        answer = session.ask(lambda api: api.what_if(text, window_s))
    if answer is None:
        return
    st.markdown(plain(view.saved(answer.in_force, answer.proposed)))
    show.table(view.what_if_rows(answer), "what-if-table", "What the window would have cost under both.", "")
    for note in answer.notes:
        st.caption(plain(note))


def activation(text: str, mode: str | None) -> None:
    allowed = session.may("admin")
    with st.container(horizontal=True, vertical_alignment="bottom"):
        reason = st.text_input("Reason for the change", key="policy-reason", max_chars=300, disabled=not allowed)
        st.button(
            f"Activate ({mode or 'mode not set'})",
            key="policy-activate",
            type="primary",
            icon=":material/publish:",
            disabled=not allowed or not reason.strip(),
            help=None if allowed else "Needs the role admin.",
            on_click=activate,
            args=(text, reason),
        )
    failed = st.session_state.pop("policy-failed", None)
    if failed is not None:
        session.show_error(failed)
        problems(getattr(failed, "problems", ()), text)


def activate(text: str, reason: str) -> None:
    try:
        made = session.client().activate(text, st.session_state[BASE], reason.strip())
    except ApiError as error:
        st.session_state["policy-failed"] = error
        return
    finish(made, "Activated")


def finish(made: PolicyState, verb: str) -> None:
    load(made.text, made.revision)
    st.session_state["policy-reason"] = ""
    st.session_state["policy-shown"] = None
    st.session_state["policy-done"] = (
        f"{verb}: {made.name} is in force, revision {made.revision[:12]}, mode {made.mode}."
    )


def revisions(policy: PolicyState) -> None:
    answer = session.ask(lambda api: api.revisions())
    if answer is None:
        return
    show.table(
        view.revision_rows(answer.revisions), "revision-table", "Activations, newest first.", "No activation on record."
    )
    earlier = [each.revision for each in answer.revisions if each.revision != policy.revision]
    if not earlier:
        return
    chosen = st.selectbox(
        "Earlier revision", list(dict.fromkeys(earlier)), key="revision-chosen", format_func=lambda name: name[:12]
    )
    answer_diff = session.ask(lambda api: api.diff(revision=str(chosen)))
    if answer_diff is not None:
        show.table(
            view.change_rows(answer_diff.changes), "revision-diff", "Settings that differ.", "No setting differs."
        )
    allowed = session.may("admin")
    with st.container(horizontal=True, vertical_alignment="bottom"):
        reason = st.text_input("Reason for the rollback", key="rollback-reason", max_chars=300, disabled=not allowed)
        if st.button(
            "Roll back to it",
            key="rollback",
            icon=":material/undo:",
            disabled=not allowed or not reason.strip(),
            help=None if allowed else "Needs the role admin.",
        ):
            made = session.ask(lambda api: api.rollback(str(chosen), policy.revision, reason.strip()))
            if made is not None:
                st.session_state.pop(EDITOR, None)
                st.session_state["policy-done"] = f"Rolled back: revision {made.revision[:12]} is in force."
                st.rerun()


def schema_help() -> None:
    schema = session.ask(lambda api: api.policy_schema())
    if schema is None:
        return
    wanted = st.text_input("Find a setting", key="schema-find", placeholder="clock, band, directive ...")
    show.table(
        view.schema_rows(schema, wanted),
        "schema-table",
        "Settings of a policy file.",
        "No setting has that word.",
    )


page()
