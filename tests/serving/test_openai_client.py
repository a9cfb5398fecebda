"""The official openai client against a live server: every answer is parsed by its types."""

from __future__ import annotations

import openai
import pytest
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from serving.auth import ApiKeys, generate_key, hash_key, write_keys

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture
def server(serve, engine):
    return serve(engine)


@pytest.fixture
def sync_client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def check_types(value):
    """The client builds responses without validation; validate them by their own models."""
    type(value).model_validate(value.model_dump(), strict=False)
    return value


def test_chat(sync_client, engine):
    answer = check_types(sync_client.chat.completions.create(model="fake/model", messages=HELLO, n=2, logprobs=True))
    assert isinstance(answer, ChatCompletion)
    assert answer.choices[1].message.content == engine.answer
    assert answer.choices[0].logprobs.content[0].token == "T"
    assert answer.usage.prompt_tokens_details.cached_tokens == 0


def test_chat_stream(sync_client, engine):
    options = {"include_usage": True}
    with sync_client.chat.completions.create(
        model="fake/model", messages=HELLO, stream=True, stream_options=options, logprobs=True, top_logprobs=2
    ) as stream:
        chunks = [check_types(chunk) for chunk in stream]
    assert all(isinstance(chunk, ChatCompletionChunk) for chunk in chunks)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == engine.answer
    assert chunks[-1].usage.completion_tokens == len(engine.answer.encode()) + 1


def test_chat_stream_helper(sync_client, engine):
    with sync_client.chat.completions.stream(model="fake/model", messages=HELLO, n=2) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert [choice.message.content for choice in final.choices] == [engine.answer] * 2


def test_completions(sync_client, engine):
    answer = check_types(
        sync_client.completions.create(model="fake/model", prompt=["a", "b"], logprobs=2, extra_body={"top_k": 5})
    )
    assert isinstance(answer, Completion)
    assert [choice.text for choice in answer.choices] == [engine.answer] * 2
    assert engine.generations[0].sampling.top_k == 5
    with sync_client.completions.create(model="fake/model", prompt=[1, 2], stream=True) as stream:
        chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == engine.answer
    check_types(chunks[-1])  # the client's type has no null finish_reason, which OpenAI's own chunks have


def test_models(sync_client):
    [model] = sync_client.models.list().data
    assert isinstance(check_types(model), Model)
    assert sync_client.models.retrieve("fake/model").id == model.id


def test_errors_raise_their_own_classes(sync_client, engine):
    create = sync_client.chat.completions.create
    with pytest.raises(openai.BadRequestError) as caught:
        create(model="fake/model", messages=HELLO, temperature=3)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.NotFoundError) as caught:
        create(model="gpt-9", messages=HELLO)
    assert caught.value.code == "model_not_found"
    engine.error_after = 3
    with pytest.raises(openai.InternalServerError):
        create(model="fake/model", messages=HELLO)
    with (
        pytest.raises(openai.APIError, match="the grammar failed"),
        create(model="fake/model", messages=HELLO, stream=True) as stream,
    ):
        for _ in stream:
            pass


def test_keys(serve, engine, tmp_path):
    key = generate_key()
    write_keys(tmp_path / "keys", {"me": hash_key(key)})
    server = serve(engine, api_keys=ApiKeys(tmp_path / "keys"))
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=key) as client:
        assert client.models.list().data
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong") as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()


async def test_async_client(server, engine):
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        answer = await client.chat.completions.create(model="fake/model", messages=HELLO)
        assert check_types(answer).choices[0].message.content == engine.answer
        stream = await client.chat.completions.create(model="fake/model", messages=HELLO, stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        assert text == engine.answer
        completion = await client.completions.create(model="fake/model", prompt="x", stream=True)
        assert "".join([chunk.choices[0].text async for chunk in completion]) == engine.answer
