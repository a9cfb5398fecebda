"""How a stream is written: what belongs together goes out in one piece."""

from __future__ import annotations

import asyncio
import json

import pytest


async def bodies(app, path, body):
    """The `http.response.body` messages of a streamed answer."""
    sent, asked = [], [{"type": "http.request", "body": json.dumps(body | {"stream": True}).encode()}]

    async def receive():
        if asked:
            return asked.pop()
        return await asyncio.Event().wait()

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"host", b"localhost")],
    }
    await app(scope, receive, send)
    assert sent[0]["status"] == 200
    return sent[1:]


@pytest.mark.parametrize("options", [None, {"include_usage": True}])
@pytest.mark.parametrize(
    ("path", "prompt"),
    [
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
    ],
)
async def test_one_write_for_a_token_and_one_for_the_last_with_the_end(make_app, engine, path, prompt, options):
    engine.answer = "abcdefgh"
    sent = await bodies(make_app(engine), path, prompt | {"max_tokens": 5, "stream_options": options})
    assert len(sent) == 5
    assert [message["more_body"] for message in sent] == [True] * 4 + [False]
    last = sent[-1]["body"].decode().split("\n\n")
    assert '"length"' in last[0]
    assert last[-2:] == ["data: [DONE]", ""]
    assert len(last) == (4 if options else 3)


async def test_a_failure_behind_the_first_token_is_written_with_the_end(make_app, engine):
    engine.error_after = 2
    sent = await bodies(make_app(engine), "/v1/completions", {"prompt": "x", "max_tokens": 5})
    assert len(sent) == 3
    assert b'"engine_error"' in sent[-1]["body"]
    assert sent[-1]["body"].endswith(b"data: [DONE]\n\n")
    assert not sent[-1]["more_body"]
