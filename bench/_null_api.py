"""The least an HTTP server can do with an engine: no checks, no text, the same bytes at the same times.

What uvicorn, the event loop and the kernel take; the API's own part is what it takes beyond.
"""

from __future__ import annotations

import itertools
import json

from starlette.types import Receive, Scope, Send

from engine.client_protocol import EngineClientProtocol, Generation
from engine.request import SamplingParams

_HEADERS = [(b"content-type", b"text/event-stream")]
# As long as a completion's chunk.
_EVENT = b'data: {"text":"' + b"x" * 220 + b'"}\n\n'
_DONE = b"data: [DONE]\n\n"


class NullApi:
    """An ASGI application."""

    def __init__(self, engine: EngineClientProtocol) -> None:
        self._engine = engine
        self._names = itertools.count()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        sampling = SamplingParams(max_tokens=json.loads(body)["max_tokens"], temperature=0.0)
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        async for _ in self._engine.generate(Generation(f"n{next(self._names)}", (1, 2, 3), sampling)):
            await send({"type": "http.response.body", "body": _EVENT, "more_body": True})
        await send({"type": "http.response.body", "body": _DONE, "more_body": False})
