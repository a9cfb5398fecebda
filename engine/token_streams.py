"""The tokens of running requests on their way from the engine's steps to those who read them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from itertools import chain

from engine.client_protocol import EngineUnavailableError, TokenDelta
from engine.messages import Delta

# Streams woken before the event loop looks at its sockets again: what a step brings to many streams at once holds up
# a request that arrives meanwhile by the writes of one slice, not of all.
SLICE = 8


class TokenStream:
    """A generation under way; `ticket` tells it from an earlier one of the same id. It has one reader."""

    __slots__ = ("_arrived", "_reader", "begun", "ticket")

    def __init__(self, ticket: int) -> None:
        self.ticket = ticket
        self.begun = False
        self._arrived: deque[TokenDelta | EngineUnavailableError] = deque()
        self._reader: asyncio.Future[None] | None = None

    def put(self, item: TokenDelta | EngineUnavailableError) -> None:
        self._arrived.append(item)
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def next(self) -> TokenDelta:
        """Wait for what comes next. Raises `EngineUnavailableError` once the engine is gone."""
        while not self._arrived:
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        item = self._arrived.popleft()
        if isinstance(item, EngineUnavailableError):
            raise item
        return item


class TokenStreams:
    """The streams of one engine by request id."""

    def __init__(self) -> None:
        self._streams: dict[str, TokenStream] = {}
        self._next_ticket = 0

    def open(self, request_id: str) -> TokenStream:
        """Raises `ValueError` when the id is in use."""
        if request_id in self._streams:
            raise ValueError(f"request id {request_id!r} is already running; ids must be unique while they run")
        stream = self._streams[request_id] = TokenStream(self._next_ticket)
        self._next_ticket += 1
        return stream

    def close(self, request_id: str) -> None:
        del self._streams[request_id]

    def find(self, request_id: str) -> TokenStream | None:
        return self._streams.get(request_id)

    def fail(self, reason: str) -> None:
        """End all streams with `EngineUnavailableError`."""
        for stream in self._streams.values():
            stream.put(EngineUnavailableError(reason))

    async def deliver(self, deltas: Iterable[Delta]) -> None:
        """Hand out what a step brought: first tokens first, in slices. Deltas of streams that are gone are dropped."""
        first: list[tuple[TokenStream, Delta]] = []
        later: list[tuple[TokenStream, Delta]] = []
        for delta in deltas:
            stream = self._streams.get(delta.request_id)
            if stream is not None and stream.ticket == delta.ticket:
                (later if stream.begun else first).append((stream, delta))
        for number, (stream, delta) in enumerate(chain(first, later), start=1):
            stream.begun = True
            stream.put(
                TokenDelta(
                    delta.token_ids,
                    delta.logprobs,
                    delta.finish_reason,
                    delta.num_cached_tokens,
                    delta.error,
                    delta.admitted_s,
                )
            )
            if number % SLICE == 0:
                await asyncio.sleep(0)
