"""One simulated engine: the engine's own scheduler and block pool, the twin as executor, a virtual clock.

Runs of decode steps in which nothing else can happen are jumped over: the scheduler would hand out the same requests
again and again, one token each. A run ends before the first of them finishes, at the next arrival, when a commanded
clock takes hold, and at the next controller tick; blocks and token counts are then as if every step had been taken.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

from engine.batch import Batch, RequestWork, StepResult
from engine.block_pool import BlockPool
from engine.scheduler import Scheduler, SchedulerConfig
from power.work import WorkModel
from traces.simulate_board import VirtualGpu
from traces.simulate_ledger import Ledger
from traces.simulate_request import SimulatedRequest
from traces.simulate_view import ViewTracker
from traces.twin_executor import DRAWN_TOKEN, TwinExecutor

BatchKey = tuple[tuple[str, int, int], ...]
"""(request id, first token, tokens) of each request of a step."""


def batch_key(batch: Batch) -> BatchKey:
    return tuple((each.request.request_id, each.start, each.num_tokens) for each in batch.requests)


class SimulatedServer:
    """Feed `submit` in order of arrival, then `advance` to a moment; finished requests go to `on_finish`.

    `jump=False` takes every step one by one, for tests. `on_batch` sees every step taken one by one.
    """

    def __init__(
        self,
        gpu: VirtualGpu,
        config: SchedulerConfig,
        pool: BlockPool,
        on_finish: Callable[[SimulatedRequest, float], None],
        *,
        jump: bool = True,
        on_batch: Callable[[Batch, StepResult], None] | None = None,
    ) -> None:
        self.gpu = gpu
        self.clock = gpu.clock
        self.scheduler = Scheduler(config, pool)
        self.pool = pool
        self.view = ViewTracker(config.max_num_seqs, config.max_num_batched_tokens)
        self.work_model = WorkModel.of(gpu.twin.gpu, gpu.twin.shape)
        self.ledger = Ledger(self.work_model)
        self.executor = TwinExecutor(gpu, self.work_model)
        self.inbox: deque[SimulatedRequest] = deque()
        self.steps = 0
        self.jumped_steps = 0
        self.output_tokens = 0
        self._on_finish = on_finish
        self._on_batch = on_batch
        self._jump = jump
        self._live: dict[str, SimulatedRequest] = {}
        self._decoders: list[SimulatedRequest] | None = None

    @property
    def busy(self) -> bool:
        return bool(self._live or self.inbox)

    @property
    def load(self) -> int:
        """Requests here, whatever their state."""
        return len(self._live) + len(self.inbox)

    def submit(self, request: SimulatedRequest) -> None:
        """Raises `ValueError` when the engine could never serve it."""
        self.inbox.append(request)

    def advance(self, until_s: float) -> None:
        """Take every step that starts before `until_s`, and idle up to it where there is nothing to do."""
        inbox, clock, scheduler = self.inbox, self.clock, self.scheduler
        while True:
            now_s = clock.now_s
            while inbox and inbox[0].arrival_s <= now_s:
                self._arrive(inbox.popleft(), now_s)
            next_s = inbox[0].arrival_s if inbox else math.inf
            if not scheduler.has_work:
                stop_s = min(next_s, until_s)
                self._rest(stop_s)
                if stop_s >= until_s:
                    return
                continue
            if now_s >= until_s:
                return
            self._step(min(next_s, until_s))

    def _rest(self, until_s: float) -> None:
        joules = self.gpu.rest(until_s)
        if joules:
            self.ledger.rest(joules)
        self.clock.move_to(until_s)

    def _arrive(self, request: SimulatedRequest, now_s: float) -> None:
        self.scheduler.add(request)
        self._live[request.request_id] = request
        self.ledger.arrive(request)
        self.view.arrive(request, request.arrival_s)
        self.view.waiting = self.scheduler.num_waiting
        self._decoders = None

    def _step(self, until_s: float) -> None:
        decoders = self._decoders
        if decoders is not None and self._run_decodes(decoders, until_s):
            return
        scheduler, clock = self.scheduler, self.clock
        preemptions = scheduler.stats().preemptions if self.pool.num_free < len(self._live) else None
        batch = scheduler.schedule()
        assert batch.requests, "work, but nothing to run"
        result = self.executor.run(batch)
        self.steps += 1
        if self._on_batch is not None:
            self._on_batch(batch, result)
        clock.move_to(result.ended_s)
        energy = self.executor.last
        assert energy is not None
        self.ledger.step(energy, self._live)
        total = energy.total
        self.view.step(result.started_s, result.ended_s, total, _decode_kv(energy.work))
        finished = False
        for update in scheduler.update(batch, result):
            request = update.request
            assert isinstance(request, SimulatedRequest)
            self.output_tokens += len(update.token_ids)
            if request.first_s is None:
                request.first_s = result.ended_s
                self.view.first_token(request, result.ended_s)
            if update.finish_reason is not None:
                self._finish(request, result.ended_s)
                finished = True
        self.view.waiting = scheduler.num_waiting
        self._decoders = self._next_decoders(batch, total.prefill_tokens, preemptions, finished=finished)

    def _next_decoders(
        self, batch: Batch, prefill_tokens: int, preemptions: int | None, *, finished: bool
    ) -> list[SimulatedRequest] | None:
        """The requests of the next step when it is sure to be one decode token for each that runs, else `None`."""
        scheduler = self.scheduler
        if not self._jump or not scheduler.num_running:
            return None
        if preemptions is not None and scheduler.stats().preemptions != preemptions:
            return None
        if scheduler.num_waiting and (finished or prefill_tokens or self.pool.prefix_caching):
            return None
        decoders = [each.request for each in batch.requests if each.request.finish_reason is None]
        if len(decoders) != scheduler.num_running:
            return None
        if prefill_tokens:
            if any(request.num_computed_tokens < request.prefill_end for request in decoders):
                return None
            decoders.sort(key=lambda request: (request.priority, request.arrival_s))
        return decoders  # type: ignore[return-value]

    def _run_decodes(self, decoders: list[SimulatedRequest], until_s: float) -> bool:
        """Jump over the steps before one finishes; false when there is none to jump over."""
        left, kv_tokens = math.inf, 0
        for request in decoders:
            tokens = len(request.token_ids)
            kv_tokens += tokens
            left = min(left, request.num_prompt_tokens + request.sampling.max_tokens - tokens)
        steps = int(left) - 1
        count = len(decoders)
        if steps < 1 or self.scheduler.token_budget < count:
            return False
        block_size = self.pool.block_size
        spare = self.pool.num_free // count * block_size
        steps = min(steps, spare - block_size)
        if steps < 1:
            return False
        run = self.gpu.decode_run(self.executor.decode(count), kv_tokens, steps, until_s)
        taken = len(run.ends_s)
        self.clock.move_to(run.ends_s[-1])
        self.ledger.decode_run(run, decoders)
        self._grow(decoders, taken)
        self.view.run(run, count, kv_tokens + (taken - 1) * count)
        self.steps += taken
        self.jumped_steps += taken
        self.output_tokens += taken * count
        return True

    def _grow(self, decoders: list[SimulatedRequest], steps: int) -> None:
        """Tokens and blocks as after `steps` decode steps. With a prefix cache, blocks are taken and published in the
        steps' order, because that decides what is evicted; without one, no block differs from another."""
        pool, block_size = self.pool, self.pool.block_size
        tokens = [DRAWN_TOKEN] * steps
        crossings: list[tuple[int, int, int, SimulatedRequest, int]] = []
        for place, request in enumerate(decoders):
            start = request.num_computed_tokens
            end = start + steps
            held = len(request.block_table) * block_size
            if pool.prefix_caching:
                taken, full = range(held, end, block_size), range(_next_full(start, block_size), end + 1, block_size)
                crossings.extend((position - start, 0, place, request, position + 1) for position in taken)
                crossings.extend((length - start - 1, 1, place, request, length) for length in full)
            elif end > held:
                pool.grow(request, end)
            request.token_ids.extend(tokens)
            request.num_computed_tokens = end
        crossings.sort(key=_in_order)
        for _, publishes, _, request, length in crossings:
            if publishes:
                pool.publish(request, length)
            else:
                pool.grow(request, length)

    def _finish(self, request: SimulatedRequest, time_s: float) -> None:
        request.last_s = time_s
        del self._live[request.request_id]
        self.view.finish(request, time_s)
        self._on_finish(request, self.ledger.leave(request))

    def check(self) -> None:
        """Check the pool's books against the live requests; raises `IntegrityError`."""
        self.scheduler.check_integrity()


def _next_full(tokens: int, block_size: int) -> int:
    """The first length above `tokens` that fills a block."""
    return tokens - tokens % block_size + block_size


def _in_order(crossing: tuple[int, int, int, SimulatedRequest, int]) -> tuple[int, int, int]:
    return crossing[:3]


def _decode_kv(work: tuple[RequestWork, ...]) -> int:
    return sum(share.kv_tokens_read for share in work if share.decode_tokens)
