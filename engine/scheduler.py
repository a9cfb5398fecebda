"""The scheduler: which tokens of which request run in the next step."""

from __future__ import annotations

import bisect
from collections.abc import Iterable

from engine.batch import Batch, RequestUpdate, ScheduledRequest, StepRecord, StepResult, take_tokens
from engine.block_pool import BlockPool
from engine.drafting import Drafting
from engine.outcome import append_tokens, failure, length_limit, step_record
from engine.request import FinishReason, Request
from engine.request_queue import RequestQueue, sort_key
from engine.scheduler_config import SchedulerConfig, SchedulerStats, capped
from engine.speculation import Proposer

__all__ = ["RequestUpdate", "Scheduler", "SchedulerConfig", "SchedulerStats"]


class Scheduler:
    """Iteration-level scheduling under one rule: computed tokens catch up with known tokens.

    Each step hands out tokens to requests whose `num_computed_tokens` is behind `num_tokens`: first to the running
    ones (single tokens before longer stretches, so that no prompt stalls a decode), then to the waiting ones. That
    covers chunked prefill, prefix hits, decoding, preemption by recomputation and resumption alike.

    `num_computed_tokens` advances in `schedule`, so a further step may be scheduled before the result of the last
    is known: a request whose newest token is still being drawn has nothing left to compute and is passed over. A
    request that leaves (abort, preemption, failure) while a step is in flight is void in that step: `update`
    ignores what was drawn for it.

    `runs_ahead`: count a token that is being drawn as known, so that its request runs in the step after as well; for an
    executor that takes such tokens from the device. A guided request still waits for its token. What such a step
    draws for a request that turns out to have ended is void.

    `proposer`: guesses tokens; budget that is left over computes them beside the one that is known.

    Not thread-safe: call all methods between steps, from one thread.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        pool: BlockPool,
        *,
        runs_ahead: bool = False,
        proposer: Proposer | None = None,
    ) -> None:
        self.config = config
        self._runs_ahead = runs_ahead
        self._drafting = Drafting(proposer, pool, config.max_model_len) if proposer is not None else None
        self.pool = pool
        self._requests: dict[str, Request] = {}
        self._waiting = RequestQueue()
        # In order of sort_key: the last one is the first to be preempted.
        self._running: list[Request] = []
        self._void_in_flight: dict[int, set[Request]] = {}
        # First admissions by step: their time is known with the step's result.
        self._admitted: list[Request] = []
        self._admitted_in: dict[int, list[Request]] = {}
        self._retired: list[str] = []
        self._next_step_id = 0
        self._token_budget = config.max_num_batched_tokens
        self._max_running = config.max_num_seqs
        self._paused = False
        self._num_preemptions = 0
        self._watermark_blocks = int(config.watermark * pool.num_blocks)

    @property
    def has_work(self) -> bool:
        """Whether unfinished requests are here and the scheduler is not paused; false: block until a message comes."""
        return bool(self._requests) and not self._paused

    @property
    def running(self) -> list[Request]:
        """A copy, in the order of priority and arrival."""
        return self._running.copy()

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_preemptions(self) -> int:
        """Since the start."""
        return self._num_preemptions

    @property
    def paused(self) -> bool:
        return self._paused

    @property
    def token_budget(self) -> int:
        """Most tokens of the next step."""
        return self._token_budget

    def pause(self) -> None:
        """Hand out empty batches until `resume`; requests are still accepted and keep their blocks."""
        self._paused = True

    def resume(self) -> None:
        self._paused = False

    def set_token_budget(self, tokens: int | None) -> None:
        """Lower the tokens per step below the configured maximum; `None` restores it. Raises `ValueError` below 1.

        With fewer tokens than running requests, those at the end of the line wait, with their blocks.
        """
        self._token_budget = capped("token budget", tokens, self.config.max_num_batched_tokens)

    def set_max_running(self, requests: int | None) -> None:
        """Cap admission below `max_num_seqs`; `None` restores it. Those that run go on. Raises `ValueError` below 1."""
        self._max_running = capped("number of running requests", requests, self.config.max_num_seqs)

    def add(self, request: Request) -> None:
        """Queue a request. Raises `ValueError` when its id is in use or when it could never be served."""
        if request.request_id in self._requests:
            raise ValueError(f"request id {request.request_id!r} is in use; choose another or abort that one first")
        if request.finished or request.num_computed_tokens or request.block_table:
            raise ValueError(f"request {request.request_id!r} ran before; make a new Request")
        if request.num_prompt_tokens >= self.config.max_model_len:
            raise ValueError(
                f"the prompt has {request.num_prompt_tokens} tokens, which leaves no room for an answer within the "
                f"{self.config.max_model_len} tokens of the model's context; shorten the prompt"
            )
        # The last token is drawn but never computed.
        most_computed = length_limit(request, self.config.max_model_len) - 1
        if most_computed > self.pool.num_tokens:
            raise ValueError(
                f"the request may need {self.pool.blocks_for(most_computed)} KV blocks of {self.pool.block_size} "
                f"tokens, the engine has {self.pool.num_blocks}; shorten the prompt, lower max_tokens, or give the "
                "KV cache more memory"
            )
        self._requests[request.request_id] = request
        self._waiting.push(request)

    def abort(self, request_ids: Iterable[str]) -> list[Request]:
        """End these requests now, in whatever state; unknown ids (they may just have finished) are passed over."""
        aborted = []
        for request_id in request_ids:
            request = self._requests.get(request_id)
            if request is not None:
                self._finish(request, FinishReason.ABORT)
                aborted.append(request)
        self._drop_finished()
        return aborted

    def schedule(self) -> Batch:
        """Choose the tokens of the next step and give them blocks; without work, a batch without requests."""
        if self._paused or not self._requests:
            return Batch(self._next_step_id, ())
        preemptions_before = self._num_preemptions
        singles: list[ScheduledRequest] = []
        longer: list[ScheduledRequest] = []
        budget = self._schedule_running(self._token_budget, singles, longer)
        if self._num_preemptions == preemptions_before:
            budget = self._admit_waiting(budget, singles, longer)
        else:
            # A longer stretch of a request ahead in line may have preempted one that was given its token above.
            singles = [scheduled for scheduled in singles if scheduled.request.block_table]
        if self._drafting is not None:
            budget = self._drafting.add(budget, singles, longer)
        assert budget >= 0
        assert len(self._running) <= self.config.max_num_seqs
        singles.extend(longer)
        if not singles:
            return Batch(self._next_step_id, ())
        batch = Batch(self._next_step_id, tuple(singles), tuple(self._retired))
        self._retired.clear()
        self._void_in_flight[batch.step_id] = set()
        if self._admitted:
            self._admitted_in[batch.step_id], self._admitted = self._admitted, []
        self._next_step_id += 1
        if self._runs_ahead:
            for scheduled in singles:
                if scheduled.samples and not scheduled.draft and scheduled.request.sampling.guide is None:
                    scheduled.request.num_pending_tokens += 1
        return batch

    def _in_flight(self, scheduled: list[ScheduledRequest]) -> Batch:
        batch = Batch(self._next_step_id, tuple(scheduled), tuple(self._retired))
        self._retired.clear()
        self._void_in_flight[batch.step_id] = set()
        self._next_step_id += 1
        return batch

    def update(self, batch: Batch, result: StepResult) -> list[RequestUpdate]:
        """Take in what the step drew; one update for each request that gained tokens or ended.

        Raises `ValueError` when the batch is not in flight or the result does not match it.
        """
        if not batch.requests:
            return []
        if len(result.sampled) != len(batch.requests):
            raise ValueError(f"{len(result.sampled)} results for {len(batch.requests)} scheduled requests")
        void = self._land(batch)
        for request in self._admitted_in.pop(batch.step_id, ()):
            request.admitted_s = result.started_s
        block_size, max_model_len = self.pool.block_size, self.config.max_model_len
        updates: list[RequestUpdate] = []
        any_finished = False
        for scheduled, sampled in zip(batch.requests, result.sampled):
            request, samples, draft = scheduled.request, scheduled.samples, scheduled.draft
            if void and request in void:
                continue
            if samples and request.num_pending_tokens:
                request.num_pending_tokens -= 1
            if (
                sampled.error is not None
                or samples != bool(sampled.token_ids)
                or (draft and len(sampled.token_ids) > len(draft) + 1)
            ):
                update = failure(scheduled, sampled)
            elif draft:
                assert self._drafting is not None
                update = self._drafting.take(scheduled, sampled)
            else:
                start = scheduled.start
                end = start + scheduled.num_tokens
                if end // block_size > start // block_size:
                    self.pool.publish(request, end)
                if not samples:
                    continue
                update = append_tokens(request, sampled, max_model_len)
            updates.append(update)
            if update.finish_reason is not None:
                any_finished = True
                self._finish(request, update.finish_reason)
        if any_finished:
            self._drop_finished()
        return updates

    def fail(self, batch: Batch, reason: str) -> list[RequestUpdate]:
        """The executor could not run `batch`: its requests end with `ERROR`; nothing of the step is published."""
        if not batch.requests:
            return []
        void = self._land(batch)
        self._admitted_in.pop(batch.step_id, None)
        updates = []
        for scheduled in batch.requests:
            request = scheduled.request
            if request not in void:
                request.num_computed_tokens = scheduled.start
                self._finish(request, FinishReason.ERROR)
                updates.append(RequestUpdate(request, finish_reason=FinishReason.ERROR, error=reason))
        self._drop_finished()
        return updates

    def record(self, batch: Batch, result: StepResult) -> StepRecord:
        """Whose work the step did, for attribution; requests that were void in it are included: they cost energy."""
        return step_record(batch, result)

    def stats(self) -> SchedulerStats:
        running_backlog = sum(
            request.prefill_end - request.num_computed_tokens
            for request in self._running
            if request.prefill_end > request.num_computed_tokens
        )
        drafting = self._drafting
        return SchedulerStats(
            running=len(self._running),
            waiting=len(self._waiting),
            kv_blocks_used=self.pool.num_used,
            kv_blocks_total=self.pool.num_blocks,
            prefix_query_tokens=self.pool.query_tokens,
            prefix_hit_tokens=self.pool.hit_tokens,
            preemptions=self._num_preemptions,
            drafted_tokens=drafting.drafted_tokens if drafting is not None else 0,
            accepted_tokens=drafting.accepted_tokens if drafting is not None else 0,
            waiting_prefill_tokens=self._waiting.num_tokens + running_backlog,
            oldest_waiting_arrival_s=self._waiting.oldest_arrival_s(),
            token_budget=self._token_budget,
        )

    def reset_prefix_cache(self) -> None:
        self.pool.reset_prefix_cache()

    def check_integrity(self) -> None:
        """Check the pool's books against the live requests; raises `IntegrityError`. Cheap: call it when idle."""
        self.pool.check_integrity(self._requests.values())

    def _schedule_running(self, budget: int, singles: list[ScheduledRequest], longer: list[ScheduledRequest]) -> int:
        """Tokens for the running requests, single ones first; returns the budget left."""
        behind: list[Request] = []
        running = self._running
        block_size = self.pool.block_size
        index = 0
        while index < len(running) and budget > 0:
            request = running[index]
            index += 1
            start = request.num_computed_tokens
            num_uncomputed = len(request.token_ids) + request.num_pending_tokens - start
            if num_uncomputed == 1:
                if request.num_pending_tokens and start + 1 >= length_limit(request, self.config.max_model_len):
                    # The token in flight is its last.
                    continue
                if start < len(request.block_table) * block_size or self._make_room(request, start + 1):
                    request.num_computed_tokens = start + 1
                    singles.append(ScheduledRequest(request, start, 1, True))
                    budget -= 1
            elif num_uncomputed > 1:
                behind.append(request)
        for request in behind:
            num_tokens = self._chunk(request, budget)
            if num_tokens == 0 or not request.block_table:
                continue
            if self._make_room(request, request.num_computed_tokens + num_tokens):
                scheduled = take_tokens(request, num_tokens)
                (singles if num_tokens == 1 else longer).append(scheduled)
                budget -= num_tokens
        return budget

    def _admit_waiting(self, budget: int, singles: list[ScheduledRequest], longer: list[ScheduledRequest]) -> int:
        """Admit in strict order while budget, seats and blocks last; returns the budget left.

        A request gets blocks for all its known tokens at once: it is not preempted for its own prompt's sake.
        """
        while budget > 0 and self._waiting and len(self._running) < self._max_running:
            # Alone, a request may use the whole pool: the watermark must not keep it waiting for ever.
            spare_blocks = self._watermark_blocks if self._running else 0
            if self.pool.num_free <= spare_blocks:
                break
            request = self._waiting.head()
            prefix = self.pool.find_prefix(request)
            if not self.pool.fits(request.num_tokens, prefix, spare_blocks):
                break
            self._waiting.remove(request)
            self.pool.admit(request, prefix)
            bisect.insort_right(self._running, request, key=sort_key)
            request.num_computed_tokens = prefix.num_tokens
            if request.num_preemptions == 0:
                request.num_cached_tokens = prefix.num_tokens
                self._admitted.append(request)
            num_tokens = self._chunk(request, budget)
            (singles if num_tokens == 1 else longer).append(take_tokens(request, num_tokens))
            budget -= num_tokens
        return budget

    def _chunk(self, request: Request, budget: int) -> int:
        num_tokens = min(request.num_uncomputed_tokens, budget)
        threshold = self.config.long_prefill_threshold_tokens
        return num_tokens if threshold is None else min(num_tokens, threshold)

    def _make_room(self, request: Request, num_tokens: int) -> bool:
        """Grow the table of `request`, preempting from the end of the line; false when it was preempted itself."""
        while not self.pool.grow(request, num_tokens):
            victim = self._running.pop()
            self._preempt(victim)
            if victim is request:
                return False
        return True

    def _preempt(self, request: Request) -> None:
        """Back to waiting with nothing computed; its published blocks make the second time cheap."""
        self._vacate(request)
        request.num_computed_tokens = 0
        request.num_pending_tokens = 0
        request.num_preemptions += 1
        request.prefill_end = request.num_tokens
        self._num_preemptions += 1
        self._waiting.push(request)

    def _vacate(self, request: Request) -> None:
        """Take back blocks and executor state of a request that ran, and void it in the steps under way.

        Steps run in order: what one in flight still writes to these blocks is overwritten by their next owner.
        """
        self.pool.free(request)
        self._retired.append(request.request_id)
        for void in self._void_in_flight.values():
            void.add(request)

    def _finish(self, request: Request, reason: FinishReason) -> None:
        """End a request; one that ran stays in `_running` until `_drop_finished`."""
        if request in self._waiting:
            self._waiting.remove(request)
            self.pool.free(request)
        else:
            self._vacate(request)
        request.num_pending_tokens = 0
        request.finish_reason = reason
        if self._drafting is not None:
            self._drafting.forget(request)
        del self._requests[request.request_id]

    def _drop_finished(self) -> None:
        self._running = [request for request in self._running if request.finish_reason is None]

    def _land(self, batch: Batch) -> set[Request]:
        void = self._void_in_flight.pop(batch.step_id, None)
        if void is None:
            raise ValueError(f"step {batch.step_id} is not in flight; each batch is updated or failed once")
        return void
