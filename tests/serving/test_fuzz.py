"""The OpenAPI document and the server agree, whatever is sent; no body answers 5xx."""

from __future__ import annotations

import asyncio
import json
import re

import httpx
import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import AcceptedNegativeData
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from serving.openai_requests import ChatCompletionRequest, CompletionRequest


def rejects_what_the_document_refuses(ctx, response, case):
    """`negative_data_rejection`, but for bodies that the document allows after all: a message is changed so that it no
    longer fits one of the roles that share its schema, and then fits another of them."""
    try:
        return negative_data_rejection(ctx, response, case)
    except AcceptedNegativeData:
        document = case.operation.schema.raw_schema
        body = document["paths"][case.operation.path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        if not jsonschema_rs.validator_for({**body, "components": document["components"]}).is_valid(case.body):
            raise
        return None


CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
    rejects_what_the_document_refuses,
    unsupported_method,
]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@pytest.fixture
def engine(fake):
    engine = fake()
    engine.answer = "ab"
    return engine


@pytest.fixture
def api(make_app, engine):
    return make_app(engine, allowed_hosts=("testserver", "localhost"), max_body_bytes=2**26)


def nothing_is_left(api, engine):
    """No sequence runs on in the engine, and no place is taken."""
    assert not engine.active
    assert 'gridserve_api_sequences_in_flight{model_name="fake/model"} 0.0' in get(api, "/metrics").text


def conforms(api, mode, **how):
    schema = schemathesis.openapi.from_asgi("/openapi.json", api)
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) == 10

    for operation in operations:
        if mode is GenerationMode.NEGATIVE and not operation.body:
            continue

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(deadline=None, suppress_health_check=list(HealthCheck), database=None, **how)
        def check_case(case):
            case.call_and_validate(checks=CHECKS)

        check_case()


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_document_and_answers_agree(api, engine, mode):
    conforms(api, mode, max_examples=25, derandomize=True)
    nothing_is_left(api, engine)


GOOD = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}], "n": 2, "logprobs": True},
    "/v1/completions": {"prompt": ["x", "y"], "logprobs": 2},
    "/tokenize": {"prompt": "x", "return_token_strs": True},
    "/detokenize": {"tokens": [1, 2]},
}


@pytest.mark.parametrize("path", GOOD)
@pytest.mark.parametrize("more", [{}, {"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}])
def test_good_requests_conform(api, path, more):
    schema = schemathesis.openapi.from_asgi("/openapi.json", api)
    case = schema[path]["POST"].Case(body=GOOD[path] | more, media_type="application/json")
    assert case.call_and_validate(checks=CHECKS).status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_document_and_answers_agree_at_length(api, engine, mode):
    """5,000 requests in each mode: 1,250 to each of the four operations that take a body."""
    conforms(api, mode, max_examples=1250)
    nothing_is_left(api, engine)
    counts = re.findall(r"^gridserve_http_requests_total\{.*\} ([0-9.]+)$", get(api, "/metrics").text, re.MULTILINE)
    print(f"{sum(map(float, counts)):.0f} requests")
    assert sum(map(float, counts)) >= 5000


def test_what_the_edge_answers_is_documented(api):
    paths = json.loads(get(api, "/openapi.json").text)["paths"]
    for path, operations in paths.items():
        for method, operation in operations.items():
            statuses = {int(status) for status in operation["responses"]}
            assert statuses >= {200, 400, 413, 431, 500}, path
            assert 422 not in statuses
            if method == "post":
                assert statuses >= {401, 404, 408, 415, 429}, path


def get(app, path):
    async def send():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get(path)

    return asyncio.run(send())


def post(app, path, content):
    async def send():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.post(path, content=content, headers={"content-type": "application/json"})

    return asyncio.run(send())


def bodies(model, valid):
    names = sorted(set(model.model_fields) | {"tools", "audio", "frobnicate"})
    return st.dictionaries(st.sampled_from(names), json_values, max_size=5).map(lambda changes: valid | changes)


FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


@given(bodies(ChatCompletionRequest, {"messages": [{"role": "user", "content": "x"}]}))
@FUZZ
def test_chat_bodies_never_break_the_server(api, body):
    check(api, "/v1/chat/completions", body)


@given(bodies(CompletionRequest, {"prompt": "x"}))
@FUZZ
def test_completion_bodies_never_break_the_server(api, body):
    check(api, "/v1/completions", body)


def check(api, path, body):
    answer = post(api, path, json.dumps(body))
    assert answer.status_code in (200, 400, 404), (answer.status_code, answer.text)
    if answer.status_code != 200:
        assert answer.json()["error"]["message"]


@given(st.binary(max_size=64) | st.text(max_size=64).map(lambda text: text.encode("utf-8", "surrogatepass")))
@example(b'{"messages": "\xed\xa0\x80"}')
@FUZZ
def test_bytes_never_break_the_server(api, body):
    assert post(api, "/v1/completions", body).status_code == 400
