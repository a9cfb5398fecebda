"""A deterministic engine and a byte tokenizer that implement the front end's protocols, and servers over them."""

from __future__ import annotations

import asyncio
import codecs
import socket
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from engine.batch import TokenLogprobs
from engine.client_protocol import (
    EngineHealth,
    EngineInfo,
    EngineStats,
    EngineUnavailableError,
    Generation,
    TokenDelta,
)
from engine.request import FinishReason
from serving.http_server import server_config
from serving.inference_api import create_app
from serving.service import InferenceService
from serving.settings import ApiSettings

EOS = 256
USER, ASSISTANT, SYSTEM, TOOL = 257, 258, 259, 260
NAMES = {EOS: "<eos>", USER: "<user>", ASSISTANT: "<assistant>", SYSTEM: "<system>", TOOL: "<tool>"}
ANSWER = "The quick brown fox jumps over the lazy dog — naïvely, 世界."

INFO = EngineInfo("fake/model", 512, 300, "bf16", "cpu", 64, 16, 8, 256)
READY = EngineHealth(True, None)
STATS = EngineStats(
    running=1,
    waiting=2,
    waiting_prefill_tokens=30,
    oldest_waiting_arrival_s=None,
    kv_blocks_used=16,
    kv_blocks_total=64,
    prefix_query_tokens=100,
    prefix_hit_tokens=40,
    preemptions=3,
)


class ByteDetokenizer:
    """Written apart from the engine's: decodes everything again at each token."""

    def __init__(self, stop: Sequence[str], include_stop: bool, skip_special: bool, min_tokens: int) -> None:
        self.stop_reason: str | None = None
        self._stop, self._include_stop, self._skip, self._min_tokens = stop, include_stop, skip_special, min_tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text, self._sent, self._searched, self._count = "", 0, 0, 0

    def feed(self, token_ids: Iterable[int]) -> str:
        for token_id in token_ids:
            self._count += 1
            if token_id < 256:
                self._text += self._decoder.decode(bytes([token_id]))
            elif not self._skip:
                self._text += NAMES.get(token_id, "")
            if self._count <= self._min_tokens:
                self._searched = len(self._text)
                continue
            found = [
                (self._text.find(stop, self._searched) + len(stop), stop)
                for stop in self._stop
                if self._text.find(stop, self._searched) >= 0
            ]
            if found:
                end, self.stop_reason = min(found)
                return self._release(end if self._include_stop else end - len(self.stop_reason))
        certain = len(self._text)
        for stop in self._stop:
            for size in range(1, len(stop)):
                if self._text[self._searched :].endswith(stop[:size]):
                    certain = min(certain, len(self._text) - size)
        return self._release(certain)

    def finish(self) -> str:
        if self.stop_reason is not None:
            return ""
        self._text += self._decoder.decode(b"", final=True)
        return self._release(len(self._text))

    def _release(self, end: int) -> str:
        text, self._sent = self._text[self._sent : end], max(end, self._sent)
        return text


class ByteText:
    """UTF-8 bytes as tokens, five special tokens behind them."""

    eos_token_ids = frozenset({EOS})

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return list(text.encode())

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        shown = [t for t in token_ids if t < 256 or not skip_special_tokens]
        return b"".join(self.token_bytes(t) for t in shown).decode("utf-8", "replace")

    def render_chat(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True) -> list[int]:
        ids: list[int] = []
        roles = {"user": USER, "assistant": ASSISTANT, "system": SYSTEM, "tool": TOOL}
        for position, message in enumerate(messages):
            if message["role"] == "system" and position > 0:
                raise ValueError("system message must come first")
            ids += [roles[message["role"]], *message["content"].encode(), EOS]
        return ids + ([ASSISTANT] if add_generation_prompt else [])

    def detokenizer(
        self, stop: Sequence[str], *, include_stop_str_in_output: bool, skip_special_tokens: bool, min_tokens: int
    ) -> ByteDetokenizer:
        return ByteDetokenizer(stop, include_stop_str_in_output, skip_special_tokens, min_tokens)

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < 256 else NAMES.get(token_id, "").encode()

    def token_text(self, token_id: int) -> str:
        return self.token_bytes(token_id).decode("utf-8", "replace")


@dataclass
class FakeEngine:
    """Answers every prompt with `answer`, rotated by the seed, then EOS; `step()` may be set to pace the tokens.

    The k-th generation finds `k * num_cached_tokens` tokens in the prefix cache.
    """

    info: EngineInfo = INFO
    health: EngineHealth = READY
    stats: EngineStats | None = STATS
    answer: str = ANSWER
    tokens_per_step: int = 1
    num_cached_tokens: int = 0
    error_after: int | None = None
    unavailable_after: int | None = None
    crash_after: int | None = None
    step: Callable[[], Any] | None = None
    generations: list[Generation] = field(default_factory=list)
    active: set[str] = field(default_factory=set)
    aborted: list[str] = field(default_factory=list)

    def tokens_of(self, generation: Generation) -> list[int]:
        raw = list(self.answer.encode())
        turn = (generation.sampling.seed or 0) % len(raw)
        tokens = raw[turn:] + raw[:turn]
        if generation.sampling.ignore_eos:
            return (tokens * (generation.sampling.max_tokens // len(tokens) + 1))[: generation.sampling.max_tokens]
        return [*tokens, EOS]

    async def generate(self, generation: Generation) -> AsyncIterator[TokenDelta]:
        assert generation.request_id not in self.active
        self.generations.append(generation)
        self.active.add(generation.request_id)
        cached = self.num_cached_tokens * len(self.generations)
        sampling, done = generation.sampling, False
        tokens = self.tokens_of(generation)
        limit = min(len(tokens), sampling.max_tokens)
        try:
            sent = 0
            while sent < limit:
                if self.step is not None:
                    await self.step()
                if self.error_after is not None and sent >= self.error_after:
                    done = True
                    yield TokenDelta((), (), FinishReason.ERROR, 0, "the grammar failed")
                    return
                if self.unavailable_after is not None and sent >= self.unavailable_after:
                    done = True
                    raise EngineUnavailableError("the engine restarts")
                if self.crash_after is not None and sent >= self.crash_after:
                    done = True
                    raise RuntimeError("a bug, with secrets")
                ids = tuple(tokens[sent : min(limit, sent + self.tokens_per_step)])
                stop_at = next((i for i, t in enumerate(ids) if t in sampling.stop_token_ids), None)
                if stop_at is not None:
                    ids = ids[: stop_at + 1]
                sent += len(ids)
                reason = None
                if stop_at is not None or (ids[-1] == EOS and not sampling.ignore_eos):
                    reason = FinishReason.STOP
                elif sent >= limit:
                    reason = FinishReason.LENGTH
                done = reason is not None
                yield TokenDelta(ids, self._logprobs(ids, sampling.logprobs), reason, cached, None)
                if done:
                    return
        finally:
            self.active.discard(generation.request_id)
            if not done:
                self.aborted.append(generation.request_id)

    def _logprobs(self, ids: Sequence[int], top: int | None) -> tuple[TokenLogprobs, ...]:
        if top is None:
            return ()
        return tuple(
            TokenLogprobs(-0.25, tuple(((t + k) % 256 if k else t, -0.25 - k) for k in range(top))) for t in ids
        )

    async def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def make_app():
    def make(engine: FakeEngine, **settings: Any):
        chosen = ApiSettings(**settings)
        return create_app(InferenceService(engine, ByteText(), chosen), chosen)

    return make


@pytest.fixture
async def client(engine, make_app) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(make_app(engine))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client


@pytest.fixture
def connect(make_app):
    """An in-process client over an engine and settings of the test's choice."""

    def connect(engine: FakeEngine, **settings: Any) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            transport=httpx.ASGITransport(make_app(engine, **settings)), base_url="http://localhost"
        )

    return connect


@dataclass
class LiveServer:
    port: int
    engine: FakeEngine

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)


@pytest.fixture
def serve(make_app) -> Iterator[Callable[..., LiveServer]]:
    """Start uvicorn on a free port, in a thread; stopped when the test ends."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def serve(engine: FakeEngine, **settings: Any) -> LiveServer:
        app = make_app(engine, **settings)
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(server_config(app, ApiSettings(**settings)))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        running.append((server, thread))
        return LiveServer(listener.getsockname()[1], engine)

    yield serve
    for server, thread in running:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture
def fake():
    """The fake engine's class and what tests compare with."""
    return FakeEngine


@pytest.fixture
def fake_text() -> ByteText:
    return ByteText()


@pytest.fixture
def events():
    """The JSON bodies of a stream's events; checks that it ends with `[DONE]`."""
    import json

    def events(text: str) -> list[dict[str, Any]]:
        blocks = text.split("\n\n")
        assert blocks[-1] == ""
        assert blocks[-2] == "data: [DONE]"
        return [json.loads(block.removeprefix("data: ")) for block in blocks[:-2]]

    return events


@pytest.fixture
def hold():
    """A pace for `FakeEngine.step` that stops after some tokens until it is released."""

    class Hold:
        def __init__(self) -> None:
            self.after, self.count, self.reached = 0, 0, threading.Event()

        async def __call__(self) -> None:
            self.count += 1
            if self.count > self.after:
                self.reached.set()
                await asyncio.Event().wait()
            await asyncio.sleep(0)

    return Hold()


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose path is short enough for Unix sockets."""
    with tempfile.TemporaryDirectory(prefix="gs-") as folder:
        yield Path(folder)
