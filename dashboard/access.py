"""Who is asking, and with which token of the admin API. What a role may do is the admin API's decision alone.

`local`: the printed link opens the session; the token is the process's, or one the operator types.
`proxy`: a proxy in front authenticates and names the user in a header. `oidc`: `st.login` does.
For the last two a TOML file gives each user a role and each role a token:

    [tokens]
    viewer = "..."
    operator = "..."
    [users]
    "ana@example.org" = "operator"
    "*" = "viewer"        # anyone else who is authenticated; leave out to refuse them
"""

from __future__ import annotations

import hmac
import tomllib
from dataclasses import dataclass
from pathlib import Path

ANYONE = "*"
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(frozen=True)
class Users:
    tokens: dict[str, str]
    roles: dict[str, str]

    def token_of(self, user: str) -> str | None:
        """The token of this authenticated user's role; None where nobody gave them one."""
        role = self.roles.get(user.strip().lower(), self.roles.get(ANYONE))
        return self.tokens.get(role) if role else None


def read_users(path: Path) -> Users:
    """Raises `ValueError` with what to mend."""
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"the file of users {path} cannot be read: {error}") from error
    tokens, users = document.get("tokens", {}), document.get("users", {})
    if not tokens or not users:
        raise ValueError(f"{path} needs a [tokens] and a [users] table")
    unknown = sorted({role for role in users.values() if role not in tokens})
    if unknown:
        raise ValueError(f"{path}: [tokens] has none for {', '.join(unknown)}")
    return Users(dict(tokens), {user.strip().lower(): role for user, role in users.items()})


def link_opens(given: str | None, expected: str | None) -> bool:
    """Whether the token of a link is the printed one, in constant time. No expected token opens nothing."""
    return bool(given and expected) and hmac.compare_digest(str(given).encode(), str(expected).encode())


def is_loopback(host: str) -> bool:
    return host in LOOPBACK
