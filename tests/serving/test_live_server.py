"""`gridserve serve` as users run it: a real process, a real model, the official client, real signals."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import openai
import psutil
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

pytestmark = pytest.mark.e2e
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


class Server:
    """One `gridserve serve` process."""

    def __init__(self, model: str, *options: str, environment: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "serving.cli", "serve", "--model", model, "--port", "0", "--threads", "1", *options],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | (environment or {}),
        )
        assert self.process.stdout is not None
        said = ""
        while (found := re.search(r"at (http://\S+)/v1", said)) is None:
            line = self.process.stdout.readline()
            assert line, f"the server ended; it said: {said}"
            said += line
        self.url = found[1]
        admin = re.search(r"admin API at (http://[^\s,]+)", said)
        self.admin = admin[1] if admin is not None else None

    def engine(self) -> psutil.Process:
        (engine,) = psutil.Process(self.process.pid).children()
        return engine

    def client(self, **options: object) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, **options)  # type: ignore[arg-type]

    def healthy(self) -> bool:
        return httpx.get(f"{self.url}/health").status_code == 200

    def stop(self) -> int:
        self.process.terminate()
        status = self.process.wait(timeout=60)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return status


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[Server]:
    started = Server(
        str(tiny_model), "--max-model-len", "512", "--kv-cache-memory", "4M", "--served-model-name", "tiny"
    )
    yield started
    assert started.stop() == 0


def until(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.05)


def test_the_embedded_model_answers_sensibly(embedded_model: Path) -> None:
    server = Server("smollm2-135m-instruct", "--max-model-len", "1024")
    try:
        client = server.client()
        assert [model.id for model in client.models.list()] == ["smollm2-135m-instruct"]
        whole = client.chat.completions.create(
            model="smollm2-135m-instruct", messages=QUESTION, temperature=0, max_tokens=24
        )
        assert isinstance(whole, ChatCompletion)
        assert whole.choices[0].message.content == "The capital of France is Paris."
        stream = client.chat.completions.create(
            model="smollm2-135m-instruct",
            messages=QUESTION,
            temperature=0,
            max_tokens=24,
            stream=True,
            stream_options={"include_usage": True},
        )
        pieces = list(stream)
        assert all(isinstance(chunk, ChatCompletionChunk) for chunk in pieces)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in pieces if chunk.choices)
        assert text == whole.choices[0].message.content
        assert pieces[-1].usage is not None
        assert pieces[-1].usage.completion_tokens == 8
        assert pieces[-1].usage.prompt_tokens_details.cached_tokens == 32
        schema = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"]}
        guided = client.chat.completions.create(
            model="smollm2-135m-instruct",
            messages=[{"role": "user", "content": "Name the capital of France as JSON."}],
            temperature=0,
            max_tokens=60,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": schema | {"additionalProperties": False}},
            },
        )
        assert set(json.loads(guided.choices[0].message.content or "")) == {"city"}
    finally:
        assert server.stop() == 0


async def test_many_at_once_get_the_text_they_get_alone(server: Server) -> None:
    client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none")

    async def ask(seed: int) -> str:
        stream = await client.completions.create(
            model="tiny", prompt=f"Number {seed % 3}", max_tokens=30, seed=seed % 3, temperature=0.9, stream=True
        )
        return "".join([chunk.choices[0].text async for chunk in stream if chunk.choices])

    alone = [await ask(seed) for seed in range(3)]
    together = await asyncio.gather(*(ask(seed) for seed in range(40)))
    assert together == [alone[seed % 3] for seed in range(40)]
    await client.close()


def test_n_choices_logprobs_and_stop(server: Server) -> None:
    client = server.client()
    answer = client.completions.create(model="tiny", prompt="Hello", n=3, max_tokens=8, seed=1, logprobs=2)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    for choice in answer.choices:
        assert choice.logprobs is not None
        assert len(choice.logprobs.tokens or []) == 8 or choice.finish_reason == "stop"
    greedy = client.completions.create(model="tiny", prompt="Hello", max_tokens=30, temperature=0).choices[0].text
    stop = greedy[10:13]
    stopped = client.completions.create(model="tiny", prompt="Hello", max_tokens=30, temperature=0, stop=stop)
    assert stopped.choices[0].text == greedy[: greedy.index(stop)]
    assert stopped.choices[0].finish_reason == "stop"


def test_choices_share_the_keys_and_values_of_their_prompt(server: Server) -> None:
    def hits() -> float:
        text = httpx.get(f"{server.url}/metrics").text
        found = re.search(r"^gridserve_prefix_cache_hits_total(?:\{.*\})? (\S+)$", text, re.MULTILINE)
        assert found is not None
        return float(found[1])

    before = hits()
    prompt = [11 + token for token in range(100)]
    answer = server.client().completions.create(model="tiny", prompt=prompt, n=4, max_tokens=2)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 100
    # Blocks of 32 tokens: the first choice computes the prompt, the other three find its three full blocks.
    assert hits() - before == 3 * 96


def test_a_prompt_over_the_window_is_refused_with_both_lengths(server: Server) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        server.client().completions.create(model="tiny", prompt=[7] * 700, max_tokens=5)
    assert "700" in str(caught.value)
    assert "512" in str(caught.value)


def test_hanging_up_frees_the_engine(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    body = json.dumps({"model": "tiny", "prompt": "Go", "max_tokens": 480, "ignore_eos": True, "stream": True})
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        assert b"200" in connection.recv(1000)

    def idle() -> bool:
        text = httpx.get(f"{server.url}/metrics").text
        return bool(re.search(r"^gridserve_num_requests_running(\{.*\})? 0\.0$", text, re.MULTILINE))

    until(idle, "the abandoned request is gone")


def test_a_killed_engine_is_an_error_event_then_a_recovery(server: Server) -> None:
    before = server.client().completions.create(model="tiny", prompt="Hello", max_tokens=20, temperature=0)

    def killed_on_the_way() -> bool:
        """Whether the stream ended in an error event; on a busy machine it may have been complete before the kill."""
        stream = server.client().completions.create(
            model="tiny", prompt="Go", max_tokens=480, n=8, stream=True, extra_body={"ignore_eos": True}
        )
        next(iter(stream))
        server.engine().kill()
        try:
            for _ in stream:
                pass
        except openai.APIError as error:
            return "engine" in str(error)
        finally:
            until(server.healthy, "the server is healthy again")
        return False

    assert any(killed_on_the_way() for _ in range(5))
    after = server.client().completions.create(model="tiny", prompt="Hello", max_tokens=20, temperature=0)
    assert after.choices[0].text == before.choices[0].text


def test_a_killed_server_leaves_no_engine(tiny_model: Path) -> None:
    server = Server(str(tiny_model), "--max-model-len", "256")
    engine = server.engine()
    server.process.kill()
    server.process.wait()
    assert server.process.stdout is not None
    server.process.stdout.close()
    engine.wait(timeout=30)


def test_sigterm_lets_a_running_request_finish(tiny_model: Path) -> None:
    server = Server(str(tiny_model), "--max-model-len", "512", "--served-model-name", "tiny")
    client = server.client()
    stream = client.completions.create(
        model="tiny", prompt="Go", max_tokens=200, stream=True, extra_body={"ignore_eos": True}
    )
    events = iter(stream)
    next(events)
    server.process.send_signal(signal.SIGTERM)
    assert list(events)[-1].choices[0].finish_reason == "length"
    assert server.process.wait(timeout=60) == 0
    assert server.process.stdout is not None
    server.process.stdout.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "no-such-model"], "no model is called"),
        (["--host", "0.0.0.0"], "gridserve keys create"),
        (["--compute", "cuda"], "no CUDA device"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(tiny_model: Path, options: list[str], message: str) -> None:
    command = [sys.executable, "-m", "serving.cli", "serve", "--port", "0", "--model", str(tiny_model), *options]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 1
    assert message in result.stderr
    assert result.stderr.splitlines()[-1].startswith("gridserve: ")
    assert "Traceback" not in result.stderr
