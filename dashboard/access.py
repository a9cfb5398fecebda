"""Who is asking, and with which token of the admin API. What a role may do is the admin API's decision alone.

`local`: the printed link opens the session; the token is the process's, or one the operator types.
`proxy`: a proxy in front authenticates and names the user in a header. `oidc`: `st.login` does.
For the last two a TOML file gives users and, with `oidc`, groups a role, and each role a token:

    groups_claim = "groups"        # of the ID token; a dotted path for a nested claim
    [tokens]
    viewer = "..."
    operator = "..."
    [users]
    "ana@example.org" = "operator"
    "*" = "viewer"        # anyone else who is authenticated; leave out to refuse them
    [groups]
    "grid-operators" = "operator"

A user's own entry decides; else the strongest role of their groups; else that of "*".
"""

from __future__ import annotations

import hmac
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ANYONE = "*"
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
ROLES = ("viewer", "operator", "admin")
GROUPS_CLAIM = "groups"
AUTH_FIELDS = ("redirect_uri", "cookie_secret", "client_id", "client_secret", "server_metadata_url")
CALLBACK = "/oauth2callback"
MIN_SECRET_CHARS = 32


@dataclass(frozen=True)
class Users:
    """`tokens` by role; `roles` by user in lower case; `groups`: roles by group. Weakest to strongest: `ROLES`."""

    tokens: dict[str, str]
    roles: dict[str, str]
    groups: dict[str, str] = field(default_factory=dict)
    groups_claim: str = GROUPS_CLAIM

    def role_of(self, user: str, groups: Collection[str] = ()) -> str | None:
        own = self.roles.get(user.strip().lower())
        if own is not None:
            return own
        granted = [self.groups[group] for group in groups if group in self.groups]
        return max(granted, key=ROLES.index) if granted else self.roles.get(ANYONE)

    def token_of(self, user: str, groups: Collection[str] = ()) -> str | None:
        """The token of this authenticated user's role; None where nobody gave them one."""
        role = self.role_of(user, groups)
        return self.tokens.get(role) if role else None


def read_users(path: Path) -> Users:
    """Raises `ValueError` with what to mend."""
    document = _toml(path, "file of users")
    tokens, users, groups = (_texts(document, path, name) for name in ("tokens", "users", "groups"))
    claim = document.get("groups_claim", GROUPS_CLAIM)
    if not tokens or not (users or groups):
        raise ValueError(f"{path} needs a [tokens] and a [users] or [groups] table")
    if not isinstance(claim, str) or not claim:
        raise ValueError(f"{path}: groups_claim must name a claim, such as {GROUPS_CLAIM!r}")
    given = {*users.values(), *groups.values()}
    strange = sorted({*tokens, *given} - {*ROLES})
    if strange:
        raise ValueError(f"{path}: no such role: {', '.join(strange)}; roles are {', '.join(ROLES)}")
    unknown = sorted(given - {*tokens})
    if unknown:
        raise ValueError(f"{path}: [tokens] has none for {', '.join(unknown)}")
    return Users(tokens, {user.strip().lower(): role for user, role in users.items()}, groups, claim)


def groups_of(claims: Mapping[str, Any], claim: str) -> list[str]:
    """Groups of an ID token: a list of texts or a single one, under `claim` as it stands or as a dotted path."""
    found: Any = claims.get(claim)
    if found is None:
        found = claims
        for name in claim.split("."):
            found = found.get(name) if isinstance(found, Mapping) else None
    if isinstance(found, str):
        return [found]
    return [each for each in found if isinstance(each, str)] if isinstance(found, list | tuple) else []


def read_auth(path: Path) -> str:
    """The host name that people open the dashboard by, from the `[auth]` table that `st.login` reads.

    Raises `ValueError` with what to mend; without the check the first who signs in would meet the error.
    """
    auth = _toml(path, "file of secrets").get("auth")
    if not isinstance(auth, dict):
        raise ValueError(f"{path} needs an [auth] table with {', '.join(AUTH_FIELDS)}")
    absent = [name for name in AUTH_FIELDS if not isinstance(auth.get(name), str) or not auth[name]]
    if absent:
        raise ValueError(f"{path}: [auth] lacks {', '.join(absent)}")
    if len(auth["cookie_secret"]) < MIN_SECRET_CHARS:
        raise ValueError(f"{path}: cookie_secret needs {MIN_SECRET_CHARS} random characters: openssl rand -hex 32")
    redirect = urlsplit(auth["redirect_uri"])
    if redirect.scheme not in ("http", "https") or not redirect.hostname or not redirect.path.endswith(CALLBACK):
        raise ValueError(f"{path}: redirect_uri must be the dashboard's address with {CALLBACK} behind it")
    if redirect.scheme == "http" and not is_loopback(redirect.hostname):
        raise ValueError(f"{path}: redirect_uri must be https, or cookies of a session could be read on the way")
    return redirect.hostname


def _toml(path: Path, what: str) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"the {what} {path} cannot be read: {error}") from error


def _texts(document: Mapping[str, Any], path: Path, name: str) -> dict[str, str]:
    table = document.get(name, {})
    if not isinstance(table, dict) or not all(isinstance(value, str) for value in table.values()):
        raise ValueError(f"{path}: [{name}] must be a table of texts")
    return dict(table)


def link_opens(given: str | None, expected: str | None) -> bool:
    """Whether the token of a link is the printed one, in constant time. No expected token opens nothing."""
    return bool(given and expected) and hmac.compare_digest(str(given).encode(), str(expected).encode())


def is_loopback(host: str) -> bool:
    return host in LOOPBACK
