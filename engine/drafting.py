"""Drafts in the scheduler: which decodes compute guessed tokens in a step, and what is kept of them."""

from __future__ import annotations

from engine.batch import RequestUpdate, SampledTokens, ScheduledRequest
from engine.block_pool import BlockPool
from engine.outcome import append_tokens, length_limit
from engine.request import Request
from engine.speculation import Proposer


class Drafting:
    """Asks a proposer and keeps count. The scheduler calls `add` last in a step, and `take` for each draft's result."""

    def __init__(self, proposer: Proposer, pool: BlockPool, max_model_len: int) -> None:
        self.drafted_tokens = 0
        self.accepted_tokens = 0
        self._proposer = proposer
        self._pool = pool
        self._max_model_len = max_model_len

    def add(self, budget: int, singles: list[ScheduledRequest], longer: list[ScheduledRequest]) -> int:
        """Let decodes compute guessed tokens too, with budget and blocks that nobody else needs; returns what is left.

        A guided request is left alone: its guide would have to follow the draft and come back.
        """
        plain: list[ScheduledRequest] = []
        for scheduled in singles:
            request = scheduled.request
            # Of the tokens that are missing to its end the step draws one in any case.
            most = min(budget, length_limit(request, self._max_model_len) - len(request.token_ids) - 1)
            draft: tuple[int, ...] = ()
            if most > 0 and scheduled.samples and scheduled.end == len(request.token_ids):
                draft = () if request.sampling.guide is not None else self._proposer.propose(request, most)
            end = scheduled.end + len(draft)
            if not draft or not self._pool.grow(request, end):
                plain.append(scheduled)
                continue
            request.num_computed_tokens = end
            longer.append(ScheduledRequest(request, scheduled.start, 1 + len(draft), True, draft))
            budget -= len(draft)
        singles[:] = plain
        return budget

    def take(self, scheduled: ScheduledRequest, sampled: SampledTokens) -> RequestUpdate:
        """Keep what the draft got right; the keys and values of wrong guesses will be overwritten."""
        request, draft = scheduled.request, scheduled.draft
        accepted = len(sampled.token_ids) - 1
        update = append_tokens(request, sampled, self._max_model_len)
        request.num_computed_tokens = len(request.token_ids) - 1
        self._pool.publish(request, request.num_computed_tokens)
        self.drafted_tokens += len(draft)
        self.accepted_tokens += accepted
        self._proposer.verified(request, len(draft), accepted)
        return update

    def forget(self, request: Request) -> None:
        """The request ended."""
        self._proposer.forget(request)
