"""Tenants and budgets: joules and grams of the UTC day so far."""

from __future__ import annotations

import streamlit as st

from dashboard import session, show
from dashboard.views import budgets as view


def page() -> None:
    show.heading("Tenants and budgets", "Joules and grams of the UTC day so far. Budgets are set in the policy.")
    table()


@st.fragment(run_every=5.0)
def table() -> None:
    state = session.snapshot().state
    answer = session.ask(lambda api: api.budgets())
    if answer is None or state is None:
        return
    used = st.column_config.ProgressColumn("Used", format="percent", min_value=0.0, max_value=1.0)
    show.table(
        view.rows(answer.tenants, state.now_unix_s),
        "budget-table",
        "Tenants with requests, joules, grams and budgets.",
        "No tenant has sent a request today.",
        column_config={"Used": used},
    )
    over = [tenant for tenant in answer.tenants if tenant.state in ("soft", "hard")]
    st.caption(f"{len(over)} of {len(answer.tenants)} tenants are past their soft or hard limit.")


page()
