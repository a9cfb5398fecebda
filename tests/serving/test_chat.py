"""Chat completions in process: text, streams, usage, choices, log-probabilities, stop strings."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

HELLO = [{"role": "user", "content": "hello"}]


async def chat(client, **body):
    answer = await client.post("/v1/chat/completions", json={"messages": HELLO} | body)
    assert answer.status_code == 200, answer.text
    return answer


async def test_answers_with_openai_shape(client, engine):
    body = (await chat(client, model="fake/model")).json()
    assert body["object"] == "chat.completion"
    assert body["id"].startswith("chatcmpl-")
    [choice] = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": engine.answer, "refusal": None}
    assert choice["finish_reason"] == "stop"
    assert choice["logprobs"] is None
    generated = len(engine.answer.encode()) + 1
    assert body["usage"] == {
        "prompt_tokens": 8,
        "completion_tokens": generated,
        "total_tokens": 8 + generated,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


async def test_stream_joins_to_the_whole_answer(client, engine, events):
    answer = await chat(client, stream=True, stream_options={"include_usage": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    chunks = events(answer.text)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks[:-1])
    assert text == engine.answer
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1] if chunk["choices"][0]["finish_reason"]] == [
        "stop"
    ]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == len(engine.answer.encode()) + 1
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert len({chunk["id"] for chunk in chunks}) == 1


async def test_stream_without_options_has_no_usage(client, events):
    chunks = events((await chat(client, stream=True)).text)
    assert all("usage" not in chunk and chunk["choices"] for chunk in chunks)


async def test_continuous_usage_counts_every_token(client, engine, events):
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = events((await chat(client, stream=True, stream_options=options)).text)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == [1, *range(1, len(engine.answer.encode()) + 2), len(engine.answer.encode()) + 1]


async def test_content_as_parts_and_developer_role(client, engine):
    messages = [
        {"role": "developer", "content": "be kind"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    await chat(client, messages=messages)
    assert bytes(t for t in engine.generations[0].prompt_token_ids if t < 256) == b"be kinda\nb"


@pytest.mark.parametrize("tokens_per_step", [1, 3, 7])
@pytest.mark.parametrize("stop", ["jumps", ["lazy", "umps ov"], "fox jumps over", "世"])
@pytest.mark.parametrize("include", [False, True])
async def test_stop_strings_across_tokens(client, engine, events, stop, include, tokens_per_step):
    engine.tokens_per_step = tokens_per_step
    found, end = min(
        ((s, engine.answer.index(s) + len(s)) for s in ([stop] if isinstance(stop, str) else stop)), key=lambda p: p[1]
    )
    expected = engine.answer[: end if include else end - len(found)]
    fields = {"stop": stop, "include_stop_str_in_output": include}
    body = (await chat(client, **fields)).json()
    assert body["choices"][0]["message"]["content"] == expected
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["choices"][0]["stop_reason"] == found
    assert body["usage"]["completion_tokens"] == len(engine.answer[:end].encode())
    chunks = events((await chat(client, stream=True, **fields)).text)
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == expected
    assert len(engine.aborted) == 2
    assert not engine.active


async def test_min_tokens_hides_early_stop_strings(client, engine):
    engine.answer = "abcabcabc"
    body = (await chat(client, stop="b", min_tokens=3)).json()
    assert body["choices"][0]["message"]["content"] == "abca"


async def test_a_held_back_prefix_is_sent_at_the_end(client, engine):
    engine.answer = "wait for it: sto"
    assert (await chat(client, stop="stop")).json()["choices"][0]["message"]["content"] == engine.answer


async def test_stop_token_ids_end_and_are_hidden(client, engine):
    body = (await chat(client, stop_token_ids=[ord("q")])).json()
    assert body["choices"][0]["message"]["content"] == "The "
    assert body["choices"][0]["stop_reason"] == ord("q")
    assert body["usage"]["completion_tokens"] == 5


async def test_n_choices_fan_out_with_their_own_seeds(client, engine, events):
    engine.num_cached_tokens = 4
    body = (await chat(client, n=3, seed=10, max_tokens=6)).json()
    assert [generation.sampling.seed for generation in engine.generations] == [10, 11, 12]
    assert len({generation.request_id for generation in engine.generations}) == 3
    texts = [choice["message"]["content"] for choice in body["choices"]]
    assert texts == [engine.answer[k : k + 6] for k in (10, 11, 12)]
    assert [choice["finish_reason"] for choice in body["choices"]] == ["length"] * 3
    assert body["usage"]["prompt_tokens"] == 8
    assert body["usage"]["completion_tokens"] == 18
    assert body["usage"]["prompt_tokens_details"] == {"cached_tokens": 4}
    chunks = events((await chat(client, n=3, seed=10, max_tokens=6, stream=True)).text)
    for index in range(3):
        mine = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert mine[0]["delta"]["role"] == "assistant"
        assert "".join(choice["delta"]["content"] for choice in mine) == texts[index]
        assert mine[-1]["finish_reason"] == "length"


async def test_seed_wraps_instead_of_overflowing(client, engine):
    await chat(client, n=2, seed=2**63 - 1, max_tokens=1)
    assert [generation.sampling.seed for generation in engine.generations] == [2**63 - 1, -(2**63)]


async def test_logprobs_have_an_entry_for_each_token(client, engine, events):
    engine.answer = "né"
    body = (await chat(client, logprobs=True, top_logprobs=2)).json()
    content = body["choices"][0]["logprobs"]["content"]
    assert [entry["bytes"] for entry in content] == [[ord("n")], [0xC3], [0xA9], list(b"<eos>")]
    assert len(content) == body["usage"]["completion_tokens"]
    assert [len(entry["top_logprobs"]) for entry in content] == [2] * 4
    assert content[0]["top_logprobs"][0] == {"token": "n", "logprob": -0.25, "bytes": [ord("n")]}
    chunks = events((await chat(client, logprobs=True, top_logprobs=2, stream=True)).text)
    streamed = [
        entry
        for chunk in chunks
        if chunk["choices"][0]["logprobs"]
        for entry in chunk["choices"][0]["logprobs"]["content"]
    ]
    assert streamed == content


async def test_logprobs_without_top(client):
    body = (await chat(client, logprobs=True, max_tokens=2)).json()
    assert [entry["top_logprobs"] for entry in body["choices"][0]["logprobs"]["content"]] == [[], []]


async def test_every_sampling_field_reaches_the_engine(client, engine):
    await chat(
        client,
        temperature=0.5, top_p=0.9, top_k=40, min_p=0.05, seed=7, presence_penalty=0.1, frequency_penalty=-0.2,
        repetition_penalty=1.1, logit_bias={"5": -100, "17": 2.5}, min_tokens=2, max_completion_tokens=9,
        ignore_eos=True, stop_token_ids=[3], priority=4, cache_salt="tenant", logprobs=True, top_logprobs=3,
        user="someone", metadata={"a": "b"}, guided_regex="[a-z]+",
    )  # fmt: skip
    [generation] = engine.generations
    sampling = generation.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 40, 0.05)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (0.1, -0.2, 1.1)
    assert sampling.logit_bias == {5: -100, 17: 2.5}
    assert (sampling.min_tokens, sampling.max_tokens, sampling.ignore_eos) == (2, 9, True)
    assert (sampling.seed, sampling.stop_token_ids, sampling.logprobs) == (7, (3,), 3)
    assert (sampling.guide.kind, sampling.guide.text) == ("regex", "[a-z]+")
    assert (generation.priority, generation.cache_salt) == (4, "tenant")


async def test_no_limit_means_up_to_the_context_end(client, engine):
    await chat(client)
    assert engine.generations[0].sampling.max_tokens == engine.info.max_model_len - 8


async def test_nulls_mean_not_given(client, engine):
    names = ("temperature", "top_p", "n", "stop", "seed", "logit_bias", "logprobs", "max_tokens", "stream_options",
             "response_format", "tools", "tool_choice", "user", "presence_penalty", "reasoning_effort")  # fmt: skip
    await chat(client, **dict.fromkeys(names))
    assert engine.generations[0].sampling.temperature == 1.0


async def test_whole_numbers_may_be_written_as_floats(client, engine):
    await chat(client, max_tokens=3.0, n=2.0, seed=5.0)
    assert engine.generations[0].sampling.max_tokens == 3
    assert isinstance(engine.generations[1].sampling.seed, int)


async def test_tools_are_left_alone_when_not_to_be_called(client):
    await chat(client, tools=[{"type": "function", "function": {"name": "f"}}], tool_choice="none")


@pytest.mark.parametrize(
    ("field", "value", "kind"),
    [
        ("response_format", {"type": "json_object"}, "json_object"),
        ("response_format", {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}, "json_schema"),
        ("guided_json", {"type": "object"}, "json_schema"),
        ("guided_json", '{"type":"object"}', "json_schema"),
        ("structured_outputs", {"regex": "a+"}, "regex"),
        ("structured_outputs", {"json": {"type": "object"}}, "json_schema"),
        ("structured_outputs", {"json_object": True}, "json_object"),
        ("guided_choice", ["yes", "n(o)"], "regex"),
    ],
)  # fmt: skip
async def test_constraints_become_guides(client, engine, field, value, kind):
    await chat(client, **{field: value})
    guide = engine.generations[0].sampling.guide
    assert guide.kind == kind
    if kind == "json_schema":
        assert guide.text == '{"type":"object"}'
    if field == "guided_choice":
        assert guide.text == r"(yes)|(n\(o\))"


GUIDELLM = {
    "messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}],
    "max_completion_tokens": 20,
    "ignore_eos": True,
    "stream": True,
    "stream_options": {"include_usage": True, "continuous_usage_stats": True},
}
AIPERF = {
    "messages": [{"role": "user", "name": "u", "content": "hello"}],
    "max_completion_tokens": 20,
    "min_tokens": 20,
    "ignore_eos": True,
    "stream": True,
    "stream_options": {"include_usage": True},
}
VLLM_BENCH = {
    "messages": [{"role": "user", "content": "hello"}],
    "max_completion_tokens": 20,
    "temperature": 0.0,
    "ignore_eos": True,
    "stream": True,
    "stream_options": {"include_usage": True},
}


@pytest.mark.parametrize("body", [GUIDELLM, AIPERF, VLLM_BENCH], ids=["guidellm", "aiperf", "vllm bench serve"])
async def test_load_generators_get_what_they_count(client, engine, events, body):
    headers = {"x-request-id": "r-1", "x-correlation-id": "c-1", "x-session-affinity": "s-1"}
    answer = await client.post("/v1/chat/completions", json=body | {"model": "fake/model"}, headers=headers)
    assert answer.headers["x-request-id"] == "r-1"
    *chunks, last = events(answer.text)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 20
    assert last["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == engine.answer[:20]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


@given(
    answer=st.text(alphabet="abé世 ", min_size=1, max_size=30),
    stop=st.lists(st.text(alphabet="abé世", min_size=1, max_size=4), max_size=3),
    tokens_per_step=st.integers(1, 6),
    max_tokens=st.integers(1, 60),
    include=st.booleans(),
    seed=st.integers(0, 50),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_streamed_and_whole_answers_are_one_text(
    connect, fake, events, answer, stop, tokens_per_step, max_tokens, include, seed
):
    async def both():
        engine = fake(answer=answer, tokens_per_step=tokens_per_step)
        body = {"stop": stop, "max_tokens": max_tokens, "include_stop_str_in_output": include, "seed": seed, "n": 2}
        async with connect(engine) as client:
            whole = (await chat(client, logprobs=True, **body)).json()
            options = {"include_usage": True}
            chunks = events((await chat(client, logprobs=True, stream=True, stream_options=options, **body)).text)
            quiet = events((await chat(client, stream=True, **body)).text)
        assert not engine.active
        return whole, chunks, quiet

    whole, chunks, quiet = asyncio.run(both())
    assert chunks[-1]["usage"] == whole["usage"]
    for choice in whole["choices"]:
        for stream in (chunks[:-1], quiet):
            mine = [chunk["choices"][0] for chunk in stream if chunk["choices"][0]["index"] == choice["index"]]
            assert "".join(part["delta"]["content"] for part in mine) == choice["message"]["content"]
            assert [part["finish_reason"] for part in mine] == [None] * (len(mine) - 1) + [choice["finish_reason"]]
            assert mine[-1].get("stop_reason") == choice["stop_reason"]
        mine = [chunk["choices"][0] for chunk in chunks[:-1] if chunk["choices"][0]["index"] == choice["index"]]
        entries = [entry for part in mine if part["logprobs"] for entry in part["logprobs"]["content"]]
        assert entries == choice["logprobs"]["content"]
    counted = sum(len(choice["logprobs"]["content"]) for choice in whole["choices"])
    assert counted == whole["usage"]["completion_tokens"]
