"""An engine that computes nothing: it counts aloud, at a pace. What remains of a request is the API's own cost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from engine.client_protocol import EngineHealth, EngineInfo, EngineStats, Generation, TokenDelta
from engine.messages import Delta
from engine.request import FinishReason
from engine.token_streams import TokenStreams

PLACES = 4096


class PacedEngine:
    """`engine.client_protocol.EngineClientProtocol`. A step each `interval_s` gives every running request the next
    token of `script`, handed out as `EngineClient` does; a request for a single token gets it at once."""

    def __init__(self, script: Sequence[int], vocab_size: int, interval_s: float) -> None:
        self._script = tuple(script)
        self._interval_s = interval_s
        self._streams = TokenStreams()
        self._running: dict[str, tuple[int, int, int]] = {}  # ticket, tokens given, tokens asked for
        self._stepping: asyncio.Task[None] | None = None
        self.info = EngineInfo("paced", 16384, vocab_size, "none", "none", PLACES * 64, 16, PLACES, 2048)
        self.health = EngineHealth(True, None)
        self.stats: EngineStats | None = None

    async def generate(self, generation: Generation) -> AsyncIterator[TokenDelta]:
        count, name = generation.sampling.max_tokens, generation.request_id
        if count == 1:
            yield TokenDelta((self._script[0],), (), FinishReason.LENGTH, 0, None)
            return
        stream = self._streams.open(name)
        self._running[name] = (stream.ticket, 0, count)
        if self._stepping is None:
            self._stepping = asyncio.create_task(self._step())
        try:
            finished = False
            while not finished:
                delta = await stream.next()
                finished = delta.finish_reason is not None
                yield delta
        finally:
            self._streams.close(name)
            self._running.pop(name, None)

    async def abort(self, request_id: str) -> None:
        return None

    async def _step(self) -> None:
        clock = asyncio.get_running_loop().time
        due_s = clock()
        while self._running:
            due_s += self._interval_s
            await asyncio.sleep(max(0.0, due_s - clock()))
            await self._streams.deliver([self._next(name) for name in list(self._running)])
        self._stepping = None

    def _next(self, name: str) -> Delta:
        ticket, given, count = self._running[name]
        last = given == count - 1
        if last:
            del self._running[name]
        else:
            self._running[name] = (ticket, given + 1, count)
        token = self._script[given % len(self._script)]
        return Delta(name, ticket, (token,), (), FinishReason.LENGTH if last else None, 0, None)
