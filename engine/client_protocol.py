"""What the front end needs from the engine, whichever process or fake stands behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from engine.batch import TokenLogprobs
from engine.request import FinishReason, SamplingParams


class EngineUnavailableError(Exception):
    """The engine is down or restarting; the request may be sent again later."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What the engine serves and how large it is. `max_model_len`: prompt and generated tokens together."""

    model_id: str
    max_model_len: int
    vocab_size: int
    weight_format: str
    device: str
    num_kv_blocks: int
    block_size: int
    max_num_seqs: int


@dataclass(frozen=True, slots=True)
class EngineHealth:
    """`reason` says why the engine is not ready; `None` when it is."""

    ready: bool
    reason: str | None


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Gauges of now, and counters (tokens, preemptions) since the engine started."""

    running: int
    waiting: int
    kv_blocks_used: int
    kv_blocks_total: int
    prefix_query_tokens: int
    prefix_hit_tokens: int
    preemptions: int


@dataclass(frozen=True, slots=True)
class Generation:
    """One sequence to generate. `priority`: lower runs first. `cache_salt` separates prefix-cache users."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    priority: int = 0
    cache_salt: str = ""


@dataclass(frozen=True, slots=True)
class TokenDelta:
    """What one step brought for one sequence. `finish_reason` is set on the last delta only.

    `logprobs` has one entry for each token when they were asked for, else it is empty. `error` is set with
    `FinishReason.ERROR`.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    finish_reason: FinishReason | None
    num_cached_tokens: int
    error: str | None


class EngineClientProtocol(Protocol):
    """The engine as the front end sees it."""

    @property
    def info(self) -> EngineInfo: ...

    @property
    def health(self) -> EngineHealth: ...

    @property
    def stats(self) -> EngineStats | None:
        """The engine's last report; `None` before the first one."""
        ...

    def generate(self, generation: Generation) -> AsyncIterator[TokenDelta]:
        """Generate one sequence; closing the iterator (`aclose`) aborts it in the engine.

        Raises `EngineUnavailableError` from the iterator when the engine is down or goes down on the way.
        """
        ...

    async def abort(self, request_id: str) -> None:
        """Stop a sequence; unknown and finished ids are ignored."""
        ...
