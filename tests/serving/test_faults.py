"""Capacity, an engine that is down or fails, and what streams say about it."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from engine.client_protocol import EngineHealth

HELLO = [{"role": "user", "content": "hello"}]


def post(client, **body):
    return client.post("/v1/chat/completions", json={"messages": HELLO} | body)


@pytest.mark.parametrize("stream", [False, True])
async def test_not_ready(client, engine, stream):
    engine.health = EngineHealth(False, "loading weights")
    answer = await post(client, stream=stream)
    assert answer.status_code == 503
    assert "loading weights" in answer.json()["error"]["message"]
    assert int(answer.headers["retry-after"]) > 0
    health = await client.get("/health")
    assert health.status_code == 503
    assert health.json() == {"status": "unavailable", "reason": "loading weights"}
    engine.health = EngineHealth(True, None)
    assert (await client.get("/health")).json() == {"status": "ready", "reason": None}
    assert (await post(client)).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("fault", "status"), [("error_after", 500), ("unavailable_after", 503), ("crash_after", 500)])
async def test_fault_before_the_first_token(client, engine, fault, status, stream):
    setattr(engine, fault, 0)
    answer = await post(client, stream=stream)
    assert answer.status_code == status
    assert "secrets" not in answer.text
    assert ("retry-after" in answer.headers) == (status == 503)
    setattr(engine, fault, None)
    assert (await post(client)).status_code == 200


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize(
    ("fault", "kind"),
    [("error_after", "server_error"), ("unavailable_after", "service_unavailable"), ("crash_after", "server_error")],
)
async def test_fault_in_the_middle_of_a_stream(client, engine, events, fault, kind, n):
    setattr(engine, fault, 5)
    answer = await post(client, stream=True, n=n)
    assert answer.status_code == 200
    *chunks, last = events(answer.text)
    assert last["error"]["type"] == kind
    assert all("error" not in chunk for chunk in chunks)
    assert "secrets" not in answer.text
    assert not engine.active


async def test_fault_in_the_middle_of_a_whole_answer(client, engine):
    engine.error_after = 5
    answer = await post(client, n=3)
    assert answer.status_code == 500
    assert "the grammar failed" in answer.json()["error"]["message"]
    assert not engine.active


@pytest.mark.parametrize("stream", [False, True])
async def test_over_capacity(connect, engine, stream):
    gate = asyncio.Event()
    engine.step = gate.wait
    capacity = engine.info.max_num_seqs + 2
    async with connect(engine, max_queued_requests=2) as client:
        waiting = [asyncio.create_task(post(client, stream=stream, n=2)) for _ in range(capacity // 2)]
        while len(engine.active) < capacity:
            await asyncio.sleep(0)
        answer = await post(client, stream=stream)
        assert answer.status_code == 429
        assert answer.json()["error"]["code"] == "over_capacity"
        assert int(answer.headers["retry-after"]) >= 1
        gate.set()
        assert {(await task).status_code for task in waiting} == {200}
        assert (await post(client, stream=stream)).status_code == 200


async def test_more_sequences_than_the_server_ever_holds(connect, engine):
    async with connect(engine, max_queued_requests=2) as client:
        answer = await post(client, n=11)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "n"


async def test_places_are_given_back_after_errors(connect, engine):
    async with connect(engine, max_queued_requests=0) as client:
        for _ in range(3 * engine.info.max_num_seqs):
            assert (await post(client, max_tokens=10_000)).status_code == 400
        engine.error_after = 2
        for _ in range(3):
            assert (await post(client, n=8)).status_code == 500
            assert (await post(client, n=8, stream=True)).status_code == 200
        engine.error_after = None
        assert (await post(client, n=8)).status_code == 200


async def test_request_ids(client):
    answer = await client.get("/health", headers={"x-request-id": "abc-1.2:3_4"})
    assert answer.headers["x-request-id"] == "abc-1.2:3_4"
    for bad in ("a b", "x" * 129, "<script>", ""):
        assert (await client.get("/health", headers={"x-request-id": bad})).headers["x-request-id"] != bad
    assert (await client.get("/nope", headers={"x-request-id": "mine"})).headers["x-request-id"] == "mine"


async def test_equal_request_ids_do_not_collide_in_the_engine(client, engine):
    headers = {"x-request-id": "same"}
    body = {"prompt": "x", "max_tokens": 3}
    answers = await asyncio.gather(*(client.post("/v1/completions", json=body, headers=headers) for _ in range(4)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({generation.request_id for generation in engine.generations}) == 4


async def test_small_endpoints(client, engine):
    assert (await client.get("/v1/models")).json()["data"][0]["max_model_len"] == 512
    assert (await client.get("/v1/models/fake/model")).json()["id"] == "fake/model"
    assert (await client.get("/version")).json()["version"]
    assert (await client.get("/")).json()["model"] == "fake/model"
    head = await client.head("/")
    assert (head.status_code, head.content) == (200, b"")
    tokens = (await client.post("/tokenize", json={"prompt": "né", "return_token_strs": True})).json()
    assert tokens == {"count": 3, "max_model_len": 512, "tokens": [110, 195, 169], "token_strs": ["n", "�", "�"]}
    assert (await client.post("/tokenize", json={"messages": HELLO})).json()["count"] == 8
    assert (await client.post("/detokenize", json={"tokens": [110, 195, 169, 256]})).json() == {"prompt": "né<eos>"}


async def test_a_large_prompt_is_tokenised_off_the_loop(make_app, fake, client):
    import dataclasses

    engine = fake()
    engine.info = dataclasses.replace(engine.info, max_model_len=400_000)
    transport = httpx.ASGITransport(make_app(engine))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        answer = await client.post("/v1/completions", json={"prompt": "x" * 300_000, "max_tokens": 1})
        assert answer.json()["usage"]["prompt_tokens"] == 300_000
        body = json.dumps({"prompt": [5] * 100_000, "max_tokens": 1})
        answer = await client.post("/v1/completions", content=body, headers={"content-type": "application/json"})
        assert answer.json()["usage"]["prompt_tokens"] == 100_000
