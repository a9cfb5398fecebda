"""One simulated engine: the engine's own scheduler and block pool, the twin as executor, a virtual clock.

Runs of decode steps in which nothing else can happen are jumped over: the scheduler would hand out the same requests
again and again, one token each. A run ends with the step in which one of them finishes, at the next arrival and at the
next controller tick; blocks and token counts are then as if every step had been taken. An arrival is admitted by the
scheduler beside those that decode, without a look at each of them, as long as blocks are plenty.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from engine.batch import Batch, RequestUpdate, StepResult
from engine.block_pool import BlockPool
from engine.scheduler_beside import SchedulerBeside
from engine.scheduler_config import SchedulerConfig
from power.work import WorkModel
from traces.simulate_board import VirtualGpu
from traces.simulate_decoders import Decoders
from traces.simulate_ledger import Ledger
from traces.simulate_request import SimulatedRequest
from traces.simulate_view import ViewTracker
from traces.twin_executor import StepEnergy, TwinExecutor

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
        self.scheduler = SchedulerBeside(config, pool)
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
        self._decoders: Decoders | None = None
        # Whether somebody has arrived since the scheduler last looked at those who wait.
        self._untried = False

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
        self._untried = True

    def _step(self, until_s: float) -> None:
        decoders = self._decoders
        if decoders is not None:
            steps = decoders.steps_left
            if steps >= 1 and self.scheduler.token_budget >= len(decoders.requests):
                if not self._untried:
                    self._run_decodes(decoders, steps, until_s)
                    return
                if self._admit_beside(decoders):
                    return
            self._settle()
        scheduler = self.scheduler
        preemptions = scheduler.num_preemptions
        batch = scheduler.schedule()
        assert batch.requests, "work, but nothing to run"
        result = self.executor.run(batch)
        if self._on_batch is not None:
            self._on_batch(batch, result)
        energy = self._passed(result)
        self.ledger.step(energy, batch)
        updates = scheduler.update(batch, result)
        finished = self._take(updates, result.ended_s)
        if self._jump and scheduler.num_preemptions == preemptions:
            self._decoders = self._next_decoders(len(updates), finished, energy.total.prefill_tokens)

    def _passed(self, result: StepResult) -> StepEnergy:
        """The step the executor has just run, for clock and view."""
        energy = self.executor.last
        assert energy is not None
        self.steps += 1
        self._untried = False
        self.clock.move_to(result.ended_s)
        total = energy.total
        self.view.step(
            result.started_s, result.ended_s, total.prefill_tokens, total.decode_sequences, energy.cached_read
        )
        return energy

    def _take(self, updates: Sequence[RequestUpdate], ended_s: float) -> int:
        """What the requests of a step drew; returns how many have ended."""
        finished = 0
        self.output_tokens += len(updates)
        for update in updates:
            request: SimulatedRequest = update.request  # type: ignore[assignment]
            if request.first_s is None:
                request.first_s = ended_s
                self.view.first_token(request, ended_s)
            if update.finish_reason is not None:
                self._finish(request, ended_s)
                finished += 1
        self.view.waiting = self.scheduler.num_waiting
        return finished

    def _admit_beside(self, decoders: Decoders) -> bool:
        """A step in which requests are admitted while all others decode, without a look at each of those; false where
        the scheduler has to look at all."""
        scheduler, count = self.scheduler, len(decoders.requests)
        batch = scheduler.schedule_beside(count, decoders.owed_blocks + count)
        if batch is None:
            return False
        result = self.executor.run_beside(batch, count, decoders.kv_tokens)
        decoders.stepped(self.ledger.step(self._passed(result), batch, decoders.weight))
        self.output_tokens += count
        self._end(decoders.leave(), result.ended_s)
        updates = scheduler.update(batch, result)
        self._take(updates, result.ended_s)
        if len(updates) < len(batch.requests) or scheduler.num_waiting or not scheduler.num_running:
            self._settle()
        else:
            joining: list[Any] = [update.request for update in updates if update.finish_reason is None]
            everybody: list[Any] = scheduler.running
            decoders.join(joining, everybody)
        return True

    def _next_decoders(self, drew: int, finished: int, prefill_tokens: int) -> Decoders | None:
        """The requests of the next steps when they are sure to be one decode token for each that runs, else `None`.

        `drew`: requests that drew a token in the last step, so that just this one is left to compute.
        """
        scheduler = self.scheduler
        if not scheduler.num_running or drew - finished != scheduler.num_running:
            return None
        if scheduler.num_waiting and (finished or prefill_tokens or self.pool.prefix_caching):
            return None
        requests: list[Any] = scheduler.running  # `SimulatedRequest`s, which the engine does not know
        return Decoders(requests, self.pool, self.work_model)

    def _run_decodes(self, decoders: Decoders, steps: int, until_s: float) -> None:
        """Jump over up to `steps` steps; the last of them may be the end of some requests."""
        count, kv_tokens = len(decoders.requests), decoders.kv_tokens
        run = self.gpu.decode_run(self.executor.decode(count), kv_tokens, steps, until_s, self.view.log)
        taken, ended_s = run.steps, self.gpu.time_s
        self.clock.move_to(ended_s)
        self.ledger.decode_run(run)
        decoders.ran(run)
        self.view.run(taken, count, kv_tokens + (taken - 1) * count)
        self.steps += taken
        self.jumped_steps += taken
        self.output_tokens += taken * count
        if self._end(decoders.leave(), ended_s) and (not decoders.requests or self.scheduler.num_waiting):
            self._settle()

    def _end(self, done: Sequence[SimulatedRequest], time_s: float) -> bool:
        """Requests that drew their last token in a step they were not handed out in; whether there are any."""
        if done:
            self.scheduler.complete(done)
            for request in done:
                self._finish(request, time_s)
        return bool(done)

    def _settle(self) -> None:
        """Bring requests, blocks and books up to date with the steps that were only counted."""
        if self._decoders is not None:
            self._decoders.settle()
            self._decoders = None

    def _finish(self, request: SimulatedRequest, time_s: float) -> None:
        request.last_s = time_s
        del self._live[request.request_id]
        self.view.finish(request, time_s)
        self._on_finish(request, self.ledger.leave(request))

    def check(self) -> None:
        """Check the pool's books against the live requests; raises `IntegrityError`."""
        self._settle()
        self.scheduler.check_integrity()
