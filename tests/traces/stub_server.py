"""A small OpenAI-compatible server with known timing, as a bare ASGI application: words are tokens.

Run it alone with `python tests/traces/stub_server.py PORT [TTFT_S] [ITL_S] [TTFT_S_PER_TOKEN] [ITL_S_PER_ACTIVE]`.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

CHAT_OVERHEAD = 7
FIRST_ID = 100


class Stub:
    """Behaviour is set by attributes; what was received is in `received`."""

    def __init__(
        self, ttft_s: float = 0.02, itl_s: float = 0.005, ttft_s_per_token: float = 0.0, itl_s_per_active: float = 0.0
    ) -> None:
        self.ttft_s = ttft_s
        self.itl_s = itl_s
        self.ttft_s_per_token = ttft_s_per_token
        self.itl_s_per_active = itl_s_per_active
        self.active = 0
        self.tokenizes = True
        self.takes_token_ids = True
        self.reports_usage = True
        self.reports_energy = False
        self.tokens_per_chunk = 1
        self.tokens_per_word = 1
        self.fail_every = 0
        self.cut_every = 0
        self.stall = False
        self.received: list[dict[str, Any]] = []
        self.disconnects = 0
        self._ids: dict[str, int] = {}

    def token_ids(self, text: str) -> list[int]:
        return [
            self._ids.setdefault(f"{word}.{part}", FIRST_ID + len(self._ids))
            for word in text.split()
            for part in range(self.tokens_per_word)
        ]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                await send({"type": message["type"] + ".complete"})
                if message["type"] == "lifespan.shutdown":
                    return None
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        path = scope["path"]
        if path == "/v1/models":
            return await answer(send, 200, {"data": [{"id": "stub"}]})
        if path == "/health":
            return await answer(send, 200, {})
        request = json.loads(body or b"{}")
        if path == "/tokenize" and self.tokenizes:
            ids = self.token_ids(request.get("prompt") or " ".join(m["content"] for m in request["messages"]))
            overhead = CHAT_OVERHEAD if "messages" in request else 0
            return await answer(send, 200, {"count": len(ids) + overhead, "tokens": ids + [1] * overhead})
        if path in ("/v1/completions", "/v1/chat/completions"):
            return await self.generate(path, request, scope, receive, send)
        return await answer(send, 404, {"error": {"message": f"no route {path}"}})

    async def generate(self, path: str, request: dict[str, Any], scope: Any, receive: Any, send: Any) -> None:
        chat = path.endswith("chat/completions")
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        if chat:
            prompt_tokens = len(self.token_ids(request["messages"][-1]["content"])) + CHAT_OVERHEAD
        elif isinstance(request["prompt"], list):
            if not self.takes_token_ids:
                return await answer(send, 400, {"error": {"message": "prompt must be a string"}})
            prompt_tokens = len(request["prompt"])
        else:
            prompt_tokens = len(self.token_ids(request["prompt"]))
        count = request.get("max_tokens") or request.get("max_completion_tokens") or 16
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": count}
        if not request.get("stream"):
            return await answer(send, 200, {"choices": [{"text": "x " * count}], "usage": usage})
        self.received.append({"at_s": time.perf_counter(), "path": path, "headers": headers, **request})
        number = len(self.received)
        if self.fail_every and number % self.fail_every == 0:
            return await answer(send, 503, {"error": {"message": "overloaded"}})
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        gone = asyncio.ensure_future(wait_gone(receive))
        self.active += 1
        try:
            await asyncio.sleep(self.ttft_s + self.ttft_s_per_token * prompt_tokens)
            if chat:
                await event(send, {"choices": [{"delta": {"role": "assistant", "content": ""}}]}, chat)
            due_s = time.perf_counter()
            for first in range(0, count, self.tokens_per_chunk):
                if first:
                    due_s += self.itl_s + self.itl_s_per_active * self.active
                    await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
                while self.stall and not gone.done():
                    await asyncio.sleep(0.01)
                if gone.done():
                    self.disconnects += 1
                    return None
                if self.cut_every and number % self.cut_every == 0 and first:
                    raise ConnectionAbortedError
                text = "word " * min(self.tokens_per_chunk, count - first)
                last = first + self.tokens_per_chunk >= count
                reason = "length" if last and not chat else None
                part: dict[str, Any] = {"delta": {"content": text}} if chat else {"text": text}
                await event(send, {"choices": [{"index": 0, **part, "finish_reason": reason}]}, chat)
            if chat:
                await event(send, {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}, chat)
            final: dict[str, Any] = {"choices": []}
            if self.reports_usage:
                final["usage"] = usage | {"prompt_tokens_details": {"cached_tokens": 3}}
            if self.reports_energy:
                final["energy"] = {
                    "energy_joules": 2.0 * count,
                    "method": "simulated",
                    "grams_co2e": 0.001,
                    "directive": "L1",
                }
            await event(send, final, chat)
            await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})
        finally:
            self.active -= 1
            gone.cancel()


async def wait_gone(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def event(send: Any, payload: dict[str, Any], chat: bool) -> None:
    kind = "chat.completion.chunk" if chat else "text_completion"
    body = json.dumps({"id": "x", "object": kind, "created": 0, "model": "stub", **payload}).encode()
    await send({"type": "http.response.body", "body": b"data: " + body + b"\n\n", "more_body": True})


async def answer(send: Any, status: int, payload: dict[str, Any]) -> None:
    body = json.dumps(payload).encode()
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())],
        }
    )
    await send({"type": "http.response.body", "body": body})


if __name__ == "__main__":
    import uvicorn

    port, *timing = sys.argv[1:]
    uvicorn.run(Stub(*map(float, timing)), host="127.0.0.1", port=int(port), log_level="warning", loop="uvloop")
