"""From the engine's tokens to text: one stream of `TextDelta` for each sequence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import cast

from msgspec import Struct

from engine.batch import TokenLogprobs
from engine.client_protocol import EngineClientProtocol, EngineUnavailableError, Generation, TokenDelta
from engine.request import FinishReason
from serving.metrics import SequenceTimer
from serving.openai_errors import GenerationFailedError, NotReadyError
from serving.openai_responses import FinishReasonText
from serving.text import TextProtocol


@dataclass(frozen=True, slots=True)
class TextOptions:
    """How tokens become text, and which text ends it."""

    stop: tuple[str, ...] = ()
    include_stop: bool = False
    skip_special_tokens: bool = True


class TextDelta(Struct, frozen=True):
    """What came for choice `index`. The texts of a choice join to its whole text; the last delta has a finish reason.

    `token_ids` holds every token that was generated, the hidden ones (end of sequence, stop string) included.
    `stop_reason`: the stop string or stop token that ended it, when the request named one. `admitted_s`: when the
    engine began with it (monotonic seconds), None where it does not say.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    num_cached_tokens: int
    finish_reason: FinishReasonText | None = None
    stop_reason: int | str | None = None
    admitted_s: float | None = None


async def text_deltas(
    engine: EngineClientProtocol,
    text: TextProtocol,
    generation: Generation,
    options: TextOptions,
    index: int,
    timer: SequenceTimer,
) -> AsyncGenerator[TextDelta, None]:
    """Generate one sequence. Leaving early, or finding a stop string, aborts it in the engine.

    Raises `NotReadyError` when the engine goes away and `GenerationFailedError` when it gives the sequence up.
    """
    assembly = _Assembly(text, generation, options, index)
    outcome = str(FinishReason.ERROR)
    try:
        async with aclosing(cast(AsyncGenerator[TokenDelta, None], engine.generate(generation))) as deltas:
            async for delta in deltas:
                if delta.token_ids:
                    timer.tokens(len(delta.token_ids))
                last = assembly.add(delta)
                if last.finish_reason is not None:
                    break
                yield last
            else:
                raise GenerationFailedError("the engine's stream ended without a finish reason")
        # The engine is released before a slow reader takes the last piece.
        outcome = str(last.finish_reason)
        yield last
    except EngineUnavailableError as error:
        raise NotReadyError(str(error)) from error
    except (asyncio.CancelledError, GeneratorExit):
        outcome = str(FinishReason.ABORT)
        raise
    finally:
        timer.finished(outcome)


class _Assembly:
    """The text of one sequence as it grows."""

    def __init__(self, text: TextProtocol, generation: Generation, options: TextOptions, index: int) -> None:
        sampling = generation.sampling
        self._detokenizer = text.detokenizer(
            options.stop,
            include_stop_str_in_output=options.include_stop,
            skip_special_tokens=options.skip_special_tokens,
            min_tokens=sampling.min_tokens,
        )
        self._stop_token_ids = frozenset(sampling.stop_token_ids)
        self._hidden_at_end = frozenset() if options.include_stop else self._stop_token_ids | text.eos_token_ids
        self._index = index

    def add(self, delta: TokenDelta) -> TextDelta:
        """The next piece of text. Raises `ApiError` when the engine gave the sequence up."""
        if delta.finish_reason is FinishReason.ERROR:
            raise GenerationFailedError(delta.error)
        if delta.finish_reason is FinishReason.ABORT:
            raise NotReadyError("the engine stopped this request")
        pieces: list[str] = []
        last = len(delta.token_ids) - 1
        for position, token_id in enumerate(delta.token_ids):
            ends = position == last and delta.finish_reason is FinishReason.STOP
            if ends and token_id in self._hidden_at_end:
                break
            pieces.append(self._detokenizer.feed((token_id,)))
            if self._detokenizer.stop_reason is not None:
                return self._delta(delta, pieces, position + 1, "stop", self._detokenizer.stop_reason)
        if delta.finish_reason is None:
            return self._delta(delta, pieces, last + 1, None, None)
        pieces.append(self._detokenizer.finish())
        if delta.finish_reason is FinishReason.LENGTH:
            return self._delta(delta, pieces, last + 1, "length", None)
        final = delta.token_ids[-1] if delta.token_ids else None
        return self._delta(delta, pieces, last + 1, "stop", final if final in self._stop_token_ids else None)

    def _delta(
        self,
        delta: TokenDelta,
        pieces: list[str],
        num_tokens: int,
        finish_reason: FinishReasonText | None,
        stop_reason: int | str | None,
    ) -> TextDelta:
        return TextDelta(
            self._index,
            "".join(pieces),
            delta.token_ids[:num_tokens],
            delta.logprobs[:num_tokens],
            delta.num_cached_tokens,
            finish_reason,
            stop_reason,
            delta.admitted_s,
        )
