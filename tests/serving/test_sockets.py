"""Real sockets: clients that hang up, heads that do not end, bytes that are not HTTP."""

from __future__ import annotations

import asyncio
import functools
import json
import time

import httpx
import pytest

HEAD = "POST {} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def request_bytes(path, body, extra=""):
    payload = json.dumps(body).encode()
    return f"{HEAD.format(path)}Content-Length: {len(payload)}\r\n{extra}\r\n".encode() + payload


def eventually(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def still_answers(server):
    answer = httpx.get(f"{server.url}/health")
    assert answer.status_code == 200


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("after", [0, 12])
def test_hanging_up_aborts_in_the_engine(serve, engine, hold, path, stream, n, after):
    engine.step = hold
    hold.after = after * n
    server = serve(engine)
    body = {"n": n, "stream": stream, "messages": [{"role": "user", "content": "hello"}], "prompt": "x"}
    body.pop("prompt" if "chat" in path else "messages")
    connection = server.connect()
    connection.sendall(request_bytes(path, body))
    assert hold.reached.wait(10)
    if stream and after:
        assert b"data: " in connection.recv(65536)
    assert len(engine.active) == n
    connection.close()
    eventually(lambda: not engine.active)
    assert len(engine.aborted) == n
    still_answers(server)
    metrics = httpx.get(f"{server.url}/metrics").text
    assert f'gridserve_request_success_total{{finished_reason="abort",model_name="fake/model"}} {n}.0' in metrics
    assert 'gridserve_api_sequences_in_flight{model_name="fake/model"} 0.0' in metrics


def test_hanging_up_while_the_body_is_sent(serve, engine):
    server = serve(engine)
    for _ in range(5):
        connection = server.connect()
        connection.sendall(request_bytes("/v1/completions", {"prompt": "x" * 100})[:-50])
        connection.close()
    still_answers(server)
    assert not engine.generations


def test_a_reader_that_never_reads_does_not_stop_others(serve, engine):
    engine.answer = "x" * 400
    server = serve(engine)
    stuck = server.connect()
    body = {"prompt": "x", "stream": True, "n": 4, "ignore_eos": True, "max_tokens": 500, "logprobs": 20}
    stuck.sendall(request_bytes("/v1/completions", body))
    answer = httpx.post(f"{server.url}/v1/completions", json={"prompt": "x", "max_tokens": 5})
    assert answer.status_code == 200
    stuck.close()
    eventually(lambda: not engine.active)


def read_all(connection):
    received = b""
    try:
        while chunk := connection.recv(65536):
            received += chunk
    except ConnectionError:
        pass
    return received


def test_a_head_without_end_is_cut_off(serve, engine):
    server = serve(engine)
    connection = server.connect()
    sent = 0
    try:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Large: ")
        while sent < 64 * 1024 * 1024:
            connection.sendall(b"x" * 16384)
            sent += 16384
    except ConnectionError:
        pass
    assert sent < 16 * 1024 * 1024
    read_all(connection)
    connection.close()
    still_answers(server)


def test_a_large_head_is_answered_431(serve, engine):
    server = serve(engine)
    connection = server.connect()
    connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Large: " + b"x" * 100_000 + b"\r\n\r\n")
    assert b" 431 " in read_all(connection).split(b"\r\n")[0]
    connection.close()
    still_answers(server)


def test_a_head_that_begins_behind_a_large_body_is_not_mistaken_for_a_large_head(serve, engine):
    server = serve(engine, max_header_bytes=2000)
    first = request_bytes("/detokenize", {"tokens": [120] * 3000})
    last = request_bytes("/detokenize", {"tokens": [120] * 3000}, extra="Connection: close\r\n")
    with server.connect() as connection:
        connection.sendall(first + last[:30])
        received = connection.recv(65536)
        assert received.startswith(b"HTTP/1.1 200")
        connection.sendall(last[30:])
        assert (received + read_all(connection)).count(b"HTTP/1.1 200") == 2


async def test_many_streams_of_which_some_hang_up(serve, engine):
    engine.step = functools.partial(asyncio.sleep, 0)
    server = serve(engine)
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, limits=limits, timeout=30) as client:

        async def stream(number):
            body = {"prompt": "x", "stream": True, "seed": number, "ignore_eos": True, "max_tokens": 200}
            text = ""
            async with client.stream("POST", "/v1/completions", json=body) as answer:
                async for line in answer.aiter_lines():
                    if line.startswith("data: {"):
                        text += json.loads(line[6:])["choices"][0]["text"]
                        if number % 10 == 0:
                            return None
            return text

        texts = await asyncio.gather(*(stream(number) for number in range(100)))
    turned = [engine.answer.encode()[k:] + engine.answer.encode()[:k] for k in range(len(engine.answer.encode()))]
    for number, text in enumerate(texts):
        if number % 10:
            expected = (turned[number % len(turned)] * 10)[:200].decode("utf-8", "replace")
            assert text == expected
    eventually(lambda: not engine.active)
    metrics = httpx.get(f"{server.url}/metrics").text
    assert 'gridserve_api_sequences_in_flight{model_name="fake/model"} 0.0' in metrics


@pytest.mark.parametrize(
    "raw",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /" + b"%ff%00" * 10 + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET /v1/models/%2e%2e/%00 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade, close\r\n\r\n",
    ],
    ids=lambda raw: repr(raw[:24]),
)
def test_bytes_that_are_not_a_good_request(serve, engine, raw):
    server = serve(engine)
    with server.connect() as connection:
        connection.sendall(raw)
        connection.shutdown(1)
        first = read_all(connection).split(b"\r\n")[0]
        assert not first or first.split(b" ")[1][:1] in (b"2", b"4"), first
    still_answers(server)


def test_chunked_body_over_the_limit(serve, engine):
    server = serve(engine, max_body_bytes=100_000)
    with server.connect() as connection:
        connection.sendall(f"{HEAD.format('/v1/completions')}Transfer-Encoding: chunked\r\n\r\n".encode())
        try:
            for _ in range(1000):
                connection.sendall(b"2710\r\n" + b"x" * 10_000 + b"\r\n")
        except ConnectionError:
            pass
        assert b" 413 " in read_all(connection).split(b"\r\n")[0]
    still_answers(server)
