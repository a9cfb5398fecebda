"""Server-sent events, and work that ends when the client hangs up."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from http import HTTPStatus
from typing import Any, TypeVar

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


def comment(text: bytes) -> bytes:
    """A line that clients ignore unless they look for it. `text` has no line break."""
    return b": %b\n\n" % text


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Await `work`, but cancel it, and raise `ClientDisconnectedError`, when the client hangs up first.

    The request's body must have been read: `receive` then brings nothing but the disconnect.
    """

    async def disconnected() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working = asyncio.create_task(work)
    watching = asyncio.create_task(disconnected())
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnectedError
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


class EventStream(Response):
    """Streams events until the generator ends or the client hangs up; the generator is closed either way.

    The status line waits for the first event: an error before it is answered as any other error. After it, an
    error is one more event, followed by `[DONE]`.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await until_disconnect(receive, self._send_events(send))

    async def _send_events(self, send: Send) -> None:
        async with aclosing(self._events) as events:
            first = await anext(events)
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": first, "more_body": True})
            try:
                async for chunk in events:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            except ApiError as error:
                await send({"type": "http.response.body", "body": event(error.body()), "more_body": True})
            except Exception:
                logger.exception("a stream failed")
                body = ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, "The server failed.", code="internal_error").body()
                await send({"type": "http.response.body", "body": event(body), "more_body": True})
        await send({"type": "http.response.body", "body": DONE, "more_body": False})
