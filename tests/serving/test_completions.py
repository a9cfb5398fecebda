"""Text completions in process: every shape of prompt, echo, legacy log-probabilities."""

from __future__ import annotations

import asyncio

import pytest


async def complete(client, prompt, **body):
    answer = await client.post("/v1/completions", json={"prompt": prompt} | body)
    assert answer.status_code == 200, answer.text
    return answer


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("ab", [(97, 98)]),
        ([97, 98], [(97, 98)]),
        (["ab", "c"], [(97, 98), (99,)]),
        ([[97, 98], [99]], [(97, 98), (99,)]),
    ],
)
async def test_prompt_shapes(client, engine, prompt, expected):
    body = (await complete(client, prompt, max_tokens=3)).json()
    assert [generation.prompt_token_ids for generation in engine.generations] == expected
    assert [choice["index"] for choice in body["choices"]] == list(range(len(expected)))
    assert body["object"] == "text_completion"
    assert body["usage"]["prompt_tokens"] == sum(map(len, expected))
    assert body["usage"]["completion_tokens"] == 3 * len(expected)


async def test_choices_of_several_prompts_stand_in_order(client, engine):
    body = (await complete(client, ["a", "b"], n=2, seed=0, max_tokens=2)).json()
    assert [generation.prompt_token_ids[0] for generation in engine.generations] == [97, 97, 98, 98]
    assert [choice["text"] for choice in body["choices"]] == ["Th", "he", "Th", "he"]
    assert body["usage"]["prompt_tokens"] == 2


@pytest.mark.parametrize("stream", [False, True])
async def test_the_choices_of_a_long_prompt_begin_once_its_first_choice_has_computed_it(client, engine, stream):
    gate = asyncio.Event()
    engine.step = gate.wait
    longer = engine.info.block_size + 1
    long = asyncio.create_task(complete(client, ["x" * longer, "y" * longer], n=3, max_tokens=2, stream=stream))
    short = asyncio.create_task(complete(client, "z", n=3, max_tokens=2))
    while len(engine.active) < 5:
        await asyncio.sleep(0)
    for _ in range(50):
        await asyncio.sleep(0)
    assert [generation.prompt_token_ids[0] for generation in engine.generations] == [120, 121, 122, 122, 122]
    gate.set()
    await long
    assert (await short).json()["usage"]["completion_tokens"] == 6
    assert (
        sorted(generation.prompt_token_ids[0] for generation in engine.generations) == [120] * 3 + [121] * 3 + [122] * 3
    )


async def test_a_first_choice_that_fails_ends_those_that_wait_for_it(client, engine):
    engine.error_after = 0
    body = {"prompt": "x" * (engine.info.block_size + 1), "n": 4}
    assert (await client.post("/v1/completions", json=body)).status_code == 500
    assert len(engine.generations) == 1
    assert not engine.active
    engine.error_after = None
    assert (await client.post("/v1/completions", json=body)).status_code == 200


@pytest.mark.parametrize("prompt", ["say ", [115, 97, 121, 32]])
async def test_echo(client, engine, events, prompt):
    assert (await complete(client, prompt, echo=True)).json()["choices"][0]["text"] == "say " + engine.answer
    chunks = events((await complete(client, prompt, echo=True, stream=True)).text)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "say " + engine.answer


async def test_stream_joins_and_reports_usage(client, engine, events):
    options = {"include_usage": True}
    chunks = events((await complete(client, ["a", "b"], stream=True, stream_options=options)).text)
    for index in range(2):
        mine = [chunk["choices"][0] for chunk in chunks[:-1] if chunk["choices"][0]["index"] == index]
        assert "".join(choice["text"] for choice in mine) == engine.answer
        assert [choice["finish_reason"] for choice in mine][-1] == "stop"
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["prompt_tokens"] == 2


async def test_legacy_logprobs(client, engine, events):
    engine.answer = "né!"
    logprobs = (await complete(client, "x", logprobs=2)).json()["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["n", "bytes:\\xc3", "bytes:\\xa9", "!", "<eos>"]
    assert logprobs["text_offset"] == [0, 1, 1, 2, 3]
    assert logprobs["token_logprobs"] == [-0.25] * 5
    assert logprobs["top_logprobs"][0] == {"n": -0.25, "o": -1.25}
    chunks = events((await complete(client, "x", logprobs=2, stream=True)).text)
    for name, whole in logprobs.items():
        assert [entry for chunk in chunks for entry in chunk["choices"][0]["logprobs"][name]] == whole


async def test_logprobs_zero_has_no_alternatives(client):
    logprobs = (await complete(client, "x", logprobs=0, max_tokens=1)).json()["choices"][0]["logprobs"]
    assert logprobs["top_logprobs"] is None
    assert logprobs["tokens"] == ["T"]


async def test_what_vllm_bench_sends(client):
    fields = {"model": "fake/model", "temperature": 0.0, "repetition_penalty": 1.0, "max_tokens": 4, "logprobs": None}
    await complete(client, [1, 2, 3], stream=True, stream_options={"include_usage": True}, **fields)


async def test_best_of_equal_to_n(client):
    await complete(client, "x", n=2, best_of=2, max_tokens=1)
