"""Experiments: runs on disk, which no other run beats, and two runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import streamlit as st

from dashboard import session, show
from dashboard.views import experiments as view
from dashboard.views.formats import plain

if TYPE_CHECKING:
    import altair

MAX_NAMED = 12
"""With more runs than that names would lie on each other; the pointer still shows them."""


def page() -> None:
    show.heading("Experiments", "Results that replay, simulate and experiment wrote. Smaller is better on both axes.")
    folder = session.settings().experiments
    if folder is None:
        st.info("Start the dashboard with `--experiments DIR` to read result folders.", icon=":material/folder_open:")
        return
    if not folder.is_dir():
        st.error(plain(f"{folder} is no folder."), icon=":material/folder_off:")
        return
    found = view.find(folder)
    if not found:
        st.info(
            f"No {view.RESULT} below the folder. `gridserve experiment quick.yaml --out DIR/quick` writes some.",
            icon=":material/inbox:",
        )
        return
    experiment, averaged = choose(found, folder)
    runs = view.of(found, experiment)
    shown = view.over_seeds(runs) if averaged else runs
    show.table(view.rows(shown), "run-table", "Runs with throughput, latency and energy.", "")
    st.caption(plain(f"{len(runs)} runs on disk; joules: {view.methods(runs)}"))
    readable = [run for run in shown if run.problem is None]
    axes = view.axes(readable)
    if len(axes) >= 2:
        scatter(readable, axes)
    if len(readable) >= 2:
        comparison(readable)


def choose(found: list[view.Run], folder: Path) -> tuple[str, bool]:
    """The experiment to show, and whether its seeds are averaged."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        experiment = str(st.selectbox("Experiment", view.experiments(found), key="experiment", width=320))
        report = view.report_of(folder, experiment)
        if report is not None:
            st.download_button(
                "Its report (HTML)",
                data=report.read_bytes,
                file_name=f"{Path(experiment).name}-{view.REPORT}",
                mime="text/html",
                icon=":material/download:",
                key="experiment-report",
                on_click="ignore",
            )
        averaged = experiment != view.ALONE and st.toggle("Means over seeds", value=True, key="experiment-means")
    return experiment, averaged


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
    st.altair_chart(
        pareto_chart(pd.DataFrame(points).sort_values("x"), x, y),
        height=340,
        key="pareto",
        alt=f"{y} against {x}; best runs: {', '.join(sorted(best))}.",
    )
    st.caption(plain(f"Not beaten by any other run: {', '.join(sorted(best))}"))


def pareto_chart(frame: pd.DataFrame, x: str, y: str) -> altair.LayerChart:
    """Points of all runs, a line through the front, and names where they find room."""
    # Two seconds of a slow core: after the table is on the page.
    import altair

    colours = session.colours()
    base = altair.Chart(frame).encode(
        x=altair.X("x:Q", title=x, scale=altair.Scale(zero=False, padding=30)),
        y=altair.Y("y:Q", title=y, scale=altair.Scale(zero=False, padding=20)),
    )
    dots = base.mark_point(size=110, filled=True).encode(
        shape=altair.Shape("front:N", legend=None),
        color=altair.condition("datum.front", altair.value(colours.blue), altair.value(colours.grey)),
        tooltip=[altair.Tooltip("run:N"), altair.Tooltip("x:Q", title=x), altair.Tooltip("y:Q", title=y)],
    )
    line = base.transform_filter("datum.front").mark_line(color=colours.blue, strokeDash=[4, 3])
    if len(frame) > MAX_NAMED:
        return line + dots
    names = base.mark_text(align="left", dx=9, dy=-9, color=colours.text, fontSize=12).encode(text="run:N")
    return line + dots + names


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
