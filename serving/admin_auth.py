"""Who may use the admin API: a bearer token, a role, and a dependency that every route states."""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote

from fastapi import Depends, Request

from serving.admin_errors import AdminError
from serving.admin_schema import Role
from serving.tenants_keys import ADMIN, READ, WRITE, KeyEntry, KeyRing

TOKEN_VARIABLE = "GRIDSERVE_ADMIN_TOKEN"  # noqa: S105 - a name, not a secret
MIN_TOKEN_CHARS = 16
USER_HEADER = "x-gridserve-user"
MAX_USER_CHARS = 120
_RANKS: dict[Role, int] = {"viewer": 0, "operator": 1, "admin": 2}


def generate_token() -> str:
    return f"gsa_{secrets.token_urlsafe(24)}"


@dataclass(frozen=True, slots=True)
class Principal:
    name: str
    role: Role

    def may(self, role: Role) -> bool:
        return _RANKS[self.role] >= _RANKS[role]

    def acting_for(self, user: str) -> Principal:
        """The same with the name of a person behind a shared token, for the audit. Raises `ValueError`.

        It is the holder of the token that says so: the token's own name stays in front, and rights come from it alone.
        """
        if not user:
            return self
        if len(user) > MAX_USER_CHARS or not user.isprintable():
            raise ValueError(f"{USER_HEADER} must be a printable name of at most {MAX_USER_CHARS} characters")
        return replace(self, name=f"{self.name} ({user})")


class AdminAccess:
    """`token`: of role admin; `keys`: others with scopes. Raises `ValueError` for a token that could be guessed."""

    def __init__(self, token: str, keys: KeyRing | None = None) -> None:
        if len(token) < MIN_TOKEN_CHARS:
            raise ValueError(f"the admin token needs at least {MIN_TOKEN_CHARS} characters; leave {TOKEN_VARIABLE} out")
        self._token = token.encode()
        self._keys = keys

    @classmethod
    def closed(cls) -> AdminAccess:
        """Lets nobody in but the keys of nobody: for a server without an admin listener."""
        return cls(generate_token())

    def principal(self, authorization: str) -> Principal | None:
        """Who sends this `Authorization` header; `None` for nobody known."""
        scheme, _, given = authorization.partition(" ")
        given = given.strip()
        if scheme.lower() != "bearer" or not given:
            return None
        if hmac.compare_digest(given.encode("utf-8", "surrogateescape"), self._token):
            return Principal("local", "admin")
        entry = self._keys.entry(given) if self._keys is not None else None
        role = _role_of(entry) if entry is not None else None
        return Principal(entry.name, role) if entry is not None and role is not None else None

    def needs(self, role: Role) -> Any:
        """The dependency of a router: 401 without a token, 403 with a lower role."""

        async def check(request: Request) -> None:
            principal = self.principal(request.headers.get("authorization", ""))
            if principal is None:
                headers = {"WWW-Authenticate": "Bearer"}
                raise AdminError(401, "send the admin token as `Authorization: Bearer TOKEN`", headers=headers)
            if not principal.may(role):
                raise AdminError(403, f"this needs the role {role}; the token's is {principal.role}")
            try:
                request.state.principal = principal.acting_for(unquote(request.headers.get(USER_HEADER, "")))
            except ValueError as error:
                raise AdminError(422, str(error)) from None

        return Depends(check)


def _role_of(entry: KeyEntry) -> Role | None:
    if ADMIN in entry.scopes:
        return "admin"
    if WRITE in entry.scopes:
        return "operator"
    return "viewer" if READ in entry.scopes else None


def principal_of(request: Request) -> Principal:
    principal = request.state.principal
    assert isinstance(principal, Principal)
    return principal
