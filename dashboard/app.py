"""The dashboard's entry point: access, what stands on every page, and the pages."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from dashboard import session, show
from dashboard.errors import ApiError
from dashboard.views.formats import UNKNOWN, plain
from dashboard.views.health import banners

# Not a folder named `pages`: Streamlit would run its files by themselves until the first `st.navigation`.
PAGES = Path(__file__).parent / "screens"
ASSETS = Path(__file__).parent / "assets"
SIDEBAR_PX = 216


def pages() -> dict[str, list[st.Page]]:
    def page(file: str, title: str, icon: str, default: bool = False) -> st.Page:
        return st.Page(PAGES / f"{file}.py", title=title, icon=f":material/{icon}:", default=default, url_path=file)

    return {
        "Operate": [
            page("overview", "Overview", "speed", default=True),
            page("gpus", "GPUs and power", "memory"),
            page("serving", "Serving", "bolt"),
            page("carbon", "Carbon", "eco"),
            page("requests", "Requests", "receipt_long"),
        ],
        "Control": [
            page("policies", "Policies", "policy"),
            page("holds", "Holds", "front_hand"),
            page("budgets", "Tenants and budgets", "account_balance_wallet"),
        ],
        "Evidence": [
            page("audit", "Audit", "fact_check"),
            page("experiments", "Experiments", "science"),
            page("reports", "Reports", "summarize"),
        ],
        "Chat": [page("chat", "Chat", "forum")],
        "System": [
            page("feeds", "Feeds and health", "rss_feed"),
            page("alerts", "Alerts", "notifications"),
            page("access", "Access", "key"),
        ],
    }


@st.fragment(run_every=2.0)
def status() -> None:
    """Banners above every page: lost contact, a hold, a refused policy; and whether figures are simulated."""
    snapshot = session.snapshot()
    for made in banners(snapshot):
        show.banner(made)
    if snapshot.state is not None and snapshot.state.simulated:
        st.markdown(
            ":violet-badge[:material/science: simulated] "
            ":small[:gray[Power comes from a simulated device, not from hardware.]]"
        )


@st.dialog("Panic: driver defaults on all devices", icon=":material/emergency_home:")
def panic() -> None:
    st.write("Clocks and power limits return to the driver's defaults at once and stay there until released.")
    reason = st.text_input("Reason", value="panic from the dashboard", key="panic-reason", max_chars=300)
    if st.button("Restore driver defaults now", type="primary", key="panic-confirm", disabled=not reason.strip()):
        try:
            session.client().panic(reason.strip())
        except ApiError as error:
            session.show_error(error)
        else:
            st.rerun()


def sidebar() -> None:
    with st.sidebar:
        allowed = session.may("operator")
        label, tip = "Panic: driver defaults", None if allowed else "Needs the role operator."
        if st.button(
            label, icon=":material/emergency_home:", key="panic", disabled=not allowed, help=tip, width="stretch"
        ):
            panic()
        me = session.whoami()
        name, role = me if me else (UNKNOWN, UNKNOWN)
        st.caption(f"{plain(name)} · role {role}")
        session.sign_out(session.settings())


# Own pictures: for a Material icon the browser would ask a font service outside.
st.set_page_config(
    page_title="gridserve",
    page_icon=str(ASSETS / "mark.svg"),
    layout="wide",
    initial_sidebar_state=SIDEBAR_PX,
    menu_items={"Get help": None, "Report a bug": None, "About": None},
)
st.logo(str(ASSETS / "logo.svg"), icon_image=str(ASSETS / "mark.svg"), size="large")
if session.open_session():
    chosen = st.navigation(pages(), expanded=True)
    status()
    sidebar()
    chosen.run()
