"""Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

import msgspec
from fastapi.responses import Response

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error", 503: "service_unavailable"}


class ErrorInfo(msgspec.Struct):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(msgspec.Struct):
    error: ErrorInfo


class ApiError(Exception):
    """An answer other than 2xx. `param` names the request's field at fault."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> bytes:
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return msgspec.json.encode(ErrorResponse(ErrorInfo(self.message, kind, self.param, self.code)))

    def response(self) -> Response:
        return Response(self.body(), self.status, self.headers, "application/json")


class BadRequestError(ApiError):
    """400: the request says something that cannot be done; `param` names where."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(HTTPStatus.BAD_REQUEST, message, param=param, code=code)


class ModelNotFoundError(ApiError):
    def __init__(self, model: str, served: str) -> None:
        shown = model if len(model) <= 200 else f"{model[:200]}..."
        super().__init__(
            HTTPStatus.NOT_FOUND,
            f"The model {shown!r} does not exist here; this server serves {served!r}.",
            param="model",
            code="model_not_found",
        )


class NotReadyError(ApiError):
    """503: the engine is starting, restarting or down."""

    def __init__(self, reason: str | None) -> None:
        super().__init__(
            HTTPStatus.SERVICE_UNAVAILABLE,
            f"The engine is not ready: {reason or 'no reason given'}. Try again shortly.",
            code="engine_unavailable",
            headers={"Retry-After": "5"},
        )


class GenerationFailedError(ApiError):
    """500: the engine gave this sequence up; the others are sound."""

    def __init__(self, reason: str | None) -> None:
        super().__init__(
            HTTPStatus.INTERNAL_SERVER_ERROR,
            f"The generation failed: {reason or 'no reason given'}",
            code="engine_error",
        )
