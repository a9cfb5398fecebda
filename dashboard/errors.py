"""What can go wrong between the dashboard and the admin API, each with what to do about it."""

from __future__ import annotations

from collections.abc import Sequence

from dashboard.schema_policy import PolicyProblem


class ApiError(Exception):
    """Base of all; its text is for the operator."""


class ApiUnreachableError(ApiError):
    """Nothing answered: the control plane is down, or the address is wrong."""


class ApiContractError(ApiError):
    """An answer that this dashboard cannot read: the two are of different versions."""


class ApiRefusedError(ApiError):
    """The API answered with a problem. `problems`: the places of a refused policy; `current_revision`: with 409."""

    def __init__(
        self,
        status: int,
        title: str,
        detail: str,
        problems: Sequence[PolicyProblem] = (),
        current_revision: str | None = None,
    ) -> None:
        super().__init__(f"{title}: {detail}" if detail else title)
        self.status = status
        self.title = title
        self.detail = detail
        self.problems = tuple(problems)
        self.current_revision = current_revision
