"""Several async streams read as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TypeVar

T = TypeVar("T")


def merge(streams: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[T, None]:
    """Items of all streams as they come; the order within a stream is kept.

    When one stream raises, or the reader stops, all are closed before this returns.
    """
    return streams[0] if len(streams) == 1 else _merge(streams)


async def _merge(streams: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[T, None]:
    queue: asyncio.Queue[T | asyncio.Task[None]] = asyncio.Queue()

    async def pump(stream: AsyncGenerator[T, None]) -> None:
        async with aclosing(stream):
            async for item in stream:
                queue.put_nowait(item)

    tasks = [asyncio.create_task(pump(stream)) for stream in streams]
    for task in tasks:
        task.add_done_callback(queue.put_nowait)
    try:
        pending = len(tasks)
        while pending:
            arrived = await queue.get()
            if isinstance(arrived, asyncio.Task):
                pending -= 1
                arrived.result()
            else:
                yield arrived
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def announcing(stream: AsyncGenerator[T, None], begun: asyncio.Event) -> AsyncGenerator[T, None]:
    """`stream`, which sets `begun` with its first item."""
    async with aclosing(stream):
        async for item in stream:
            begun.set()
            yield item


async def waiting_for(begun: asyncio.Event, stream: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """`stream`, which does not start before `begun` is set."""
    async with aclosing(stream):
        await begun.wait()
        async for item in stream:
            yield item
