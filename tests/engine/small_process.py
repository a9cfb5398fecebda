"""A small engine process and its streams: what the tests of processes share."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from engine.client import EngineClient
from engine.client_protocol import Generation, TokenDelta
from engine.config import EngineConfig
from engine.request import SamplingParams


def config(model: Path, **changes: object) -> EngineConfig:
    settings = {"max_model_len": 512, "max_num_seqs": 32, "kv_cache_bytes": 4 << 20, "num_threads": 1} | changes
    return EngineConfig(str(model), "tiny", **settings)  # type: ignore[arg-type]


def generation(name: str, length: int = 20, **sampling: object) -> Generation:
    params = SamplingParams(**({"max_tokens": length, "temperature": 0.0, "ignore_eos": True} | sampling))
    return Generation(name, (5, 6, 7, 8), params)


async def collect(client: EngineClient, wanted: Generation) -> list[TokenDelta]:
    return [delta async for delta in client.generate(wanted)]


def tokens(deltas: list[TokenDelta]) -> list[int]:
    return [token for delta in deltas for token in delta.token_ids]


async def until(condition, what: str, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        await asyncio.sleep(0.02)
