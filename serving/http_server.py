"""uvicorn as the inference API needs it."""

from __future__ import annotations

import errno
import socket

import uvicorn
from fastapi.telemetry import TelemetryConfig
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.openai_errors import ApiError
from serving.settings import ApiSettings

BACKLOG = 2048
# FastAPI's own would follow the environment by itself, and record what a client sent that failed validation.
NO_TELEMETRY: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}


class BoundedHttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol, but a head that does not end is cut off with 431 instead of filling the memory.

    The read in which a head begins is not counted (it may hold the end of the request before), so up to one read
    of the socket comes on top of the bound.
    """

    max_header_bytes = 64 * 1024
    _head_began = False
    _head_bytes: int | None = None

    def on_message_begin(self) -> None:
        self._head_began = True
        self._head_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._head_bytes = None
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        self._head_began = False
        super().data_received(data)
        if self._head_bytes is None or self._head_began or self.transport.is_closing():
            return
        self._head_bytes += len(data)
        if self._head_bytes > self.max_header_bytes:
            self._refuse_head()

    def _refuse_head(self) -> None:
        body = ApiError(431, f"the request line and headers are larger than {self.max_header_bytes} bytes").body()
        head = (
            "HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


def bind(host: str, port: int) -> socket.socket:
    """A TCP socket on `host`; port 0 takes a free one. Raises `OSError` saying what to do when it cannot be had."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        # Not yet accepted from: until the server does, a client waits instead of being turned away.
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise OSError(f"port {port} of {host} is in use; stop what listens there or choose another port") from None
        raise OSError(f"cannot listen on {host}, port {port}: {error.strerror or error}") from None
    return bound


def server_config(app: ASGIApp, settings: ApiSettings) -> uvicorn.Config:
    """How `app` is served on a bound socket."""
    bounded = type("BoundedHttpProtocol", (BoundedHttpProtocol,), {"max_header_bytes": settings.max_header_bytes})
    return uvicorn.Config(
        app,
        backlog=BACKLOG,
        http=bounded,
        ws="none",
        access_log=False,
        server_header=False,
        date_header=True,
        log_level="warning",
        timeout_keep_alive=30,
        timeout_graceful_shutdown=10,
    )
