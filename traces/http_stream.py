"""A small HTTP/1.1 client for many concurrent streamed answers, which stamps every piece when it arrives.

Why not httpx: see "The client" in docs/traces.md. Here each connection is an asyncio protocol around httptools' parser;
the stamp is taken in the callback of the event loop, before anything is parsed. No redirects, no proxies, no retries.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self, cast
from urllib.parse import urlsplit

import httptools

# Servers close idle connections after about 5 s (uvicorn's default): an older one may die under a new request.
REUSE_WITHIN_S = 3.0


class ConnectionLostError(Exception):
    """The connection ended before the answer did."""


@dataclass(slots=True)
class Answer:
    """`pieces`: body as received, each with its arrival. `sent_s`: when sending began.

    Opening a connection, where none is idle, comes after `sent_s`, as in vllm's client: the user waits for it too.
    Times are `time.perf_counter()`.
    """

    sent_s: float
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    pieces: list[tuple[float, bytes]] = field(default_factory=list)

    @property
    def body(self) -> bytes:
        return b"".join(piece for _, piece in self.pieces)


class _Connection(asyncio.Protocol):
    """One connection; one request at a time."""

    def __init__(self) -> None:
        self.idle_since_s = 0.0
        self.closed = False
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._answer: Answer | None = None
        self._done: asyncio.Future[Answer] | None = None
        self._arrived_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def request(self, head: bytes, body: bytes, answer: Answer) -> asyncio.Future[Answer]:
        """Send a request; `answer` fills while it arrives, and keeps what came when the connection is lost."""
        assert self._transport is not None
        assert self._done is None
        self._parser = httptools.HttpResponseParser(self)
        self._done = asyncio.get_running_loop().create_future()
        self._answer = answer
        self._transport.write(head + body)
        return self._done

    def data_received(self, data: bytes) -> None:
        self._arrived_s = time.perf_counter()
        if self._parser is None:
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"not HTTP: {error}")

    def on_header(self, name: bytes, value: bytes) -> None:
        assert self._answer is not None
        self._answer.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        assert self._answer is not None
        assert self._parser is not None
        self._answer.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        assert self._answer is not None
        self._answer.pieces.append((self._arrived_s, body))

    def on_message_complete(self) -> None:
        assert self._parser is not None
        if not self._parser.should_keep_alive():
            self.close()
        done, self._done = self._done, None
        if done is not None and not done.done():
            assert self._answer is not None
            done.set_result(self._answer)

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        answer = self._answer
        until_close = (
            answer is not None
            and answer.status != 0
            and "content-length" not in answer.headers
            and answer.headers.get("transfer-encoding", "").lower() != "chunked"
        )
        if self._done is not None and not self._done.done() and until_close and error is None:
            assert answer is not None
            self._done.set_result(answer)
        self._fail(f"the server closed the connection before the answer ended{f' ({error})' if error else ''}")

    def _fail(self, reason: str) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(ConnectionLostError(reason))
        self._done = None
        self.close()

    def close(self) -> None:
        self.closed = True
        if self._transport is not None:
            self._transport.abort()


class StreamClient:
    """Posts to one server over as many connections as there are requests under way; idle ones are reused."""

    def __init__(
        self, base_url: str, headers: Mapping[str, str] | None = None, connect_timeout_s: float = 10.0
    ) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"the URL must look like http://HOST:PORT, got {base_url!r}")
        self._host = parts.hostname
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._prefix = parts.path.rstrip("/").removesuffix("/v1")
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._connect_timeout_s = connect_timeout_s
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()
        given = {"Host": parts.netloc.rpartition("@")[2], "Accept-Encoding": "identity", **(headers or {})}
        for name, value in given.items():
            if any(character in name + value for character in "\r\n\0"):
                raise ValueError(f"header {name!r} holds a line break")
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in given.items())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for connection in self._open:
            connection.close()
        self._open.clear()
        self._idle.clear()

    async def connect(self, connections: int) -> None:
        """Open connections ahead of time, so that the first requests do not wait for them."""
        now_s = time.perf_counter()
        for connection in await asyncio.gather(*(self._new_connection() for _ in range(connections))):
            connection.idle_since_s = now_s
            self._idle.append(connection)

    async def get(self, path: str) -> Answer:
        return await self._exchange("GET", path, b"", {}, None)

    async def post(
        self, path: str, body: bytes, headers: Mapping[str, str] | None = None, into: list[Answer] | None = None
    ) -> Answer:
        """The whole answer. `into` gets the answer when sending begins, so that a failure leaves what came.

        Raises `ConnectionLostError`, or `OSError` when no connection can be made. Cancelling closes the connection,
        which tells the server to stop.
        """
        return await self._exchange("POST", path, body, headers or {}, into)

    async def _exchange(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str], into: list[Answer] | None
    ) -> Answer:
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        if body:
            lines += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        head = f"{method} {self._prefix}{path} HTTP/1.1\r\n{self._headers}{lines}\r\n".encode("latin-1")
        answer = Answer(time.perf_counter())
        if into is not None:
            into.append(answer)
        connection = self._take_idle() or await self._new_connection()
        done = connection.request(head, body, answer)
        try:
            await done
        except BaseException:
            connection.close()
            self._open.discard(connection)
            raise
        if connection.closed:
            self._open.discard(connection)
        else:
            connection.idle_since_s = time.perf_counter()
            self._idle.append(connection)
        return answer

    def _take_idle(self) -> _Connection | None:
        oldest_s = time.perf_counter() - REUSE_WITHIN_S
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed and connection.idle_since_s >= oldest_s:
                return connection
            connection.close()
            self._open.discard(connection)
        return None

    async def _new_connection(self) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, connection = await loop.create_connection(_Connection, self._host, self._port, ssl=self._tls)
        except TimeoutError:
            raise OSError(f"no connection to {self._host}:{self._port} in {self._connect_timeout_s:g} s") from None
        self._open.add(connection)
        return connection
