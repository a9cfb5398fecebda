"""What a step brings, handed out: first tokens first, in slices, nothing lost."""

from __future__ import annotations

import asyncio

import pytest

from engine.client_protocol import EngineUnavailableError
from engine.messages import Delta
from engine.token_streams import SLICE, TokenStreams


def delta(name, stream, token=1):
    return Delta(name, stream.ticket, (token,), (), None, 0, None)


async def test_first_tokens_are_handed_out_before_later_ones():
    streams, read = TokenStreams(), []
    opened = {name: streams.open(name) for name in ("old", "new")}

    async def reader(name):
        while True:
            read.append((name, (await opened[name].next()).token_ids))

    readers = [asyncio.create_task(reader(name)) for name in opened]
    await asyncio.sleep(0)
    await streams.deliver([delta("old", opened["old"], 1)])
    await asyncio.sleep(0)
    await streams.deliver([delta("old", opened["old"], 2), delta("new", opened["new"], 3)])
    await asyncio.sleep(0)
    assert read == [("old", (1,)), ("new", (3,)), ("old", (2,))]
    for one in readers:
        one.cancel()


async def test_others_get_their_turn_between_slices():
    streams, read, seen = TokenStreams(), [], []
    opened = {str(number): streams.open(str(number)) for number in range(5 * SLICE)}

    async def reader(stream):
        read.append(await stream.next())

    async def other():
        while len(read) < len(opened):
            seen.append(len(read))
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        for stream in opened.values():
            group.create_task(reader(stream))
        group.create_task(other())
        await asyncio.sleep(0)
        await streams.deliver([delta(name, stream) for name, stream in opened.items()])
    assert len(read) == len(opened)
    assert max(after - before for before, after in zip(seen, [*seen[1:], len(read)], strict=True)) <= SLICE


async def test_tokens_before_a_failure_are_read_and_a_closed_stream_takes_none():
    streams = TokenStreams()
    stream = streams.open("a")
    with pytest.raises(ValueError, match="already running"):
        streams.open("a")
    await streams.deliver([delta("a", stream, 7), Delta("gone", 0, (1,), (), None, 0, None)])
    streams.fail("it restarts")
    assert (await stream.next()).token_ids == (7,)
    with pytest.raises(EngineUnavailableError, match="it restarts"):
        await stream.next()
    streams.close("a")
    assert streams.find("a") is None
    again = streams.open("a")
    await streams.deliver([delta("a", stream, 8)])
    assert again.ticket != stream.ticket
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(again.next(), 0.01)
