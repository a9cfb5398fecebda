"""Whatever happens in whatever order: the books agree, every request ends, and its tokens are its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.batch import Batch, RequestUpdate, StepResult
from engine.request import FinishReason, Request, SamplingParams

BLOCK_SIZE = 4
MAX_MODEL_LEN = 36
MAX_IN_FLIGHT = 2
DRAIN_STEPS = 3_000

# A small alphabet and few lengths, so that prefixes are shared often.
PROMPTS = st.builds(
    lambda letter, length, tail: [letter] * length + tail,
    st.integers(0, 1),
    st.integers(0, 14),
    st.lists(st.integers(0, 2), min_size=1, max_size=4),
)
SAMPLINGS = st.builds(
    lambda max_tokens, min_tokens, stop, ignore_eos: SamplingParams(
        max_tokens=max_tokens, min_tokens=min(min_tokens, max_tokens), stop_token_ids=stop, ignore_eos=ignore_eos
    ),
    st.integers(1, 16),
    st.integers(0, 4),
    st.sampled_from([(), (1,)]),
    st.booleans(),
)


def build_machine(make_rig, expected_output: Callable[[Request, int], list[int]]) -> type[RuleBasedStateMachine]:
    class SchedulerMachine(RuleBasedStateMachine):
        """Drives a scheduler with up to two steps in flight on a pool too small for its load."""

        @initialize(
            num_blocks=st.integers(5, 10),
            max_num_seqs=st.integers(1, 5),
            budget=st.integers(1, 24),
            threshold=st.sampled_from([None, 1, 5]),
            watermark=st.sampled_from([0.0, 0.2]),
        )
        def start(self, num_blocks, max_num_seqs, budget, threshold, watermark) -> None:
            self.rig = make_rig(
                num_blocks,
                BLOCK_SIZE,
                max_num_seqs=max_num_seqs,
                max_num_batched_tokens=budget,
                max_model_len=MAX_MODEL_LEN,
                long_prefill_threshold_tokens=threshold,
                watermark=watermark,
            )
            self.scheduler = self.rig.scheduler
            self.live: dict[str, Request] = {}
            self.received: dict[Request, list[int]] = {}
            self.in_flight: deque[tuple[Batch, StepResult]] = deque()
            self.last_counters = (0, 0, 0)
            self.clock_s = 0.0

        @rule(
            prompt=PROMPTS,
            sampling=SAMPLINGS,
            number=st.integers(0, 5),
            priority=st.integers(0, 1),
            salt=st.sampled_from(["", "tenant"]),
        )
        def add(self, prompt, sampling, number, priority, salt) -> None:
            self.clock_s += 1.0
            # Few ids, so that those of ended requests come back.
            request = Request(
                f"r{number}", tuple(prompt), sampling, self.clock_s, priority, salt, eos_token_ids=frozenset({0})
            )
            longest = min(len(prompt) + sampling.max_tokens, MAX_MODEL_LEN)
            if f"r{number}" in self.live or longest - 1 > self.rig.pool.num_tokens:
                with pytest.raises(ValueError, match=r"in use|KV blocks"):
                    self.scheduler.add(request)
                return
            self.scheduler.add(request)
            self.live[request.request_id] = request
            self.received[request] = []

        @rule(number=st.integers(0, 5))
        def abort(self, number) -> None:
            for request in self.scheduler.abort([f"r{number}"]):
                assert request.finish_reason is FinishReason.ABORT
                self.ended(request)

        @precondition(lambda self: len(self.in_flight) < MAX_IN_FLIGHT)
        @rule()
        def schedule(self) -> None:
            preemptions = self.scheduler.stats().preemptions
            waiting = self.scheduler.num_waiting
            batch = self.scheduler.schedule()
            assert batch.num_tokens <= self.scheduler.token_budget
            assert self.scheduler.num_running <= self.scheduler.config.max_num_seqs
            singles = [scheduled.num_tokens == 1 for scheduled in batch.requests]
            assert singles == sorted(singles, reverse=True)
            if self.scheduler.stats().preemptions > preemptions:
                assert self.scheduler.num_waiting > waiting
            if batch.requests:
                self.in_flight.append((batch, self.rig.model.run(batch)))

        @precondition(lambda self: self.in_flight)
        @rule()
        def land(self) -> None:
            batch, result = self.in_flight.popleft()
            self.take(self.scheduler.update(batch, result))

        @rule()
        def step(self) -> None:
            while self.in_flight:
                self.land()
            self.schedule()
            if self.in_flight:
                self.land()

        @precondition(lambda self: self.in_flight)
        @rule()
        def fail(self) -> None:
            batch, _ = self.in_flight.popleft()
            updates = self.scheduler.fail(batch, "lost")
            assert all(update.error == "lost" and not update.token_ids for update in updates)
            self.take(updates)

        @rule(paused=st.booleans())
        def pause(self, paused) -> None:
            (self.scheduler.pause if paused else self.scheduler.resume)()

        @rule(tokens=st.none() | st.integers(1, 24), requests=st.none() | st.integers(1, 5))
        def limit(self, tokens, requests) -> None:
            self.scheduler.set_token_budget(tokens)
            self.scheduler.set_max_running(requests)

        @rule()
        def forget(self) -> None:
            self.scheduler.reset_prefix_cache()

        @invariant()
        def books_agree(self) -> None:
            self.rig.check()
            stats = self.scheduler.stats()
            assert stats.running + stats.waiting == len(self.live)
            assert stats.prefix_hit_tokens <= stats.prefix_query_tokens
            waiting = [request for request in self.live.values() if not request.block_table]
            assert stats.oldest_waiting_arrival_s == min((request.arrival_s for request in waiting), default=None)
            assert all(request.num_computed_tokens == 0 for request in waiting)
            assert self.scheduler._waiting.num_tokens == sum(request.num_tokens for request in waiting)
            for request in self.live.values():
                assert 0 <= request.num_computed_tokens <= request.num_tokens
                assert request.token_ids[request.num_prompt_tokens :] == self.received[request]
            counters = (stats.prefix_query_tokens, stats.prefix_hit_tokens, stats.preemptions)
            assert all(new >= old for new, old in zip(counters, self.last_counters))
            self.last_counters = counters

        def take(self, updates: list[RequestUpdate]) -> None:
            for update in updates:
                request = update.request
                assert self.live.get(request.request_id) is request, "an update for a request that had ended"
                assert len(update.logprobs) == len(update.token_ids)
                self.received[request].extend(update.token_ids)
                assert update.finish_reason is request.finish_reason
                if update.finish_reason is not None:
                    self.ended(request)

        def ended(self, request: Request) -> None:
            assert self.live.pop(request.request_id) is request
            assert request.block_table == []
            received = self.received.pop(request)
            expected = expected_output(request, MAX_MODEL_LEN)
            if request.finish_reason in (FinishReason.STOP, FinishReason.LENGTH):
                assert received == expected
            else:
                assert received == expected[: len(received)]

        def teardown(self) -> None:
            if not hasattr(self, "rig"):
                return
            while self.in_flight:
                self.land()
            self.scheduler.resume()
            for _ in range(DRAIN_STEPS):
                if not self.live:
                    break
                self.step()
            assert not self.live, "requests never end"
            assert not self.scheduler.has_work
            assert self.rig.pool.num_used == 0
            assert not self.rig.pool._chains
            self.rig.check()

    return SchedulerMachine


def test_any_order_of_events(make_rig, expected_output) -> None:
    machine = build_machine(make_rig, expected_output).TestCase
    machine.settings = settings(max_examples=120, stateful_step_count=60, deadline=None)
    machine().runTest()


@pytest.mark.slow
def test_any_order_of_events_for_long(make_rig, expected_output) -> None:
    machine = build_machine(make_rig, expected_output).TestCase
    machine.settings = settings(max_examples=2_000, stateful_step_count=100, deadline=None)
    machine().runTest()


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    requests=st.lists(st.tuples(PROMPTS, SAMPLINGS, st.integers(0, 1)), min_size=1, max_size=8),
    num_blocks=st.integers(9, 12),
    budget=st.integers(1, 30),
)
def test_pressure_and_collisions_do_not_change_outputs(make_rig, expected_output, requests, num_blocks, budget) -> None:
    rig = make_rig(num_blocks, BLOCK_SIZE, max_num_batched_tokens=budget, max_model_len=MAX_MODEL_LEN)
    # Two keys for all contents: nearly every lookup meets a collision.
    rig.pool._hasher = lambda parent, token_ids, salt: hash((parent, token_ids, salt)) % 2
    added = [
        Request(f"r{number}", tuple(prompt), sampling, float(number), priority, eos_token_ids=frozenset({0}))
        for number, (prompt, sampling, priority) in enumerate(requests)
    ]
    for request in added:
        rig.scheduler.add(request)
    rig.run_all()
    for request in added:
        assert request.token_ids[request.num_prompt_tokens :] == expected_output(request, MAX_MODEL_LEN)
