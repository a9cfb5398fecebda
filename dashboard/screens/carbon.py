"""Carbon: the grid now and ahead, and what directives do about it."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from dashboard import session, show
from dashboard.schema_carbon import CarbonState
from dashboard.views import carbon as view
from dashboard.views.formats import plain


def page() -> None:
    show.heading(
        "Carbon", "Intensity of the grid with its provenance, the forecast, and the mix of directives it leads to."
    )
    snapshot = session.snapshot()
    if snapshot.state is None:
        return
    carbon = session.ask(lambda api: api.carbon())
    if carbon is None:
        return
    grid()
    if carbon.plan is not None:
        plan(carbon)
    quality(snapshot.state.now_unix_s)


@st.fragment(run_every=10.0)
def grid() -> None:
    snapshot, carbon = session.snapshot(), session.carbon()
    if snapshot.state is None or carbon is None:
        return
    now = snapshot.state.now_unix_s
    show.tile_row(view.tiles(carbon, now), snapshot)
    window = (view.since_unix_s(carbon, now) * 1000, (now + view.AHEAD_S) * 1000)
    made = [view.panel(carbon, now, session.colours())]
    alt = (
        "Carbon intensity of the last 24 hours and the forecast of the next 48 with its band from p10 to p90, and what "
        "directives are planned to leave of it."
    )
    show.panels(pd.DataFrame(), made, window, snapshot, "carbon-grid", alt, now * 1000, panel_px=210)
    facts = " · ".join(f"{name}: {value}" for name, value in view.provenance(carbon.intensity).items())
    st.caption(plain(facts))
    if carbon.forecast is None:
        st.info(
            "No forecast: no source of this zone gives one, or it does not answer now.", icon=":material/cloud_off:"
        )


def plan(carbon: CarbonState) -> None:
    if carbon.plan is None:
        return
    st.subheader("Directives by class of prompts")
    verb = "Given to requests." if carbon.enforce else "Decided and reported, not given: the policy does not enforce."
    st.caption(plain(f"{verb} Strategy {carbon.plan.strategy}. Savings are expected grams {view.COUNTERFACTUAL}."))
    rows = view.mix_rows(carbon.plan)
    if rows:
        spoken = "; ".join(f"{row['Class']}: {row['Mix']}" for row in rows)
        spec = view.mix_spec(carbon.plan, session.colours())
        st.echarts_chart(spec, height=64 + 34 * len(rows), key="mix", alt=f"Mix by class. {spoken}")
    show.table(
        rows,
        "mix-table",
        "Mix, saving and expected quality by class.",
        "No class of prompts is judged yet: all at L0.",
    )
    for note in carbon.plan.notes:
        st.caption(plain(note))


def quality(now_unix_s: float) -> None:
    st.subheader("Quality of each level")
    evaluator = session.ask(lambda api: api.evaluator())
    if evaluator is None:
        return
    st.caption(plain(view.judged(evaluator, now_unix_s)))
    spec = view.quality_spec(evaluator, session.colours())
    if spec is not None:
        height = 60 + 26 * len(evaluator.quality)
        alt = "Quality of each level relative to L0 by class, with 90 % intervals; the table below has the figures."
        st.echarts_chart(spec, height=height, key="quality", alt=alt)
    show.table(view.quality_rows(evaluator), "quality-table", "Quality by class and level.", "Nothing judged yet.")
    if evaluator.runs:
        st.subheader("Runs of the evaluator")
        show.table(view.run_rows(evaluator), "evaluator-runs", "Runs of the evaluator with verdicts and cost.", "")


page()
