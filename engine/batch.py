"""One step of the engine as plain data: what to run, what came back, and the record it leaves.

What is made for every request of every step is a msgspec struct: it takes a fraction of a frozen dataclass's time. The
garbage collector need not look at them (`gc=False`): nothing they hold leads back to them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from msgspec import Struct

from engine.request import FinishReason, Request


class ScheduledRequest(Struct, frozen=True, gc=False):
    """Tokens `start .. start + num_tokens` of `request.token_ids` run in this step.

    `samples` is true when the last known token is among them, so that the step draws a new one. The last
    `len(draft)` of the tokens are `draft`, guessed and not yet known: the step draws at each of them too, and what it
    draws after the first wrong guess is dropped. A token that is neither known nor guessed is being drawn by a step
    in flight.
    """

    request: Request
    start: int
    num_tokens: int
    samples: bool
    draft: tuple[int, ...] = ()

    @property
    def end(self) -> int:
        return self.start + self.num_tokens

    @property
    def num_prefill_tokens(self) -> int:
        """Tokens of the prompt, or of a preempted request's recomputation; the others are decode work."""
        num_left = self.request.prefill_end - self.start
        return 0 if num_left <= 0 else min(num_left, self.num_tokens)


def take_tokens(request: Request, num_tokens: int) -> ScheduledRequest:
    """The next `num_tokens` of a request, which count as computed from now on."""
    start = request.num_computed_tokens
    request.num_computed_tokens = end = start + num_tokens
    return ScheduledRequest(request, start, num_tokens, end == len(request.token_ids))


@dataclass(frozen=True, slots=True)
class Batch:
    """The work of one step. No phases: prefill and decode differ only in `num_tokens`.

    Requests with one token come first. A batch without requests is no step: it is not run, takes no step id and
    retires nothing.

    `retired`: ids whose per-request state the executor must drop first (finished, aborted or preempted since
    the last batch with requests; a preempted request that runs again arrives as if new).
    """

    step_id: int
    requests: tuple[ScheduledRequest, ...]
    retired: tuple[str, ...] = ()

    @property
    def num_tokens(self) -> int:
        return sum(scheduled.num_tokens for scheduled in self.requests)


class TokenLogprobs(Struct, frozen=True):
    """Log-probability (natural) of the drawn token, and the `top` most likely as (token id, log-probability)."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class SampledTokens(Struct, frozen=True, gc=False):
    """What one scheduled request drew in a step: usually one token; several under speculation; none mid-prefill.

    `error` set: this request failed alone (for example its grammar), the others are sound.
    """

    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    error: str | None = None


@dataclass(frozen=True, slots=True)
class StepResult:
    """`sampled` stands in the order of `Batch.requests`; the stamps are monotonic seconds of the executor's clock."""

    sampled: tuple[SampledTokens, ...]
    started_s: float
    ended_s: float


class RequestUpdate(Struct, frozen=True, gc=False):
    """What a step meant for one request: the tokens it gained, or how it ended.

    `token_ids` includes the token that stopped it; `error` says what went wrong when `finish_reason` is `ERROR`.
    """

    request: Request
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: FinishReason | None = None
    error: str | None = None


class DeviceLostError(Exception):
    """No later batch can run either: the process that owns the executor has to be started again."""


class Executor(Protocol):
    """Runs a batch: the model on a device, or the twin on a virtual clock."""

    def run(self, batch: Batch) -> StepResult:
        """Compute keys and values of the batch's tokens and draw the next ones. An exception fails the batch."""
        ...


class LaunchingExecutor(Executor, Protocol):
    """An executor that takes a further step while the last one is under way; steps run in the order of launching."""

    def launch(self, batch: Batch) -> object:
        """Start a step and return at once. An exception fails this batch alone."""
        ...

    def collect(self, launched: object) -> StepResult:
        """Wait for a launched step, the oldest first. An exception fails its batch."""
        ...


class RequestWork(Struct, frozen=True, gc=False):
    """Share of one request in a step, as attribution needs it.

    `kv_tokens_read`: positions its queries attended to, each counted once however many queries of the step read it.
    """

    request_id: str
    prefill_tokens: int
    decode_tokens: int
    kv_tokens_read: int


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What a step did and when (monotonic seconds); one is emitted for each step, whoever consumes it."""

    step_id: int
    started_s: float
    ended_s: float
    work: tuple[RequestWork, ...]

    @property
    def duration_s(self) -> float:
        return self.ended_s - self.started_s
