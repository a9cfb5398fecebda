"""A step as the first rank tells it to the others: MessagePack frames with what has changed since the last one.

The others hold a mirror of each request: its prompt and parameters come once, then the tokens and blocks it gained.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from engine.batch import Batch, ScheduledRequest
from engine.request import Request, SamplingParams


class Arrival(msgspec.Struct, frozen=True, array_like=True):
    """A request that the others have not seen, or have dropped."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    eos_token_ids: frozenset[int]


class Work(msgspec.Struct, frozen=True, array_like=True):
    """One `ScheduledRequest`. `tokens`: known since its last step; `blocks` follow the first `kept` of its table."""

    request_id: str
    start: int
    num_tokens: int
    samples: bool
    draft: tuple[int, ...]
    tokens: tuple[int, ...]
    kept: int
    blocks: tuple[int, ...]


class Step(msgspec.Struct, tag=True, frozen=True):
    step_id: int
    retired: tuple[str, ...]
    arrivals: tuple[Arrival, ...]
    work: tuple[Work, ...]


class Probe(msgspec.Struct, tag=True, frozen=True):
    """Run the runner's probe."""


Frame = Step | Probe

encoder = msgspec.msgpack.Encoder()
decoder = msgspec.msgpack.Decoder(Frame)


@dataclass(slots=True, eq=False)
class _Sent:
    """What the others know of a request."""

    request: Request
    num_tokens: int
    blocks: list[int] = field(default_factory=list)


class StepWriter:
    """Batches to steps; what a step carries counts as known from then on."""

    def __init__(self) -> None:
        self._sent: dict[str, _Sent] = {}

    def step(self, batch: Batch) -> Step:
        for request_id in batch.retired:
            self._sent.pop(request_id, None)
        arrivals: list[Arrival] = []
        work = tuple(self._work(each, arrivals) for each in batch.requests)
        return Step(batch.step_id, batch.retired, tuple(arrivals), work)

    def _work(self, scheduled: ScheduledRequest, arrivals: list[Arrival]) -> Work:
        request = scheduled.request
        sent = self._sent.get(request.request_id)
        if sent is None or sent.request is not request:
            sent = self._sent[request.request_id] = _Sent(request, request.num_prompt_tokens)
            arrivals.append(
                Arrival(request.request_id, request.prompt_token_ids, request.sampling, request.eos_token_ids)
            )
        tokens = tuple(request.token_ids[sent.num_tokens :])
        sent.num_tokens += len(tokens)
        table, known = request.block_table, sent.blocks
        kept = len(known)
        if table[:kept] != known:
            # Publishing may have exchanged a block for an equal one that another request holds.
            kept = next(index for index, block in enumerate(known) if table[index : index + 1] != [block])
        blocks = tuple(table[kept:])
        if blocks or kept < len(known):
            sent.blocks = list(table)
        return Work(
            request.request_id,
            scheduled.start,
            scheduled.num_tokens,
            scheduled.samples,
            scheduled.draft,
            tokens,
            kept,
            blocks,
        )


class StepReader:
    """Steps back to batches, over mirrors of the requests."""

    def __init__(self) -> None:
        self._requests: dict[str, Request] = {}

    def batch(self, step: Step) -> Batch:
        for request_id in step.retired:
            self._requests.pop(request_id, None)
        for each in step.arrivals:
            mirror = Request(
                each.request_id, each.prompt_token_ids, each.sampling, 0.0, eos_token_ids=each.eos_token_ids
            )
            self._requests[each.request_id] = mirror
        return Batch(step.step_id, tuple(self._scheduled(each) for each in step.work), step.retired)

    def _scheduled(self, work: Work) -> ScheduledRequest:
        request = self._requests[work.request_id]
        request.token_ids += work.tokens
        if work.blocks or work.kept < len(request.block_table):
            request.block_table = [*request.block_table[: work.kept], *work.blocks]
        return ScheduledRequest(request, work.start, work.num_tokens, work.samples, work.draft)
