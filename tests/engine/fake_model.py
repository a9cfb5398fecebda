"""A model without weights whose paged cache remembers what was written, and helpers to drive the scheduler."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest

from engine.batch import Batch, RequestUpdate, SampledTokens, StepResult, TokenLogprobs
from engine.block_pool import BlockPool
from engine.request import Request, SamplingParams
from engine.scheduler_beside import SchedulerBeside
from engine.scheduler_config import SchedulerConfig

VOCABULARY = 7


class PagedFakeModel:
    """Draws tokens as a function of (request id, position, whole prefix) and checks every cached position it reads.

    What a real model keeps as keys and values is here the digest of the prefix up to that position: a block that was
    shared, evicted, published or reused wrongly shows as a digest that does not fit the request's tokens.
    """

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.slots: dict[int, int] = {}
        self.states: dict[str, int] = {}
        self.clock_s = 0.0

    def run(self, batch: Batch) -> StepResult:
        for request_id in batch.retired:
            assert request_id in self.states, "retired a request that never ran"
            del self.states[request_id]
        started_s = self.clock_s
        self.clock_s += 1.0
        sampled = tuple(
            self._run_one(scheduled.request, scheduled.start, scheduled.end, scheduled.samples)
            for scheduled in batch.requests
        )
        return StepResult(sampled, started_s, self.clock_s)

    def _run_one(self, request: Request, start: int, end: int, samples: bool) -> SampledTokens:
        # A request goes on where it stopped, or arrives as if new.
        previous = self.states.get(request.request_id)
        assert previous is None or previous == start
        self.states[request.request_id] = end
        digests = prefix_digests(request)
        for position in range(start, end):
            self.slots[self._slot(request, position)] = digests[position]
        for position in range(end):
            assert self.slots[self._slot(request, position)] == digests[position], "read another prefix's cache"
        if not samples:
            return SampledTokens()
        assert end == request.num_tokens
        return SampledTokens((drawn_token(request.request_id, end, digests[end - 1]),), (TokenLogprobs(-float(end)),))

    def _slot(self, request: Request, position: int) -> int:
        return request.block_table[position // self.block_size] * self.block_size + position % self.block_size


def prefix_digests(request: Request) -> list[int]:
    seed = hash(request.cache_salt)
    return list(itertools.accumulate(request.token_ids, lambda digest, token: hash((digest, token)), initial=seed))[1:]


def drawn_token(request_id: str, position: int, digest: int) -> int:
    return hash((request_id, position, digest)) % VOCABULARY


def unpressured_tokens(request: Request, max_model_len: int) -> list[int]:
    """The output of the same request alone on an endless cache, by the fake model's definition."""
    sampling = request.sampling
    digest = hash(request.cache_salt)
    for token in request.prompt_token_ids:
        digest = hash((digest, token))
    output: list[int] = []
    length = len(request.prompt_token_ids)
    while True:
        token = drawn_token(request.request_id, length, digest)
        output.append(token)
        digest = hash((digest, token))
        length += 1
        stops = token in sampling.stop_token_ids or (token in request.eos_token_ids and not sampling.ignore_eos)
        if len(output) >= sampling.min_tokens and stops:
            return output
        if len(output) >= sampling.max_tokens or length >= max_model_len:
            return output


def published_texts(pool: BlockPool) -> set[tuple[int, ...]]:
    """The token sequences whose keys and values another request could find in the cache now."""
    texts = set()
    for content in pool._contents:
        text: tuple[int, ...] = ()
        while content is not None:
            text = content.token_ids + text
            content = content.parent
        texts.add(text)
    return texts - {()}


@pytest.fixture
def make_request() -> Callable[..., Request]:
    """`make_request(prompt, request_id=..., arrival_s=..., priority=..., cache_salt=..., eos=..., **sampling)`."""
    counter = itertools.count()

    def make(
        prompt: list[int] | int = 8,
        *,
        request_id: str | None = None,
        arrival_s: float | None = None,
        priority: int = 0,
        cache_salt: str = "",
        eos: tuple[int, ...] = (),
        **sampling: object,
    ) -> Request:
        number = next(counter)
        tokens = [100 * (number + 1) + index for index in range(prompt)] if isinstance(prompt, int) else prompt
        return Request(
            request_id=request_id if request_id is not None else f"r{number}",
            prompt_token_ids=tuple(tokens),
            sampling=SamplingParams(**sampling),  # type: ignore[arg-type]
            arrival_s=float(number) if arrival_s is None else arrival_s,
            priority=priority,
            cache_salt=cache_salt,
            eos_token_ids=frozenset(eos),
        )

    return make


class Rig:
    """A scheduler with the fake model as its executor."""

    def __init__(self, num_blocks: int, block_size: int, **config: object) -> None:
        config.setdefault("watermark", 0.0)
        self.pool = BlockPool(num_blocks, block_size)
        self.scheduler = SchedulerBeside(SchedulerConfig(**config), self.pool)  # type: ignore[arg-type]
        self.model = PagedFakeModel(block_size)

    def step(self) -> tuple[Batch, list[RequestUpdate]]:
        batch = self.scheduler.schedule()
        updates = self.scheduler.update(batch, self.model.run(batch))
        self.check()
        return batch, updates

    def drain(self, limit: int = 10_000) -> Iterator[Batch]:
        for _ in range(limit):
            if not self.scheduler.has_work:
                return
            yield self.step()[0]
        raise AssertionError(f"work is left after {limit} steps")

    def run_all(self) -> list[Batch]:
        return list(self.drain())

    def check(self) -> None:
        self.scheduler.check_integrity()
        self.pool.check_cache_integrity()


@pytest.fixture
def make_rig() -> type[Rig]:
    return Rig


@pytest.fixture
def expected_output() -> Callable[[Request, int], list[int]]:
    """`expected_output(request, max_model_len)`: see `unpressured_tokens`."""
    return unpressured_tokens
