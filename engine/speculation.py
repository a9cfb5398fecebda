"""Speculative decoding without a second model: guess that the text goes on as it did the last time.

The last tokens of a request are looked up in its own prompt and answer; what followed them there is the draft
(prompt lookup, github.com/apoorvumang/prompt-lookup-decoding; vLLM `v1/spec_decode/ngram_proposer.py`). One step
computes the draft and draws at each of its positions. A draw is keyed by (seed, position), so comparing the draw with
the draft decides whether the next position saw the right tokens: the text is the one that decoding token by token
gives, whatever was guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from engine.batch import Batch, SampledTokens, ScheduledRequest, TokenLogprobs
from engine.request import Request


class Proposer(Protocol):
    """Guesses the next tokens of a request. Changes no request."""

    def propose(self, request: Request, most: int) -> tuple[int, ...]:
        """Up to `most` tokens expected after the last known one; empty when there is no good guess."""
        ...

    def verified(self, request: Request, drafted: int, accepted: int) -> None:
        """Hear how a draft of `request` fared."""
        ...

    def forget(self, request: Request) -> None:
        """The request ended."""
        ...


@dataclass(frozen=True, slots=True)
class NgramConfig:
    """When to guess, and how far. Raises `ValueError` naming the field that is out of range.

    Attributes:
        max_draft: most tokens guessed in a step.
        min_ngram, max_ngram: how many last tokens must have stood together before; the longest match wins.
        min_acceptance: a request whose drafts are accepted to a lesser fraction, over about `window` drafts, is
            decoded plainly for `rest` steps, then tried again with one draft.
    """

    max_draft: int = 4
    min_ngram: int = 2
    max_ngram: int = 4
    min_acceptance: float = 0.4
    window: int = 4
    rest: int = 32

    def __post_init__(self) -> None:
        for name in ("max_draft", "min_ngram", "window", "rest"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_ngram < self.min_ngram:
            raise ValueError(f"max_ngram={self.max_ngram} is below min_ngram={self.min_ngram}")
        if not 0.0 <= self.min_acceptance <= 1.0:
            raise ValueError(f"min_acceptance must be between 0 and 1, got {self.min_acceptance}")


@dataclass(slots=True)
class _History:
    """What is known of one request.

    `follows[n][gram]` is the position after the last `gram` of `n` tokens that another token follows; the first
    `indexed` tokens are in. `acceptance`: a running mean that starts in favour of guessing.
    """

    follows: dict[int, dict[tuple[int, ...], int]]
    indexed: int = 0
    acceptance: float = 1.0
    resting: int = 0


@dataclass(slots=True)
class NgramProposer:
    """Looks the last tokens of each request up in its own text; O(1) for each new token.

    `penalised`: also guess for requests with penalties, for an executor that takes wrong guesses back.
    """

    config: NgramConfig = field(default_factory=NgramConfig)
    penalised: bool = True
    _histories: dict[Request, _History] = field(default_factory=dict)

    def propose(self, request: Request, most: int) -> tuple[int, ...]:
        if request.sampling.penalised and not self.penalised:
            return ()
        history = self._histories.get(request)
        if history is None:
            sizes = range(self.config.min_ngram, self.config.max_ngram + 1)
            history = self._histories[request] = _History({size: {} for size in sizes})
        if history.resting > 0:
            history.resting -= 1
            return ()
        tokens = request.token_ids
        self._index(history, tokens)
        most = min(most, self.config.max_draft)
        for size in range(self.config.max_ngram, self.config.min_ngram - 1, -1):
            start = history.follows[size].get(tuple(tokens[-size:]))
            if start is not None and len(tokens) >= size:
                return _continued(tokens, start, most)
        return ()

    def verified(self, request: Request, drafted: int, accepted: int) -> None:
        history = self._histories.get(request)
        if history is None or drafted == 0:
            return
        history.acceptance += (accepted / drafted - history.acceptance) / self.config.window
        if history.acceptance < self.config.min_acceptance:
            history.resting = self.config.rest
            # One good draft brings it back above the limit, one bad one sends it to rest again.
            history.acceptance = self.config.min_acceptance

    def forget(self, request: Request) -> None:
        self._histories.pop(request, None)

    def _index(self, history: _History, tokens: Sequence[int]) -> None:
        """Take in every gram that a known token follows: those that end before the last token."""
        first, last = history.indexed, len(tokens) - 1
        for size, follows in history.follows.items():
            for end in range(max(first, size), last + 1):
                follows[tuple(tokens[end - size : end])] = end
        history.indexed = max(first, last + 1)


def _continued(tokens: Sequence[int], start: int, count: int) -> tuple[int, ...]:
    """`count` tokens from `start` on; where the text ends it goes on from `start` again, as a repetition would."""
    period = len(tokens) - start
    return tuple(tokens[start + index % period] for index in range(count))


def accepted_tokens(draft: Sequence[int], drawn: Sequence[SampledTokens]) -> SampledTokens:
    """What a verified draft yields: draws up to and including the first that differs from the draft.

    `drawn`: one draw for each position, `len(draft) + 1` of them. The draw after a token that was guessed wrongly saw
    the wrong text and is dropped, and so is an error there.
    """
    token_ids: list[int] = []
    logprobs: list[TokenLogprobs] = []
    for index, each in enumerate(drawn):
        if each.error is not None:
            # A sound token before it stands; the next step meets the error again at its own position.
            return SampledTokens(tuple(token_ids), tuple(logprobs)) if token_ids else each
        token_ids += each.token_ids
        logprobs += each.logprobs
        if index == len(draft) or each.token_ids[0] != draft[index]:
            break
    return SampledTokens(tuple(token_ids), tuple(logprobs))


def draw_rows(batch: Batch) -> list[tuple[ScheduledRequest, tuple[int, ...]]]:
    """For each token that the step draws, in packed order: whose it is, and the guessed tokens it builds on."""
    return [
        (each, each.draft[:length]) for each in batch.requests if each.samples for length in range(len(each.draft) + 1)
    ]


def per_request(batch: Batch, drawn: Sequence[SampledTokens]) -> tuple[SampledTokens, ...]:
    """The draws of `draw_rows` gathered for the requests of the batch, wrong guesses dropped."""
    sampled: list[SampledTokens] = []
    row = 0
    for each in batch.requests:
        count = len(each.draft) + 1 if each.samples else 0
        sampled.append(accepted_tokens(each.draft, drawn[row : row + count]))
        row += count
    return tuple(sampled)
