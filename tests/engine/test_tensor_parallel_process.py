"""An engine of two ranks in its processes: what it says, how it dies, and that it comes back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from engine.client import EngineClient, EngineStartError
from engine.client_protocol import EngineUnavailableError
from engine.config import EngineConfig
from engine.request import FinishReason, Guide, GuideKind
from kernels.weight_format import WeightFormat
from tests.engine.small_process import collect, config, generation, tokens, until

RANK_TIMEOUT_S = 4.0


def shared(model: Path, **changes: object) -> EngineConfig:
    settings = {"weight_format": WeightFormat.FP32, "tensor_parallel": 2, "rank_timeout_s": RANK_TIMEOUT_S} | changes
    return config(model, **settings)


@contextlib.asynccontextmanager
async def running(settings: EngineConfig) -> AsyncIterator[EngineClient]:
    client = EngineClient(settings)
    await client.start()
    try:
        yield client
    finally:
        await client.close()


def other_rank(client: EngineClient) -> psutil.Process:
    (rank,) = psutil.Process(client.pid).children()
    return rank


async def back_again(client: EngineClient, first: int | None) -> None:
    await until(lambda: client.pid != first and client.health.ready, "restarted", 120.0)


async def test_two_ranks_say_what_one_says_and_leave_together(tiny_model):
    guide = Guide(GuideKind.REGEX, "[0-9]{4}-[0-9]{2}")
    wanted = [
        generation("greedy"),
        generation("drawn", temperature=0.9, seed=4, top_p=0.9, frequency_penalty=0.3),
        generation("guided", 40, temperature=1.0, seed=5, guide=guide, ignore_eos=False),
    ]
    async with running(shared(tiny_model)) as client:
        assert client.info.device == "cpu x 2"
        ours = await asyncio.gather(*(collect(client, each) for each in wanted))
        rank = other_rank(client)
    assert not rank.is_running()
    async with running(shared(tiny_model, tensor_parallel=1)) as client:
        theirs = await asyncio.gather(*(collect(client, each) for each in wanted))
    assert [tokens(each) for each in ours] == [tokens(each) for each in theirs]
    assert ours[2][-1].finish_reason is FinishReason.STOP


async def test_the_engine_ends_with_any_of_its_ranks_and_comes_back(tiny_model):
    async with running(shared(tiny_model)) as client:
        expected = tokens(await collect(client, generation("before")))

        # Killed in the middle of a request: the step's own error arrives, or the end of the process.
        first, rank = client.pid, other_rank(client)
        client.set_pace(200.0)
        stream = client.generate(generation("victim", length=400))
        await anext(stream)
        rank.kill()
        try:
            async with asyncio.timeout(30.0):
                deltas = [delta async for delta in stream]
            assert deltas[-1].finish_reason is FinishReason.ERROR
        except EngineUnavailableError:
            pass
        client.set_pace(1.0)
        await back_again(client, first)
        assert other_rank(client).pid != rank.pid
        assert tokens(await collect(client, generation("after"))) == expected

        # Standing still: no error ever comes, the time limit does.
        first, rank = client.pid, other_rank(client)
        rank.suspend()
        try:
            with pytest.raises(EngineUnavailableError, match="exit status 70"):
                async with asyncio.timeout(10 * RANK_TIMEOUT_S):
                    await collect(client, generation("stuck"))
        finally:
            rank.kill()
        await back_again(client, first)

        # The first one killed: nobody tells the other, its pipe closes.
        rank = other_rank(client)
        os.kill(client.pid, signal.SIGKILL)
        await until(lambda: not rank.is_running() or rank.status() == psutil.STATUS_ZOMBIE, "ended", 30.0)


@pytest.mark.slow
async def test_a_rank_that_ends_while_idle_is_missed(tiny_model):
    async with running(shared(tiny_model)) as client:
        first = client.pid
        other_rank(client).kill()
        await back_again(client, first)


async def test_a_model_that_does_not_divide_is_refused_with_what_would(tiny_model):
    client = EngineClient(shared(tiny_model, tensor_parallel=3))
    with pytest.raises(EngineStartError, match=r"3 ranks: 2 attention heads.*use --tensor-parallel 1 or 2"):
        await client.start()
    await client.close()
