"""Errors of the admin API as problem details (RFC 9457)."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from http import HTTPStatus

import msgspec
from fastapi import Request
from fastapi.responses import Response
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException

from power.actuator import LeaseError
from power.client import ActuatorUnavailableError
from power.device import DeviceError
from serving.admin_schema import PolicyProblem, Problem
from serving.ledger.engine import LedgerError
from serving.policy import problems as policy_problems
from serving.policy.problems import PolicyError
from serving.policy.store import ReadOnlyPolicyError, RevisionConflictError

logger = logging.getLogger(__name__)


class AdminError(Exception):
    """An answer other than 2xx; `detail` says what to do."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        problems: list[PolicyProblem] | None = None,
        current_revision: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.problem = Problem(
            HTTPStatus(status).phrase, status, detail, problems=problems, current_revision=current_revision
        )
        self.headers = headers or {}

    def response(self) -> Response:
        body = msgspec.json.encode(self.problem)
        return Response(body, self.problem.status, self.headers, "application/problem+json")


HANDLED: tuple[type[Exception], ...] = (
    AdminError,
    HTTPException,
    RevisionConflictError,
    ReadOnlyPolicyError,
    LedgerError,
    SQLAlchemyError,
    ActuatorUnavailableError,
    LeaseError,
    DeviceError,
    ValueError,
    OSError,
    Exception,
)
"""What has an answer of its own; `Exception` is the last resort, which the server also logs."""


def shown(problems: Iterable[policy_problems.Problem]) -> list[PolicyProblem]:
    return [PolicyProblem(one.line, one.column, one.path, one.message, str(one.severity)) for one in problems]


def as_admin_error(error: Exception) -> AdminError:
    """What a client is told of an error; what it cannot mend stays in the log."""
    match error:
        case AdminError():
            return error
        case PolicyError():
            return AdminError(422, "the policy is refused; nothing has changed", problems=shown(error.problems))
        case RevisionConflictError():
            return AdminError(409, str(error), current_revision=error.current)
        case ReadOnlyPolicyError():
            return AdminError(403, str(error))
        case LedgerError() | SQLAlchemyError():
            logger.error("the ledger failed a request: %s", error)
            return AdminError(503, "the ledger cannot be used now; see the alarms")
        case ActuatorUnavailableError() | LeaseError() | DeviceError():
            return AdminError(503, str(error))
        case HTTPException():
            text = {404: "there is no such route", 405: "this route does not take this method"}
            return AdminError(error.status_code, text.get(error.status_code, str(error.detail)))
        case ValueError():
            return AdminError(422, str(error))
        case OSError():
            return AdminError(503, f"the file system refused: {error.strerror or error}")
        case _:
            logger.exception("the admin API failed", exc_info=error)
            return AdminError(500, "the server failed; its log says more")


async def answer_error(_request: Request, error: Exception) -> Response:
    return as_admin_error(error).response()
