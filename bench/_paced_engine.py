"""An engine that computes nothing: it counts aloud, at a pace. What remains of a request is the API's own cost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from engine.client_protocol import EngineHealth, EngineInfo, EngineStats, Generation, TokenDelta
from engine.request import FinishReason

PLACES = 4096


class PacedEngine:
    """`engine.client_protocol.EngineClientProtocol`. Gives the tokens of `script` from the start, one each
    `interval_s`; a request for a single token gets it at once."""

    def __init__(self, script: Sequence[int], vocab_size: int, interval_s: float) -> None:
        self._script = tuple(script)
        self._interval_s = interval_s
        self.info = EngineInfo("paced", 16384, vocab_size, "none", "none", PLACES * 64, 16, PLACES, 2048)
        self.health = EngineHealth(True, None)
        self.stats: EngineStats | None = None

    async def generate(self, generation: Generation) -> AsyncIterator[TokenDelta]:
        count = generation.sampling.max_tokens
        if count == 1:
            yield TokenDelta((self._script[0],), (), FinishReason.LENGTH, 0, None)
            return
        clock = asyncio.get_running_loop().time
        due_s = clock()
        for place in range(count):
            due_s += self._interval_s
            await asyncio.sleep(max(0.0, due_s - clock()))
            reason = FinishReason.LENGTH if place == count - 1 else None
            yield TokenDelta((self._script[place % len(self._script)],), (), reason, 0, None)

    async def abort(self, request_id: str) -> None:
        return None
