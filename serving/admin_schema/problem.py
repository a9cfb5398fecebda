"""What went wrong, and the reason every edit gives."""

from __future__ import annotations

from msgspec import Struct


class Problem(Struct, omit_defaults=True):
    """`application/problem+json`. `problems`: what is wrong with a policy, one entry a place. `current_revision`: with
    409, the revision now in force."""

    title: str
    status: int
    detail: str
    type: str = "about:blank"
    problems: list[PolicyProblem] | None = None
    current_revision: str | None = None


class PolicyProblem(Struct):
    """`line`, `column` count from 1; `path`: the setting, dotted. `severity`: error or warning."""

    line: int
    column: int
    path: str
    message: str
    severity: str


class Reason(Struct, forbid_unknown_fields=True):
    reason: str
