"""Server-sent events, and work that ends when the client hangs up."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from http import HTTPStatus
from typing import Any, Self, TypeVar

from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from serving.openai_errors import ApiError

logger = logging.getLogger(__name__)

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"


class ClientDisconnectedError(Exception):
    """The client hung up before its answer was complete."""


def event(body: bytes) -> bytes:
    return b"data: %b\n\n" % body


class LastEvents(bytes):
    """The events that end a stream, `[DONE]` excepted; empty where the last ones were sent already."""


def comment(text: bytes) -> bytes:
    """A line that clients ignore unless they look for it. `text` has no line break."""
    return b": %b\n\n" % text


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Await `work`, but cancel it, and raise `ClientDisconnectedError`, when the client hangs up first.

    The request's body must have been read: `receive` then brings nothing but the disconnect.
    """
    async with _Watched(receive):
        return await work


class _Watched:
    """Cancels the task within, as `ClientDisconnectedError`, when the client hangs up before `complete` is set."""

    def __init__(self, receive: Receive) -> None:
        self.complete = False
        self._receive = receive
        self._hung_up = False

    async def __aenter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._watch = asyncio.create_task(self._await_disconnect())
        return self

    async def _await_disconnect(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self.complete:
            self._hung_up = True
            self._task.cancel()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._watch.cancel()
        # Somebody else who cancels the task as well keeps the count above zero, and is obeyed.
        if self._hung_up and self._task.uncancel() == 0 and kind is asyncio.CancelledError:
            raise ClientDisconnectedError from error


class EventStream(Response):
    """Streams events until the generator ends or the client hangs up; the generator is closed either way.

    The status line waits for the first event: an error before it is answered as any other error. After it, an
    error is one more event, followed by `[DONE]`. The generator's `LastEvents` are sent together with `[DONE]`.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with _Watched(receive) as client:
            await self._send_events(send, client)

    async def _send_events(self, send: Send, client: _Watched) -> None:
        async def end(body: bytes) -> None:
            # What follows is the server's own affair: the client may be gone.
            client.complete = True
            await send({"type": "http.response.body", "body": body + DONE, "more_body": False})

        async with aclosing(self._events) as events:
            first = await anext(events)
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            chunk, error = first, None
            try:
                while type(chunk) is not LastEvents:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                    chunk = await anext(events)
                await end(chunk)
                async for _ in events:
                    raise AssertionError("events behind the last ones")
            except ApiError as failed:
                error = failed
            except Exception:
                logger.exception("a stream failed")
                error = ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, "The server failed.", code="internal_error")
            if not client.complete:
                await end(event(error.body()) if error is not None else b"")
