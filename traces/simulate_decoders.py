"""Requests that decode together, step after step, while others come and go."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence

from engine.block_pool import BlockPool
from power.work import WorkModel
from traces.simulate_board import DecodeRun
from traces.simulate_request import SimulatedRequest
from traces.twin_executor import DRAWN_TOKEN

LONGEST_STEPS = 4096
"""After so many steps everybody is brought up to date, so that differences of sums keep their digits."""


class Decoders:
    """Running requests in the scheduler's order. Steps are only counted here (`taken`, and their energy); tokens,
    blocks and joules come to a request when it ends (`leave`), or to all before anybody looks at them (`settle`).

    Over the steps of a request that read `c + 1` cached tokens in the step `n = 0`, its joules are
    `cost * ((c + 1) sum(u) + sum(n u)) + sum((weights / count + token) u)`, with `u` the dynamic joules over the weight
    of all requests in the step and `cost` that of a cached token (`WorkModel`). The sums run from the first step of
    the first request; who joins later takes note of them (`_joined`).

    `kv_tokens`: what the next step reads.
    """

    __slots__ = (
        "_ends",
        "_fixed_j",
        "_joined",
        "_model",
        "_moment_j",
        "_pool",
        "_spare",
        "_unit_j",
        "kv_tokens",
        "requests",
        "taken",
    )

    def __init__(self, requests: Sequence[SimulatedRequest], pool: BlockPool, model: WorkModel) -> None:
        self._pool = pool
        self._model = model
        self._ends: list[tuple[int, int, float, int, SimulatedRequest]] = []
        self._joined: dict[SimulatedRequest, tuple[int, float, float, float]] = {}
        self._unit_j = self._moment_j = self._fixed_j = 0.0
        self.requests: Sequence[SimulatedRequest] = ()
        self.kv_tokens = 0
        self.taken = 0
        self.join(requests, requests)

    def join(self, joining: Iterable[SimulatedRequest], everybody: Sequence[SimulatedRequest]) -> None:
        """`joining` have one token to compute, as all have; `everybody`: they and those who were here, in order."""
        sums = (self.taken, self._unit_j, self._moment_j, self._fixed_j)
        for request in joining:
            tokens = len(request.token_ids)
            self.kv_tokens += tokens
            end = self.taken + request.last_length - tokens
            # Ties in the scheduler's order.
            heapq.heappush(self._ends, (end, request.priority, request.arrival_s, request.number, request))
            if self.taken:
                self._joined[request] = sums
        self.requests = everybody
        free = self._pool.num_free - self.owed_blocks
        self._spare = min(self.taken + (free // len(everybody) - 1) * self._pool.block_size, LONGEST_STEPS)

    @property
    def owed_blocks(self) -> int:
        """At most so many blocks are still to be taken for the steps that were only counted."""
        return (self.taken // self._pool.block_size + 1) * len(self.requests) if self.taken else 0

    @property
    def steps_left(self) -> int:
        """To the end of the next request, that step included; below 1 where blocks may not last."""
        return min(self._ends[0][0], self._spare) - self.taken

    @property
    def weight(self) -> float:
        """Attribution weight of all in the next step."""
        model = self._model
        return (
            self.kv_tokens * (model.kv_cost + model.pair_cost)
            + len(self.requests) * model.token_cost
            + model.weights_cost
        )

    def ran(self, run: DecodeRun) -> None:
        """The requests took these steps."""
        self._count(run.steps, run.unit_j, run.moment_j)

    def stepped(self, unit_j: float) -> None:
        """The requests took one step beside others; `unit_j`: dynamic joules over the weight of all."""
        self._count(1, unit_j, 0.0)

    def _count(self, steps: int, unit_j: float, moment_j: float) -> None:
        model, count = self._model, len(self.requests)
        self._fixed_j += (model.weights_cost / count + model.token_cost) * unit_j
        self._moment_j += moment_j + unit_j * self.taken
        self._unit_j += unit_j
        self.taken += steps
        self.kv_tokens += steps * count

    def leave(self) -> list[SimulatedRequest]:
        """The requests that drew their last token in the step just taken, in the scheduler's order, up to date."""
        ends, done = self._ends, list[SimulatedRequest]()
        while ends and ends[0][0] == self.taken:
            done.append(heapq.heappop(ends)[-1])
        if not done:
            return done
        leaving = set(done)
        staying = [request for request in self.requests if request not in leaving]
        if self._pool.prefix_caching:
            self.settle()
            self._restart(staying)
        else:
            self._bring_up(done)
            self.requests = staying
            self.kv_tokens -= sum([len(request.token_ids) for request in done])
        return done

    def settle(self) -> None:
        """Tokens, blocks and joules of all requests as after `taken` decode steps. Nothing is counted here after."""
        if not self.taken:
            return
        if not self._pool.prefix_caching:
            self._bring_up(self.requests)
            return
        crossings = self._crossings(self._pool.block_size)
        self._bring_up(self.requests)
        for _, publishes, _, request, length in crossings:
            if publishes:
                self._pool.publish(request, length)
            else:
                self._pool.grow(request, length)

    def _restart(self, staying: Sequence[SimulatedRequest]) -> None:
        """All are up to date: count from here."""
        self._ends, self._joined = [], {}
        self._unit_j = self._moment_j = self._fixed_j = 0.0
        self.kv_tokens = self.taken = 0
        self.requests = staying
        if staying:
            self.join(staying, staying)

    def _bring_up(self, requests: Sequence[SimulatedRequest]) -> None:
        """Without a prefix cache, no block differs from another: they are taken request by request."""
        model, pool, taken = self._model, self._pool, self.taken
        cached, grows, block_size = model.kv_cost + model.pair_cost, not pool.prefix_caching, pool.block_size
        unit_j, moment_j, fixed_j, joined = self._unit_j, self._moment_j, self._fixed_j, self._joined
        per_token_j, growth_j, tokens = cached * unit_j, cached * moment_j + fixed_j, [DRAWN_TOKEN] * taken
        for request in requests:
            computed = request.num_computed_tokens
            note = joined.get(request)
            if note is None:
                request.decode_j += (computed + 1) * per_token_j + growth_j
                request.token_ids += tokens
                end = computed + taken
            else:
                since, unit_before_j, moment_before_j, fixed_before_j = note
                read_j = (computed + 1 - since) * (unit_j - unit_before_j) + (moment_j - moment_before_j)
                request.decode_j += cached * read_j + (fixed_j - fixed_before_j)
                request.token_ids += tokens[since:]
                end = computed + taken - since
            request.num_computed_tokens = end
            if grows and end > len(request.block_table) * block_size:
                pool.grow(request, end)

    def _crossings(self, block_size: int) -> list[tuple[int, int, int, SimulatedRequest, int]]:
        """Where blocks are to be taken and published, in the order of the steps, because that decides what is evicted:
        (step, whether it publishes, place, request, its length then). With a prefix cache nobody joins."""
        found: list[tuple[int, int, int, SimulatedRequest, int]] = []
        for place, request in enumerate(self.requests):
            start = request.num_computed_tokens
            end = start + self.taken
            taken = range(len(request.block_table) * block_size, end, block_size)
            full = range(start - start % block_size + block_size, end + 1, block_size)
            found.extend((position - start, 0, place, request, position + 1) for position in taken)
            found.extend((length - start - 1, 1, place, request, length) for length in full)
        found.sort(key=_in_order)
        return found


def _in_order(crossing: tuple[int, int, int, SimulatedRequest, int]) -> tuple[int, int, int]:
    return crossing[:3]
