"""Experiments: runs on disk, which no other run beats, and two runs side by side."""

from __future__ import annotations

import altair
import pandas as pd
import streamlit as st

from dashboard import session, show
from dashboard.views import experiments as view
from dashboard.views.formats import plain


def page() -> None:
    show.heading("Experiments", "Results that replay, simulate and experiment wrote. Smaller is better on both axes.")
    folder = session.settings().experiments
    if folder is None:
        st.info("Start the dashboard with `--experiments DIR` to read result folders.", icon=":material/folder_open:")
        return
    if not folder.is_dir():
        st.error(plain(f"{folder} is no folder."), icon=":material/folder_off:")
        return
    runs = view.find(folder)
    show.table(
        view.rows(runs), "run-table", "Runs with throughput, latency and energy.", f"No {view.RESULT} below the folder."
    )
    readable = [run for run in runs if run.problem is None]
    axes = view.axes(readable)
    if len(axes) >= 2:
        scatter(readable, axes)
    if len(readable) >= 2:
        comparison(readable)


def scatter(runs: list[view.Run], axes: dict[str, str]) -> None:
    st.subheader("Pareto")
    left, right = st.columns(2)
    x = str(left.selectbox("Across", list(axes), index=0, key="pareto-x"))
    y = str(right.selectbox("Up", list(axes), index=1, key="pareto-y"))
    best = view.pareto(runs, axes[x], axes[y])
    points = [
        {"run": run.name, "x": run.value(axes[x]), "y": run.value(axes[y]), "front": run.name in best}
        for run in runs
        if run.value(axes[x]) is not None and run.value(axes[y]) is not None
    ]
    if not points:
        st.info("No run has both figures.")
        return
    colours = session.colours()
    frame = pd.DataFrame(points).sort_values("x")
    base = altair.Chart(frame).encode(
        x=altair.X("x:Q", title=x, scale=altair.Scale(zero=False)),
        y=altair.Y("y:Q", title=y, scale=altair.Scale(zero=False)),
    )
    dots = base.mark_point(size=110, filled=True).encode(
        shape=altair.Shape("front:N", legend=None),
        color=altair.condition("datum.front", altair.value(colours.blue), altair.value(colours.grey)),
        tooltip=[altair.Tooltip("run:N"), altair.Tooltip("x:Q", title=x), altair.Tooltip("y:Q", title=y)],
    )
    line = base.transform_filter("datum.front").mark_line(color=colours.blue, strokeDash=[4, 3])
    st.altair_chart(
        line + dots, height=340, key="pareto", alt=f"{y} against {x}; best runs: {', '.join(sorted(best))}."
    )
    st.caption(plain(f"Not beaten by any other run: {', '.join(sorted(best))}"))


def comparison(runs: list[view.Run]) -> None:
    st.subheader("Compare")
    names = [run.name for run in runs]
    left, right = st.columns(2)
    first = left.selectbox("First", names, index=0, key="compare-first")
    second = right.selectbox("Against it", names, index=1, key="compare-second")
    a, b = runs[names.index(str(first))], runs[names.index(str(second))]
    if a.name == b.name:
        st.info("Choose two different runs.")
        return
    show.table(view.compare(a, b), "compare-table", "Figures of two runs.", "They have no figure in common.")


page()
