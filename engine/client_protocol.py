"""What the front end needs of an engine, wherever it runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from msgspec import Struct

from engine.batch import TokenLogprobs
from engine.request import FinishReason, SamplingParams
from engine.scheduler_config import SchedulerStats as EngineStats

__all__ = [
    "EngineClientProtocol",
    "EngineHealth",
    "EngineInfo",
    "EngineStats",
    "EngineUnavailableError",
    "Generation",
    "TokenDelta",
]


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """Facts of a started engine that do not change while it lives."""

    model_id: str
    max_model_len: int
    vocab_size: int
    weight_format: str
    device: str
    num_kv_blocks: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int


@dataclass(frozen=True, slots=True)
class EngineHealth:
    """`reason` says why the engine is not ready and is None when it is."""

    ready: bool
    reason: str | None


@dataclass(frozen=True, slots=True)
class Generation:
    """One sequence to generate."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    priority: int = 0
    cache_salt: str = ""


class TokenDelta(Struct, frozen=True):
    """What one step brought for one sequence. `error` is set when `finish_reason` is ERROR. `admitted_s`: when the
    sequence's first step began (monotonic seconds); None where none has, or the engine does not say."""

    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    finish_reason: FinishReason | None
    num_cached_tokens: int
    error: str | None
    admitted_s: float | None = None


class EngineUnavailableError(Exception):
    """The engine is down or restarting."""


class EngineClientProtocol(Protocol):
    @property
    def info(self) -> EngineInfo: ...

    @property
    def health(self) -> EngineHealth: ...

    @property
    def stats(self) -> EngineStats | None: ...

    def generate(self, generation: Generation) -> AsyncIterator[TokenDelta]:
        """Deltas until one has a `finish_reason`. Closing the iterator aborts the request in the engine.

        Raises `EngineUnavailableError` when the engine is down or dies meanwhile.
        """
        ...

    async def abort(self, request_id: str) -> None: ...
