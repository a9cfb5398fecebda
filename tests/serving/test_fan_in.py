"""Several streams read as one: nothing lost, order kept, everything closed."""

from __future__ import annotations

import asyncio

import pytest

from serving.fan_in import merge


class Source:
    def __init__(self, items, error=None, endless=False):
        self.items, self.error, self.endless, self.closed = items, error, endless, False

    async def stream(self):
        try:
            for item in self.items:
                await asyncio.sleep(0)
                yield item
            if self.endless:
                await asyncio.Event().wait()
            if self.error is not None:
                raise self.error
        finally:
            self.closed = True


@pytest.mark.parametrize("count", [1, 2, 5])
async def test_everything_arrives_in_order(count):
    sources = [Source([(k, item) for item in range(10)]) for k in range(count)]
    arrived = [item async for item in merge([source.stream() for source in sources])]
    for k in range(count):
        assert [item for item in arrived if item[0] == k] == sources[k].items
    assert len(arrived) == 10 * count
    assert all(source.closed for source in sources)


@pytest.mark.parametrize("count", [1, 3])
async def test_an_error_closes_the_others_first(count):
    sources = [Source([1], error=KeyError("x")), *(Source([2], endless=True) for _ in range(count - 1))]
    with pytest.raises(KeyError):
        async for _ in merge([source.stream() for source in sources]):
            pass
    assert all(source.closed for source in sources)


@pytest.mark.parametrize("count", [1, 3])
async def test_a_reader_that_stops_closes_all(count):
    sources = [Source([1], endless=True) for _ in range(count)]
    merged = merge([source.stream() for source in sources])
    for _ in range(count):
        await anext(merged)
    await merged.aclose()
    assert all(source.closed for source in sources)


async def test_a_cancelled_reader_closes_all():
    sources = [Source([], endless=True) for _ in range(3)]

    async def read():
        async for _ in merge([source.stream() for source in sources]):
            pass

    reading = asyncio.create_task(read())
    for _ in range(5):
        await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert all(source.closed for source in sources)
