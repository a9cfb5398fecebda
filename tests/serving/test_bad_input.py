"""The table of bad inputs: each with its status and `param`; afterwards the server still answers."""

from __future__ import annotations

import asyncio
import json

import pytest
from pydantic import ValidationError

from serving.openai_requests import (
    MAX_CHOICES,
    MAX_LOGIT_BIAS_ENTRIES,
    MAX_PROMPTS,
    MAX_STOP_STRINGS,
    ChatCompletionRequest,
    DetokenizeRequest,
)

HELLO = [{"role": "user", "content": "hello"}]
JSON = {"content-type": "application/json"}


def error_of(answer, status):
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    return body["error"]


async def still_answers(client):
    answer = await client.post("/v1/completions", json={"prompt": "x", "max_tokens": 1})
    assert answer.status_code == 200, answer.text


BAD_CHAT_FIELDS = [
    ({"n": 0}, "n"),
    ({"n": MAX_CHOICES + 1}, "n"),
    ({"n": True}, "n"),
    ({"n": "2"}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_tokens": 10**30}, "max_tokens"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
    ({"max_completion_tokens": 10_000}, "max_completion_tokens"),
    ({"min_tokens": 9, "max_tokens": 3}, "min_tokens"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"min_p": 1.5}, "min_p"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"frequency_penalty": -3}, "frequency_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"seed": 2**64}, "seed"),
    ({"stop": [""]}, "stop[0]"),
    ({"stop": ["a"] * (MAX_STOP_STRINGS + 1)}, "stop"),
    ({"stop": "x" * 10_000}, "stop"),
    ({"stop": 5}, "stop"),
    ({"stop_token_ids": [300]}, "stop_token_ids"),
    ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
    ({"logit_bias": {"300": 1}}, "logit_bias"),
    ({"logit_bias": {"-1": 1}}, "logit_bias"),
    ({"logit_bias": {"a": 1}}, "logit_bias"),
    ({"logit_bias": {"٣": 1}}, "logit_bias"),
    ({"logit_bias": {"5": 101}}, "logit_bias.5"),
    ({"logit_bias": {str(k): 1 for k in range(MAX_LOGIT_BIAS_ENTRIES + 1)}}, "logit_bias"),
    ({"logit_bias": [1]}, "logit_bias"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logprobs": 5}, "logprobs"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": "yes"}, "stream"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format"),
    ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.schema"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}}},
        "response_format.json_schema.schema",
    ),
    ({"guided_regex": "("}, "guided_regex"),
    ({"guided_regex": "(" * 10_000}, "guided_regex"),
    ({"guided_regex": "a" * 100_000}, "guided_regex"),
    ({"guided_json": "{"}, "guided_json"),
    ({"guided_json": json.loads('{"a":' * 200 + "1" + "}" * 200)}, "guided_json"),
    ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex"),
    ({"structured_outputs": {"grammar": "x"}}, "structured_outputs.grammar"),
    ({"guided_grammar": "root ::= x"}, "guided_grammar"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"tools": [{"type": "function"}], "tool_choice": "auto"}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"audio": {"voice": "x"}}, "audio"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"prediction": {"type": "content"}}, "prediction"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"reasoning_effort": "high"}, "reasoning_effort"),
    ({"prompt_logprobs": 0}, "prompt_logprobs"),
    ({"truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
    ({"chat_template": "{{ 1 }}"}, "chat_template"),
    ({"chat_template_kwargs": {"x": 1}}, "chat_template_kwargs"),
    ({"use_beam_search": True}, "use_beam_search"),
    ({"store": True}, "store"),
    ({"user": 5}, "user"),
    ({"priority": 2**40}, "priority"),
    ({"cache_salt": "x" * 1000}, "cache_salt"),
    ({"messages": []}, "messages"),
    ({"messages": "hello"}, "messages"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "assistant"}]}, "messages[0].content"),
    ({"messages": [{"role": "assistant", "content": 5}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]},
     "messages[0].content[0].type"),
    ({"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "late"}]}, "messages"),
    ({"messages": [{"role": "user", "content": "x" * 600}]}, "messages"),
]  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("fields", "param"), BAD_CHAT_FIELDS, ids=lambda value: str(value)[:48])
async def test_bad_chat_field(client, engine, fields, param, stream):
    base = {"messages": HELLO} | ({"stream": True} if stream and "stream_options" not in fields else {})
    error = error_of(await client.post("/v1/chat/completions", json=base | fields), 400)
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert not engine.generations
    await still_answers(client)


BAD_COMPLETION_FIELDS = [
    ({}, "prompt"),
    ({"prompt": None}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [[]]}, "prompt[0]"),
    ({"prompt": ["a", 5]}, "prompt[0]"),
    ({"prompt": [True]}, "prompt[0]"),
    ({"prompt": [1.5]}, "prompt[0]"),
    ({"prompt": [300]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [10**40]}, "prompt"),
    ({"prompt": ["a"] * (MAX_PROMPTS + 1)}, "prompt"),
    ({"prompt": ["a", ""]}, "prompt"),
    ({"prompt": [1] * 600}, "prompt"),
    ({"prompt": "x", "suffix": "y"}, "suffix"),
    ({"prompt": "x", "best_of": 2}, "best_of"),
    ({"prompt": "x", "echo": True, "logprobs": 1}, "logprobs"),
    ({"prompt": "x", "logprobs": 21}, "logprobs"),
    ({"prompt": "x", "logprobs": True}, "logprobs"),
    ({"prompt": "x", "max_tokens": 512}, "max_tokens"),
]


@pytest.mark.parametrize(("fields", "param"), BAD_COMPLETION_FIELDS, ids=lambda value: str(value)[:48])
async def test_bad_completion_field(client, fields, param):
    error = error_of(await client.post("/v1/completions", json=fields), 400)
    assert error["param"] == param
    await still_answers(client)


async def test_context_overflow_says_both_lengths(client):
    error = error_of(await client.post("/v1/completions", json={"prompt": "x" * 700}), 400)
    assert error["code"] == "context_length_exceeded"
    assert "700" in error["message"]
    assert "512" in error["message"]
    error = error_of(await client.post("/v1/completions", json={"prompt": "x" * 500, "max_tokens": 13}), 400)
    assert {"500", "13", "512", "12"} <= set(error["message"].replace(";", "").split())


MALFORMED = [
    b"", b"{", b"nonsense", b"[]", b"null", b"5", b'"text"', b"{}x", b'{"messages": NaN}', b'{"n": Infinity}',
    b'{"temperature": 1e999}', b'{"n": ' + b"9" * 5000 + b"}", b"[" * 100_000, b'{"a":' * 100_000,
    b'{"a":' * 900 + b"1" + b"}" * 900, b'{"messages": "\xff\xfe"}', b'{"messages": "\xed\xa0\x80"}',
    b'{"prompt": "\\ud800"}', b'{"prompt": "\\udc00\\ud800 text"}', b"\xef\xbb\xbf{}", b"\x00", b'{"prompt": "a\nb"}',
]  # fmt: skip


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"])
@pytest.mark.parametrize("body", MALFORMED, ids=lambda body: repr(body[:20]))
async def test_malformed_body(client, path, body):
    error_of(await client.post(path, content=body, headers=JSON), 400)
    await still_answers(client)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
async def test_other_content_types(client, kind):
    headers = {"content-type": kind} if kind else {}
    error_of(await client.post("/v1/completions", content=b'{"prompt": "x"}', headers=headers), 415)
    await still_answers(client)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"])
async def test_unknown_model(client, path):
    valid = {"messages": HELLO} if "chat" in path else {"prompt": "x"} if path != "/detokenize" else {"tokens": [1]}
    error = error_of(await client.post(path, json=valid | {"model": "gpt-9"}), 404)
    assert (error["param"], error["code"]) == ("model", "model_not_found")


async def test_unknown_routes_and_methods(client):
    error_of(await client.get("/nope"), 404)
    error_of(await client.post("/v1/nope", json={}), 404)
    answer = await client.get("/v1/chat/completions")
    error_of(answer, 405)
    assert answer.headers["allow"] == "POST"
    error_of(await client.post("/health"), 405)
    error_of(await client.get("/v1/models/other"), 404)


async def test_body_larger_than_declared_limit(client, connect, engine):
    async with connect(engine, max_body_bytes=1000) as client:
        error_of(await client.post("/v1/completions", json={"prompt": "x" * 2000}), 413)
        error_of(await client.post("/nope", json={"prompt": "x" * 2000}), 413)
        await still_answers(client)


async def test_body_without_length_is_counted_on_the_way(connect, engine):
    sent = 0

    async def endless():
        nonlocal sent
        while True:
            sent += 100
            yield b"x" * 100

    async with connect(engine, max_body_bytes=1000) as client:
        error_of(await client.post("/v1/completions", content=endless(), headers=JSON), 413)
        assert sent <= 1300
        await still_answers(client)


async def test_slow_body_is_given_up(connect, engine):
    async def never():
        yield b"{"
        await asyncio.Event().wait()

    async with connect(engine, body_timeout_s=0.02) as client:
        error_of(await client.post("/v1/completions", content=never(), headers=JSON), 408)


async def test_large_headers(client):
    error_of(await client.get("/health", headers={"x-large": "x" * 70_000}), 431)
    error_of(await client.get("/health?" + "x" * 40_000, headers={"a": "x" * 40_000}), 431)
    await still_answers(client)


async def test_host_header(connect, engine):
    async with connect(engine, allowed_hosts=("localhost", "[::1]")) as client:
        for host in ("evil.example", "localhost.evil.example", "a/x?", "", "@localhost"):
            error_of(await client.get("/health", headers={"host": host}), 400)
        for host in ("localhost", "localhost:8000", "LOCALHOST", "[::1]:8000"):
            assert (await client.get("/health", headers={"host": host})).status_code == 200


async def test_a_foreign_name_does_not_reach_an_unguarded_loopback_server(client):
    error_of(await client.get("/v1/models", headers={"host": "rebound.example:8000"}), 400)
    assert (await client.get("/v1/models", headers={"host": "127.0.0.1:8000"})).status_code == 200


async def test_bodies_held_at_once_are_bounded(connect, engine):
    gate = asyncio.Event()
    engine.step = gate.wait
    body = {"prompt": "x" * 300, "max_tokens": 1}
    async with connect(engine, max_inflight_body_bytes=1000) as client:
        held = [asyncio.create_task(client.post("/v1/completions", json=body)) for _ in range(3)]
        while len(engine.active) < 3 and not any(task.done() for task in held):
            await asyncio.sleep(0)
        answer = await client.post("/v1/completions", json=body)
        assert error_of(answer, 429)["code"] == "over_capacity"
        assert "retry-after" in answer.headers
        gate.set()
        assert [(await task).status_code for task in held].count(200) >= 2
        for _ in range(5):
            assert (await client.post("/v1/completions", json=body)).status_code == 200


async def test_unknown_fields_are_logged_once_and_ignored(client, caplog):
    body = {"prompt": "x", "max_tokens": 1, "frobnicate": 3, "evil\nname" + "x" * 500: 1}
    assert (await client.post("/v1/completions", json=body)).status_code == 200
    [record] = [record for record in caplog.records if "ignored" in record.message]
    assert "frobnicate" in record.message
    assert "\n" not in record.message
    assert len(record.message) < 400


async def test_tokenize_and_detokenize_refuse(client):
    assert error_of(await client.post("/tokenize", json={}), 400)["param"] == "prompt"
    assert error_of(await client.post("/tokenize", json={"prompt": "a", "messages": HELLO}), 400)["param"] == "prompt"
    assert error_of(await client.post("/detokenize", json={"tokens": [300]}), 400)["param"] == "tokens"
    assert error_of(await client.post("/detokenize", json={"tokens": ["a"]}), 400)["param"] == "tokens[0]"


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (DetokenizeRequest, {"tokens": ["a"] * 5000}),
        (ChatCompletionRequest, {"messages": [5] * 4000}),
        (ChatCompletionRequest, {"messages": HELLO, "logit_bias": {str(k): "x" for k in range(5000)}}),
    ],
)
def test_a_large_bad_value_costs_one_error(model, body):
    with pytest.raises(ValidationError) as caught:
        model.model_validate(body)
    assert caught.value.error_count() == 1
