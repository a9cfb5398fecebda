"""Live replay against the stub: what is sent, when, what is recorded, and how a run ends early."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from traces.http_stream import ConnectionLostError, StreamClient
from traces.prompts import PromptMaker
from traces.record import Outcome, RequestRecord
from traces.replay import Replay, ReplayOptions
from traces.request import TraceRequest
from traces.target import Target, TargetError, find_target


async def replayed(
    url: str, requests: Iterable[TraceRequest], target_options: dict[str, Any] | None = None, **options: Any
) -> tuple[list[RequestRecord], Replay, Target]:
    async with StreamClient(url) as client:
        target = await find_target(client, **(target_options or {}))
        replay = Replay(client, target, PromptMaker(1), ReplayOptions(**options))
        return await replay.run(requests), replay, target


def requests(count: int, gap_s: float = 0.02, **fields: Any) -> list[TraceRequest]:
    return [TraceRequest(100.0 + index * gap_s, 20 + index, 3 + index % 4, **fields) for index in range(count)]


async def test_token_ids_lengths_and_records(stub_server: Any) -> None:
    records, replay, target = await replayed(stub_server.url, requests(12))
    assert (target.form, target.endpoint, target.model) == ("token_ids", "completions", "stub")
    assert [record.outcome for record in records] == [Outcome.COMPLETED] * 12
    assert [record.input_tokens for record in records] == [20 + index for index in range(12)]
    assert [record.output_tokens for record in records] == [3 + index % 4 for index in range(12)]
    assert all(len(record.itl_s) == (record.output_tokens or 0) - 1 for record in records)
    assert [round(record.scheduled_s, 6) for record in records] == [round(0.02 * index, 6) for index in range(12)]
    assert {record.cached_tokens for record in records} == {3}
    assert not replay.aborted
    sent = stub_server.stub.received
    assert all(request["ignore_eos"] and request["stream_options"] == {"include_usage": True} for request in sent)
    by_id = {request["headers"]["x-request-id"]: request for request in sent}
    assert len(by_id["replay-7"]["prompt"]) == 27
    assert by_id["replay-7"]["max_tokens"] == 6


async def test_times_are_in_order_and_never_before_the_schedule(stub_server: Any) -> None:
    records, _, _ = await replayed(stub_server.url, requests(10))
    for record in records:
        assert record.sent_s is not None
        assert record.first_token_s is not None
        assert record.last_token_s is not None
        assert record.sent_s >= record.scheduled_s - 1e-4
        assert record.first_token_s >= record.sent_s + stub_server.stub.ttft_s
        assert record.last_token_s >= record.first_token_s
        assert sum(record.itl_s) == pytest.approx(record.last_token_s - record.first_token_s)


async def test_a_slow_server_delays_no_later_send(stub_server: Any) -> None:
    """Open loop: the server takes 1 s for a first token, and all requests of 0.2 s are sent before it comes."""
    stub_server.stub.ttft_s = 1.0
    records, _, _ = await replayed(stub_server.url, requests(10))
    first_answer_s = min(record.first_token_s or 0.0 for record in records)
    assert all(record.sent_s is not None and record.sent_s < first_answer_s for record in records)


async def test_shared_blocks_are_sent_as_equal_token_ids(stub_server: Any) -> None:
    made = [
        TraceRequest(0.0, 40, 2, prefix_ids=(1, 2, 3), block_tokens=16),
        TraceRequest(0.01, 40, 2, prefix_ids=(1, 2, 4), block_tokens=16),
    ]
    await replayed(stub_server.url, made)
    one, other = (request["prompt"] for request in stub_server.stub.received)
    assert one[:32] == other[:32]
    assert one[32:] != other[32:]


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
async def test_text_is_sized_through_tokenize(stub_server: Any, endpoint: str) -> None:
    stub_server.stub.takes_token_ids = False
    records, _, target = await replayed(stub_server.url, requests(4), {"endpoint": endpoint})
    assert (target.form, target.endpoint) == ("sized_text", endpoint)
    assert target.overhead_tokens == (7 if endpoint == "chat" else 0)
    assert [record.input_tokens for record in records] == [20, 21, 22, 23]
    assert all(record.completed for record in records)


async def test_without_tokenize_text_is_estimated_and_said_so(stub_server: Any) -> None:
    stub_server.stub.tokenizes = False
    stub_server.stub.tokens_per_word = 2
    records, _, target = await replayed(stub_server.url, requests(3))
    assert target.form == "estimated_text"
    assert [record.input_tokens for record in records] == [40, 42, 44]
    async with StreamClient(stub_server.url) as client:
        with pytest.raises(TargetError, match="need /tokenize"):
            await find_target(client, form="token_ids")


async def test_words_of_several_tokens_are_not_used(stub_server: Any) -> None:
    stub_server.stub.tokens_per_word = 2
    async with StreamClient(stub_server.url) as client:
        assert (await find_target(client)).form == "estimated_text"


async def test_the_traces_own_prompt_is_sent_as_it_is(stub_server: Any) -> None:
    await replayed(stub_server.url, [TraceRequest(0.0, 5, 2, prompt="What is a watt?")], {"endpoint": "chat"})
    assert stub_server.stub.received[0]["messages"] == [{"role": "user", "content": "What is a watt?"}]


async def test_natural_answers_are_not_forced(stub_server: Any) -> None:
    records, _, _ = await replayed(
        stub_server.url, requests(2), output="natural", max_tokens=9, extra={"directive": "L1"}
    )
    assert all("ignore_eos" not in request and request["directive"] == "L1" for request in stub_server.stub.received)
    assert [record.requested_output_tokens for record in records] == [9, 9]
    assert [record.recorded_output_tokens for record in records] == [3, 4]


async def test_requests_recorded_without_answer_are_dropped_and_counted_or_asked_for_one(stub_server: Any) -> None:
    made = [TraceRequest(0.0, 9, 0), TraceRequest(0.01, 9, 2)]
    records, _, _ = await replayed(stub_server.url, made)
    assert [record.outcome for record in records] == [Outcome.DROPPED, Outcome.COMPLETED]
    assert "without an answer" in (records[0].error or "")
    records, _, _ = await replayed(stub_server.url, made, zero_output="one")
    assert [record.output_tokens for record in records] == [1, 2]


async def test_failures_are_recorded_with_their_reason(stub_server: Any) -> None:
    stub_server.stub.fail_every = 2
    stub_server.stub.cut_every = 3
    records, _, _ = await replayed(stub_server.url, requests(6, gap_s=0.05))
    found = [record.error or "ok" for record in records]
    assert found[0] == found[4] == "ok"
    assert found[1] == found[3] == found[5] == "HTTP 503: overloaded"
    assert "closed the connection before the answer ended" in found[2]
    assert records[2].outcome is Outcome.FAILED
    assert records[2].first_token_s is not None


async def test_a_timeout_fails_the_request_alone(stub_server: Any) -> None:
    stub_server.stub.stall = True
    records, _, _ = await replayed(stub_server.url, requests(2), request_timeout_s=0.3)
    assert [record.error for record in records] == ["no complete answer within 0.3 s"] * 2


async def test_stopping_keeps_what_was_and_tells_the_server(stub_server: Any) -> None:
    stub_server.stub.stall = True
    async with StreamClient(stub_server.url) as client:
        target = await find_target(client)
        replay = Replay(client, target, PromptMaker(1), ReplayOptions())
        running = asyncio.create_task(replay.run(requests(1000, gap_s=0.02)))
        while len(stub_server.stub.received) < 5:
            await asyncio.sleep(0.01)
        replay.stop()
        records = await running
    assert replay.aborted
    assert 5 <= len(records) < 1000
    assert {record.outcome for record in records} == {Outcome.ABORTED}
    for _ in range(200):
        if stub_server.stub.disconnects >= 5:
            break
        await asyncio.sleep(0.01)
    assert stub_server.stub.disconnects >= 5


async def test_an_error_in_the_trace_ends_the_sending_and_keeps_what_was(stub_server: Any) -> None:
    def broken() -> Iterable[TraceRequest]:
        yield from requests(2)
        raise ValueError("trace.csv:4:1: bad row")

    records, replay, _ = await replayed(stub_server.url, broken())
    assert [record.outcome for record in records] == [Outcome.COMPLETED] * 2
    assert replay.aborted
    assert "bad row" in str(replay.failure)


async def test_no_answer_is_read_from_a_trace_further_than_the_look_ahead(stub_server: Any) -> None:
    read = 0

    def counted() -> Iterable[TraceRequest]:
        nonlocal read
        for index in itertools.count():
            read += 1
            yield TraceRequest(index * 1000.0, 5, 1)

    async with StreamClient(stub_server.url) as client:
        replay = Replay(client, await find_target(client), PromptMaker(1), ReplayOptions(look_ahead=8))
        running = asyncio.create_task(replay.run(counted()))
        while not stub_server.stub.received:
            await asyncio.sleep(0.01)
        replay.stop()
        await running
    assert read <= 11


async def test_several_tokens_in_a_chunk_are_counted_by_usage(stub_server: Any) -> None:
    stub_server.stub.tokens_per_chunk = 4
    records, _, _ = await replayed(stub_server.url, [TraceRequest(0.0, 5, 10)])
    assert (records[0].output_tokens, len(records[0].itl_s)) == (10, 2)


async def test_energy_of_the_answers_is_kept(stub_server: Any) -> None:
    stub_server.stub.reports_energy = True
    records, _, _ = await replayed(stub_server.url, [TraceRequest(0.0, 5, 4)])
    record = records[0]
    assert (record.energy_j, record.energy_method, record.co2e_g, record.directive) == (8.0, "simulated", 0.001, "L1")


async def test_connections_are_reused(stub_server: Any) -> None:
    async with StreamClient(stub_server.url) as client:
        for _ in range(5):
            assert (await client.get("/v1/models")).status == 200
        assert len(client._open) == 1


async def test_an_absent_server_and_a_wrong_model_say_what_to_do(unused_port: int, stub_server: Any) -> None:
    async with StreamClient(f"http://127.0.0.1:{unused_port}") as client:
        with pytest.raises(TargetError, match="no connection to the server"):
            await find_target(client)
        with pytest.raises(OSError, match=r"Connect call failed|refused"):
            await client.get("/")


@pytest.mark.parametrize("url", ["127.0.0.1:80", "ftp://host", "http://"])
def test_urls_without_scheme_or_host_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="http://HOST:PORT"):
        StreamClient(url)


def test_header_injection_is_refused() -> None:
    with pytest.raises(ValueError, match="line break"):
        StreamClient("http://127.0.0.1", {"X": "a\r\nY: b"})


RAW_ANSWERS: list[tuple[bytes, Callable[[Any], bool]]] = [
    (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", lambda answer: answer.body == b"ok"),
    (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nuntil the end", lambda answer: answer.body == b"until the end"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", lambda answer: answer.body == b"ok"),
]


@pytest.mark.parametrize(("raw", "holds"), RAW_ANSWERS)
async def test_answers_as_servers_frame_them(raw: bytes, holds: Callable[[Any], bool]) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(raw)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, StreamClient(f"http://127.0.0.1:{port}") as client:
        assert holds(await client.get("/"))


@pytest.mark.parametrize("raw", [b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok", b"SSH-2.0\r\n\r\n", b""])
async def test_broken_answers_are_lost_connections(raw: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(raw)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, StreamClient(f"http://127.0.0.1:{port}") as client:
        with pytest.raises(ConnectionLostError):
            await client.get("/")


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
