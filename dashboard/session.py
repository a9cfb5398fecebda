"""What a page needs of this session and this process: settings, client, snapshot, series, role."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pandas as pd
import streamlit as st

from dashboard import access
from dashboard.client import AdminClient
from dashboard.errors import ApiError
from dashboard.live_series import LiveSeries, fetch, frame_of
from dashboard.schema_carbon import CarbonState
from dashboard.schema_records import AuditRow
from dashboard.settings import Settings, from_environment
from dashboard.snapshot import Snapshot, SnapshotSource
from dashboard.views.formats import plain
from dashboard.views.palette import Palette, palette

Answer = TypeVar("Answer")
TOKEN = "api_token"  # noqa: S105 - a key of the session's state
USER = "signed_in_as"
MAX_CLIENTS = 16


@st.cache_resource(max_entries=1)
def settings() -> Settings:
    return from_environment()


@st.cache_resource(max_entries=MAX_CLIENTS)
def _client(api: str, token: str | None, user: str | None = None) -> AdminClient:
    return AdminClient(api, token, user)


@st.cache_resource(max_entries=MAX_CLIENTS)
def _snapshots(api: str, token: str | None) -> SnapshotSource:
    return SnapshotSource(_client(api, token))


@st.cache_resource(max_entries=MAX_CLIENTS)
def _live(api: str, token: str | None) -> LiveSeries:
    return LiveSeries(_client(api, token))


def _key() -> tuple[str, str | None]:
    return settings().api, st.session_state.get(TOKEN)


def client() -> AdminClient:
    """One that tells the admin API who is signed in, where people share the token of their role."""
    return _client(*_key(), st.session_state.get(USER))


def snapshot() -> Snapshot:
    return _snapshots(*_key()).get()


def live() -> LiveSeries:
    return _live(*_key())


@st.cache_data(ttl=30, max_entries=MAX_CLIENTS, show_spinner=False)
def _whoami(api: str, token: str | None, user: str | None) -> tuple[str, str]:
    me = _client(api, token, user).whoami()
    return me.name, me.role


def whoami() -> tuple[str, str] | None:
    """Name and role; None while the API does not say."""
    try:
        return _whoami(*_key(), st.session_state.get(USER))
    except ApiError:
        return None


def may(role: str) -> bool:
    """Whether to offer what needs `role`. A courtesy to the reader; the admin API decides."""
    me = whoami()
    return me is not None and access.ROLES.index(me[1]) >= access.ROLES.index(role)


def colours() -> Palette:
    return palette(st.context.theme.type)


@st.cache_data(ttl=10, max_entries=MAX_CLIENTS, show_spinner=False)
def _carbon(api: str, token: str | None) -> CarbonState | None:
    try:
        return _client(api, token).carbon()
    except ApiError:
        return None


def carbon() -> CarbonState | None:
    """At most 10 s old; None where no carbon part runs or the API is silent."""
    return _carbon(*_key())


@st.cache_data(ttl=5, max_entries=MAX_CLIENTS, show_spinner=False)
def _recent_audit(api: str, token: str | None) -> list[AuditRow]:
    try:
        return _client(api, token).audit(limit=200).rows
    except ApiError:
        return []


def recent_audit() -> list[AuditRow]:
    return _recent_audit(*_key())


@st.cache_data(ttl=15, max_entries=32, show_spinner=False)
def _history(
    api: str, token: str | None, names: tuple[str, ...], span_s: float, until_unix_s: float, points: int
) -> pd.DataFrame:
    return frame_of(fetch(_client(api, token), names, until_unix_s - span_s, until_unix_s, points))


def history(names: Sequence[str], span_s: float, now_unix_s: float, points: int = 600) -> pd.DataFrame:
    """A range longer than the live window; its end moves every 15 s, so that sessions share it."""
    return _history(*_key(), tuple(names), span_s, now_unix_s // 15 * 15, points)


def ask(question: Callable[[AdminClient], Answer]) -> Answer | None:
    """The answer, or None and the reason on the page."""
    try:
        return question(client())
    except ApiError as error:
        show_error(error)
        return None


def show_error(error: ApiError) -> None:
    status: Any = getattr(error, "status", None)
    if status in (404, 501) or (status == 503 and "no ledger" in str(error).lower()):
        st.info(plain(str(error)), icon=":material/info:")
    elif status == 403:
        st.warning(plain(str(error)), icon=":material/lock:")
    else:
        st.error(plain(str(error)), icon=":material/error:")


def open_session() -> bool:
    """Whether this session may see the dashboard; draws what it needs for that otherwise."""
    if TOKEN in st.session_state:
        return True
    mode = settings()
    if mode.access == "local":
        return _open_local(mode)
    try:
        users = access.read_users(mode.users) if mode.users else None
    except ValueError as error:
        st.error(plain(str(error)))
        return False
    claim = users.groups_claim if users is not None else access.GROUPS_CLAIM
    user, groups = (_proxy_user(mode), []) if mode.access == "proxy" else _oidc_user(claim)
    if user is None:
        return False
    token = users.token_of(user, groups) if users is not None else None
    if token is None:
        st.error("You are signed in, but nobody gave you a role here. Ask an operator to add you to the file of users.")
        sign_out(mode)
        return False
    st.session_state[TOKEN], st.session_state[USER] = token, user
    return True


def sign_out(mode: Settings) -> None:
    """The way out, where the dashboard itself did the signing in."""
    if mode.access == "oidc":
        st.button("Sign out", icon=":material/logout:", key="sign-out", on_click=st.logout, width="stretch")


def _open_local(mode: Settings) -> bool:  # noqa: RET503 - st.rerun never returns
    if mode.admin_token and access.link_opens(st.query_params.get("token"), mode.link_token):
        st.session_state[TOKEN] = mode.admin_token
        del st.query_params["token"]
        return True
    st.title("gridserve")
    with st.form("sign-in"):
        given = st.text_input("Token", type="password", help="Printed by `gridserve dashboard`, or an admin API token.")
        sent = st.form_submit_button("Open", type="primary")
    if not sent or not given:
        st.caption("Open the link that `gridserve dashboard` printed, or paste a token of the admin API.")
        return False
    token = mode.admin_token if access.link_opens(given, mode.link_token) else given.strip()
    try:
        _client(mode.api, token).whoami()
    except ApiError as error:
        show_error(error)
        return False
    st.session_state[TOKEN] = token
    st.rerun()


def _proxy_user(mode: Settings) -> str | None:
    user = st.context.headers.get(mode.user_header)
    if not user:
        st.error(f"The proxy in front names no user ({mode.user_header} is missing). Open the dashboard through it.")
    return user


def _oidc_user(claim: str) -> tuple[str | None, list[str]]:
    """The e-mail address and the groups that the provider vouches for."""
    if not st.user.get("is_logged_in"):
        st.title("gridserve")
        st.button("Sign in", type="primary", on_click=st.login, icon=":material/login:")
        return None, []
    email = st.user.get("email")
    if not isinstance(email, str) or st.user.get("email_verified") is False:
        st.error("The identity provider gave no verified e-mail address.")
        sign_out(settings())
        return None, []
    return email, access.groups_of(st.user.to_dict(), claim)
