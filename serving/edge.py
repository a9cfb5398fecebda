"""The outermost layer of the inference API: request ids, bounds on head and body, Host, and the last resort."""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.metrics import ApiMetrics
from serving.openai_errors import ApiError, BadRequestError
from serving.settings import ApiSettings
from serving.sse import ClientDisconnectedError

logger = logging.getLogger(__name__)

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_CLOSE = {"Connection": "close"}
# nginx's word for a client that hung up; it reaches the counter only, nobody is left to read it.
_CLIENT_CLOSED = 499


@dataclass(slots=True)
class _BodyCount:
    num_bytes: int = 0


class Edge:
    """Pure ASGI, so that streams pass untouched. `direct`: what serves a POST to a path in place of `app`."""

    def __init__(
        self, app: ASGIApp, settings: ApiSettings, metrics: ApiMetrics, direct: Mapping[str, ASGIApp] | None = None
    ) -> None:
        self.app = app
        self._direct = direct or {}
        self.settings = settings
        self.metrics = metrics
        self._served_hosts = settings.served_hosts
        self._body_bytes_held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        request_id = _request_id(headers)
        body = _BodyCount()
        status: int | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id)]
            await send(message)

        direct = self._direct.get(scope["path"]) if scope["method"] == "POST" else None
        try:
            self._check_head(scope, headers)
            await (direct or self.app)(scope, self._bounded(receive, body), send_with_id)
        except ApiError as error:
            await error.response()(scope, receive, send_with_id)
        except (ClientDisconnectedError, ClientDisconnect):
            status = status or _CLIENT_CLOSED
        except Exception:
            logger.exception("request %s failed", request_id.decode())
            if status is not None:
                raise
            text = f"The server failed; quote request id {request_id.decode()} when you report it."
            answer = ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, text, code="internal_error").response()
            await answer(scope, receive, send_with_id)
        finally:
            self._body_bytes_held -= body.num_bytes
            route = getattr(scope.get("route"), "path", "unmatched") if direct is None else scope["path"]
            method = scope["method"] if route != "unmatched" else "any"
            self.metrics.http_request(route, method, status or _CLIENT_CLOSED)

    def _check_head(self, scope: Scope, headers: list[tuple[bytes, bytes]]) -> None:
        size = len(scope.get("raw_path") or b"") + len(scope["query_string"])
        size += sum(len(name) + len(value) for name, value in headers)
        if size > self.settings.max_header_bytes:
            raise ApiError(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                f"the request line and headers are larger than {self.settings.max_header_bytes} bytes",
                headers=_CLOSE,
            )
        if self._served_hosts and _host(headers) not in self._served_hosts:
            raise BadRequestError("the Host header names a host that is not served here; add it to the allowed hosts")
        for name, value in headers:
            if name == b"content-length" and (not value.isdigit() or int(value[:20]) > self.settings.max_body_bytes):
                raise self._too_large()

    def _bounded(self, receive: Receive, body: _BodyCount) -> Receive:
        settings = self.settings

        async def receive_bounded() -> Message:
            message = await receive()
            size = len(message.get("body", b"")) if message["type"] == "http.request" else 0
            body.num_bytes += size
            self._body_bytes_held += size
            if body.num_bytes > settings.max_body_bytes:
                raise self._too_large()
            if self._body_bytes_held > settings.max_inflight_body_bytes:
                text = "The server holds as many request bodies as it can. Try again later."
                headers = _CLOSE | {"Retry-After": "5"}
                raise ApiError(HTTPStatus.TOO_MANY_REQUESTS, text, code="over_capacity", headers=headers)
            return message

        return receive_bounded

    def _too_large(self) -> ApiError:
        text = f"the body is larger than {self.settings.max_body_bytes} bytes"
        return ApiError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, text, code="body_too_large", headers=_CLOSE)


def _request_id(headers: list[tuple[bytes, bytes]]) -> bytes:
    """The client's own id when it is short and plain, else a fresh one."""
    for name, value in headers:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return value
    return uuid.uuid4().hex.encode()


def _host(headers: list[tuple[bytes, bytes]]) -> str:
    """The Host header without its port; empty when absent."""
    value = next((value for name, value in headers if name == b"host"), b"").decode("latin-1").strip().lower()
    return value.partition("]")[0] + "]" if value.startswith("[") else value.partition(":")[0]
