"""The engine in its own process: streams, aborts, refusals, deaths and recoveries."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio
import zmq

from engine.client import EngineClient, EngineStartError
from engine.client_protocol import EngineHealth, EngineStats, EngineUnavailableError, Generation
from engine.messages import Abort, Delta, StepOutputs, Submit, ToEngine, encoder, from_engine_decoder
from engine.request import FinishReason, Guide, GuideKind, SamplingParams
from tests.engine.small_process import collect, config, generation, tokens, until

# Steps take so many times as long where a request must still run when the test acts, however busy the machine.
SLOW = 200.0
IDLE = EngineStats(0, 0, 0, None, 0, 1, 0, 0, 0)


@pytest_asyncio.fixture
async def client(tiny_model: Path) -> AsyncIterator[EngineClient]:
    made = EngineClient(config(tiny_model))
    await made.start()
    yield made
    await made.close()


async def test_streams_end_with_a_reason_and_equal_requests_get_equal_tokens(client):
    first, second = await asyncio.gather(collect(client, generation("a")), collect(client, generation("b")))
    assert len(tokens(first)) == 20
    assert tokens(first) == tokens(second)
    assert [delta.finish_reason for delta in first] == [None] * (len(first) - 1) + [FinishReason.LENGTH]
    seeded = [await collect(client, generation(name, temperature=1.0, seed=9)) for name in "cd"]
    unseeded = [await collect(client, generation(name, temperature=1.0)) for name in "ef"]
    assert tokens(seeded[0]) == tokens(seeded[1])
    assert tokens(unseeded[0]) != tokens(unseeded[1])


async def test_a_stream_says_when_its_sequence_was_admitted(tiny_model):
    client = EngineClient(config(tiny_model, max_num_seqs=1))
    await client.start()
    client.set_pace(SLOW)
    before_s = time.monotonic()
    first, second = await asyncio.gather(collect(client, generation("a", 4)), collect(client, generation("b", 4)))
    await client.close()
    assert {delta.admitted_s for delta in first} == {first[0].admitted_s}
    assert before_s <= first[0].admitted_s < second[0].admitted_s <= time.monotonic()


async def test_every_tenth_of_a_hundred_is_cancelled_and_the_others_are_exact(client):
    expected = tokens(await collect(client, generation("alone", length=15)))

    async def one(index: int) -> list[int] | None:
        stream = client.generate(generation(f"r{index}", length=15))
        got: list[int] = []
        async for delta in stream:
            got += delta.token_ids
            if index % 10 == 0 and len(got) >= 3:
                await stream.aclose()
                return None
        return got

    results = await asyncio.gather(*(one(index) for index in range(100)))
    assert [result is None for result in results] == [index % 10 == 0 for index in range(100)]
    assert all(result == expected for result in results if result is not None)
    assert tokens(await collect(client, generation("r10", length=15))) == expected
    await until(lambda: client.stats.running == client.stats.waiting == client.stats.kv_blocks_used == 0, "all freed")


async def test_abort_by_id_ends_the_stream(client):
    await collect(client, generation("first"))  # a cold step is long, and would be stretched to minutes
    client.set_pace(SLOW)
    stream = client.generate(generation("victim", length=400))
    got = [await anext(stream)]
    await client.abort("victim")
    got += [delta async for delta in stream]
    assert got[-1].finish_reason is FinishReason.ABORT
    await client.abort("nobody")
    client.set_pace(1.0)
    assert len(tokens(await collect(client, generation("victim")))) == 20


async def test_what_an_aborted_request_left_on_the_wire_does_not_reach_the_next_of_its_id(monkeypatch):
    client = EngineClient(config(Path("none")))
    client._health = EngineHealth(True, None)
    sent: list[ToEngine] = []
    monkeypatch.setattr(client, "_send", sent.append)

    async def arrive(submitted: Submit, token: int, finish: FinishReason | None = None) -> None:
        delta = Delta(submitted.request_id, submitted.ticket, (token,), (), finish, 0, None)
        await client._take(StepOutputs((delta,), None, IDLE))

    streams, submitted = [], []
    for _ in range(2):
        streams.append(client.generate(generation("same")))
        pending = asyncio.ensure_future(anext(streams[-1]))
        await asyncio.sleep(0)
        (message,) = [message for message in sent if isinstance(message, Submit) and message not in submitted]
        submitted.append(message)
        if len(streams) == 1:
            await arrive(message, 1)
            assert (await pending).token_ids == (1,)
            await streams[0].aclose()
            assert sent[-1] == Abort(("same",))
    # The engine had drawn these before the abort reached it.
    await arrive(submitted[0], 2)
    await arrive(submitted[0], 3, FinishReason.LENGTH)
    await arrive(submitted[1], 4)
    await arrive(submitted[1], 5, FinishReason.LENGTH)
    assert tokens([await pending, *[delta async for delta in streams[1]]]) == [4, 5]


async def test_limits_below_one_are_refused_before_they_reach_the_engine():
    client = EngineClient(config(Path("none")))
    with pytest.raises(ValueError, match="token_budget must be at least 1"):
        client.set_limits(token_budget=0)
    with pytest.raises(ValueError, match="max_running must be at least 1"):
        client.set_limits(max_running=-1)


async def test_one_id_cannot_run_twice(client):
    stream = client.generate(generation("same", length=300))
    await anext(stream)
    with pytest.raises(ValueError, match="already running"):
        await anext(client.generate(generation("same")))
    await stream.aclose()


async def test_what_can_never_run_is_refused_with_the_reason(client):
    long = Generation("long", tuple(range(600)), SamplingParams(max_tokens=5))
    (refused,) = await collect(client, long)
    assert refused.finish_reason is FinishReason.ERROR
    assert "600 tokens" in refused.error
    bad = generation("bad", guide=Guide(GuideKind.REGEX, "(("))
    (refused,) = await collect(client, bad)
    assert "cannot be compiled" in refused.error
    assert len(tokens(await collect(client, generation("fine")))) == 20


async def test_guided_output_through_the_process(client, embedded_tokenizer):
    guided = generation("guided", 40, guide=Guide(GuideKind.REGEX, "[0-9]{4}-[0-9]{2}"), ignore_eos=False)
    deltas = await collect(client, guided)
    assert deltas[-1].finish_reason is FinishReason.STOP
    import re

    assert re.fullmatch("[0-9]{4}-[0-9]{2}", embedded_tokenizer.decode(tokens(deltas)))


async def test_a_killed_engine_ends_its_streams_and_comes_back(client):
    expected = tokens(await collect(client, generation("before")))
    client.set_pace(SLOW)
    stream = client.generate(generation("during", length=400))
    await anext(stream)
    client.set_pace(1.0)
    os.kill(client.pid, signal.SIGKILL)
    with pytest.raises(EngineUnavailableError, match="exit status -9"):
        async for _ in stream:
            pass
    assert not client.health.ready
    with pytest.raises(EngineUnavailableError):
        await anext(client.generate(generation("too soon")))
    await until(lambda: client.health.ready, "the engine is back")
    assert tokens(await collect(client, generation("during"))) == expected


async def test_pause_holds_everything_and_survives_a_restart(client):
    await client.set_paused(True)
    stream = client.generate(generation("held"))
    first = asyncio.ensure_future(anext(stream))
    await until(lambda: client.stats is not None, "stats")
    os.kill(client.pid, signal.SIGKILL)
    with pytest.raises(EngineUnavailableError):
        await first
    await until(lambda: client.health.ready, "the engine is back")
    stream = client.generate(generation("held"))
    first = asyncio.ensure_future(anext(stream))
    done, _ = await asyncio.wait({first}, timeout=0.5)
    assert not done
    await client.set_paused(False)
    assert (await first).token_ids
    await stream.aclose()


async def test_limits_reach_the_scheduler(client):
    records = []
    client.on_step = lambda record, stats: records.append(stats)
    client.set_limits(max_running=2)
    await asyncio.gather(*(collect(client, generation(f"r{index}")) for index in range(8)))
    assert max(stats.running for stats in records) <= 2


async def test_a_lowered_token_budget_holds_and_is_lifted_by_the_engine_when_nobody_renews_it(client):
    records = []
    client.on_step = lambda record, stats: records.append(sum(share.prefill_tokens for share in record.work))
    whole = client.info.max_num_batched_tokens
    assert client.stats.token_budget == whole > 40
    long = Generation("long", tuple(range(5, 45)), SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True))
    expected = tokens(await collect(client, long))
    assert max(records) == 40

    client.set_limits(token_budget=8, for_s=60.0)
    await until(lambda: client.stats.token_budget == 8, "the limit, told without a step")
    await client.reset_prefix_cache()
    records.clear()
    assert tokens(await collect(client, long)) == expected
    assert records[:5] == [8] * 5

    client.set_limits(token_budget=8, for_s=0.3)
    await until(lambda: client.stats.token_budget == whole, "lifted while idle")
    client.set_pace(SLOW)
    client.set_limits(token_budget=8, for_s=0.3)
    stream = client.generate(generation("running", length=400))
    await anext(stream)
    await until(lambda: client.stats.token_budget == whole, "lifted while running")
    await stream.aclose()
    client.set_pace(1.0)


async def test_a_restarted_engine_has_what_is_left_of_the_lease(client):
    client.set_limits(token_budget=8, for_s=60.0)
    os.kill(client.pid, signal.SIGKILL)
    await until(lambda: not client.health.ready, "the engine's end")
    await until(lambda: client.health.ready and client.stats.token_budget == 8, "the engine with its limit")
    client.set_limits(token_budget=8, for_s=0.01)
    await asyncio.sleep(0.05)
    os.kill(client.pid, signal.SIGKILL)
    await until(lambda: not client.health.ready, "the engine's end")
    await until(lambda: client.health.ready, "the engine")
    assert client._limits_left().token_budget is None
    assert client.stats.token_budget == client.info.max_num_batched_tokens


async def test_an_idle_engine_blocks(client):
    """No thread of it wakes: neither a spinning loop nor a polling one."""
    await collect(client, generation("warm"))

    def wakes() -> int:
        return sum(
            int(line.split()[1])
            for status in Path(f"/proc/{client.pid}/task").glob("*/status")
            for line in status.read_text().splitlines()
            if line.startswith(("voluntary", "nonvoluntary"))
        )

    # What the last step leaves to do is over once nothing has woken for a while.
    seen, still = wakes(), 0
    for _ in range(300):
        await asyncio.sleep(0.1)
        seen, last = wakes(), seen
        still = still + 1 if seen == last else 0
        if still == 10:
            return
    pytest.fail("the engine never stopped waking")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "/nowhere/model.gguf"}, "does not exist"),
        ({"kv_cache_bytes": 1000}, "raise --kv-cache-memory"),
        ({"device": "cuda"}, "no CUDA device"),
    ],
)
async def test_a_start_that_cannot_work_says_why(tiny_model, changes, message):
    settings = dict(changes)
    model = settings.pop("model", tiny_model)
    client = EngineClient(config(model, **settings))
    with pytest.raises(EngineStartError, match=message):
        await client.start()
    await client.close()


async def test_an_engine_that_is_still_loading_is_ended_without_waiting_for_it(tiny_model):
    stages = []
    client = EngineClient(config(tiny_model), on_loading=stages.append)
    starting = asyncio.create_task(client.start())
    await until(lambda: stages, "the process speaks", 120.0)
    engine = psutil.Process(client.pid)
    starting.cancel()
    await client.close()
    assert not engine.is_running()
    assert client._process.returncode == -signal.SIGTERM


def test_the_engine_ends_when_its_front_end_is_killed(tiny_model):
    program = f"""
        import asyncio, time
        from engine.client import EngineClient
        from engine.config import EngineConfig

        async def main():
            client = EngineClient(EngineConfig({str(tiny_model)!r}, "tiny", max_model_len=128, kv_cache_bytes=1 << 20))
            await client.start()
            print(client.pid, flush=True)
            await asyncio.sleep(600)

        asyncio.run(main())
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    engine = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    engine.wait(timeout=30)


class FlakyModel:
    """Stands for a device that fails when told to."""

    def __init__(self, inner) -> None:
        self.inner, self.broken = inner, False

    def __getattr__(self, name: str):
        if self.broken and name == "step_logits":
            raise RuntimeError("CUDA error: device-side assert triggered")
        return getattr(self.inner, name)


def test_a_failing_device_is_reported_until_it_answers_again(tiny_model):
    from engine.build import build_engine
    from engine.worker import MAX_PROBES, Worker

    built = build_engine(config(tiny_model), lambda stage, done=0, total=0: None)
    model = built.runner._model = FlakyModel(built.runner._model)
    context = zmq.Context()
    front, back = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    front.bind("inproc://engine")
    back.connect("inproc://engine")
    front.rcvtimeo = 20_000
    worker = Worker(back, built.engine, built.executor, built.runner, built.guide_compiler, built.eos_token_ids)
    ended: list[object] = []

    def serve() -> None:
        try:
            worker.run()
        except SystemExit as exit_:
            ended.append(exit_.code)

    thread = threading.Thread(target=serve)
    thread.start()

    def submit(name: str) -> None:
        params = SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True)
        front.send(encoder.encode(Submit(name, (1, 2, 3), params, time.monotonic())))

    def receive() -> StepOutputs:
        message = from_engine_decoder.decode(front.recv())
        assert isinstance(message, StepOutputs)
        return message

    model.broken = True
    submit("first")
    failed = receive()
    assert failed.fault is not None
    assert "device-side assert" in failed.fault
    assert failed.deltas[0].finish_reason is FinishReason.ERROR
    assert failed.stats.kv_blocks_used == 0
    model.broken = False
    recovered = receive()
    assert recovered.fault is None
    submit("second")
    assert [receive().deltas[0].finish_reason for _ in range(3)] == [None, None, FinishReason.LENGTH]
    model.broken = True
    submit("third")
    assert receive().fault is not None
    thread.join(timeout=30)
    assert ended == [70]
    assert MAX_PROBES == 3
    front.close()
    back.close()
    context.term()


def test_messages_survive_the_wire():
    from engine.messages import to_engine_decoder

    sent = Submit(
        "r", (1, 2), SamplingParams(logit_bias={3: 1.5}, stop_token_ids=(4,), guide=Guide(GuideKind.REGEX, "a")), 1.0
    )
    assert to_engine_decoder.decode(encoder.encode(sent)) == sent
