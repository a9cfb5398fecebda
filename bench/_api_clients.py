"""Clients that cost little beside the server they measure: readers of many streams, and a probe with kernel stamps."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import cast

# Linux: the kernel's nanosecond stamp of each arrival comes with what is received.
SO_TIMESTAMPNS = 35
_STAMP = struct.Struct("qq")
_END = b"0\r\n\r\n"
_ROOM_BYTES = 1 << 16


def completion_request(tokens: int) -> bytes:
    """A whole HTTP request for a streamed completion."""
    body = json.dumps({"model": "paced", "prompt": "Count", "max_tokens": tokens, "stream": True}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


class _Reader(asyncio.Protocol):
    """Asks `first`, then `request` again and again as answers end; what they say is not looked at."""

    def __init__(self, first: bytes, request: bytes) -> None:
        self._first, self._request = first, request
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its type
        self._transport.write(self._first)

    def data_received(self, data: bytes) -> None:
        self._tail = (self._tail + data)[-len(_END) :]
        if self._tail == _END:
            self._transport.write(self._request)


def _read_streams(port: int, streams: int, tokens: int) -> None:
    import uvloop

    async def read() -> None:
        loop = asyncio.get_running_loop()
        request = completion_request(tokens)
        for number in range(streams):
            first = completion_request(2 + number * (tokens - 2) // streams)
            await loop.create_connection(partial(_Reader, first, request), "127.0.0.1", port)
        await asyncio.Event().wait()

    uvloop.run(read())


@contextmanager
def open_streams(port: int, streams: int, tokens: int) -> Iterator[None]:
    """So many streams open at once, read in a process of their own. Their ends are spread over time."""
    reader = multiprocessing.get_context("spawn").Process(target=_read_streams, args=(port, streams, tokens))
    reader.start()
    try:
        yield
    finally:
        reader.terminate()
        reader.join()


class Probe:
    """One kept connection that asks for one token at a time."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self._request = completion_request(1)

    def first_token_s(self) -> float:
        """Seconds from the request's send to the arrival of its first token at the socket, by the kernel's stamp.

        The probe's own wait for a processor is not in it. Raises `OSError` for another answer than 200.
        """
        answer, first_ns = b"", 0
        started_ns = time.time_ns()
        self._socket.sendall(self._request)
        while not answer.endswith(_END):
            data, extra, _, _ = self._socket.recvmsg(_ROOM_BYTES, 64)
            if not data:
                raise OSError("the server closed the connection")
            answer += data
            if not first_ns and b'"text":' in answer:
                first_ns = _stamp_ns(extra)
        if b" 200 " not in answer[:16]:
            raise OSError(f"answered {answer[:80]!r}")
        return (first_ns - started_ns) / 1e9

    def close(self) -> None:
        self._socket.close()


def _stamp_ns(extra: list[tuple[int, int, bytes]]) -> int:
    """Of an arrival; where the kernel gives none, the time now."""
    for level, kind, data in extra:
        if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS:
            seconds, nanoseconds = _STAMP.unpack(data[: _STAMP.size])
            return int(seconds * 1_000_000_000 + nanoseconds)
    return time.time_ns()
