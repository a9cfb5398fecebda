"""Prompts of an exact number of tokens with shared beginnings, made from words or token ids the server knows.

Content follows from the seed and the prefix ids alone: equal ids give equal blocks, in every run and in any order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal, TypeVar

import numpy as np

from traces.request import TraceRequest

Sharing = Literal["ids", "sessions", "none"]
Piece = TypeVar("Piece", str, int)

# Short words of everyday English: one token each in most vocabularies. Which ones hold is asked of the server.
WORDS: tuple[str, ...] = tuple(json.loads(files("traces.data").joinpath("words.json").read_text()))
MIN_PIECES = 64


@dataclass(frozen=True, slots=True)
class PromptMaker:
    """Draws `count` pieces (token ids, or words that are one token each) for a request.

    `sharing`: by prefix ids (blocks of `block_tokens`), by session (every turn begins with the same stream of tokens,
    an upper bound of what real turns share), or not at all.
    """

    seed: int
    sharing: Sharing = "ids"

    def pieces(self, request: TraceRequest, index: int, count: int, pool: Sequence[Piece]) -> list[Piece]:
        """`count` pieces from the pool. `index` keeps prompts apart that share nothing."""
        if len(pool) < MIN_PIECES:
            raise ValueError(
                f"a pool of {len(pool)} pieces is too small to keep prompts apart; {MIN_PIECES} are needed"
            )
        numbers: list[int] = []
        for key, length in self._blocks(request, index, count):
            numbers.extend(_stream(self.seed, key, length, len(pool)))
        return [pool[number] for number in numbers]

    def _blocks(self, request: TraceRequest, index: int, count: int) -> Iterator[tuple[str, int]]:
        """Keys and lengths that sum to `count`."""
        left = count
        if self.sharing == "sessions" and request.session_id is not None:
            yield f"session {request.session_id}", left
            return
        if self.sharing == "ids" and request.block_tokens is not None:
            for number in request.prefix_ids:
                length = min(left, request.block_tokens)
                if length == 0:
                    return
                yield f"block {number}", length
                left -= length
        if left:
            yield f"request {index}", left


def _stream(seed: int, key: str, length: int, pool_size: int) -> list[int]:
    """The first `length` numbers below `pool_size` of the endless stream that seed and key name."""
    digest = hashlib.blake2b(f"{seed}:{key}".encode(), digest_size=16).digest()
    bits = np.random.PCG64(int.from_bytes(digest)).random_raw(length)
    numbers: list[int] = (bits % np.uint64(pool_size)).tolist()
    return numbers
