"""Live replay: send a workload's requests to a server at their own times, whatever the server does.

Open loop: a late answer never delays the next request, so latencies from the schedule are free of coordinated
omission. Bodies are built ahead of their time; how late each send was is reported.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from traces.http_stream import Answer, ConnectionLostError, StreamClient
from traces.openai_stream import StreamedAnswer, read_answer
from traces.prompts import PromptMaker
from traces.record import Outcome, RequestRecord
from traces.request import TraceRequest
from traces.target import Target, request_body

LEAD_S = 0.5


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """`output`: answers forced to the recorded length, or `natural`: the server stops by itself, at the latest at
    `max_tokens`. `zero_output`: what to do with requests recorded without answer. `look_ahead`: bodies kept ready.

    `extra`: fields added to each body. `keep_itl`: keep the gaps between tokens of each request.
    """

    output: Literal["recorded", "natural"] = "recorded"
    max_tokens: int = 1024
    zero_output: Literal["drop", "one"] = "drop"
    look_ahead: int = 64
    request_timeout_s: float = 600.0
    prewarmed_connections: int = 16
    keep_itl: bool = True
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.look_ahead < 1:
            raise ValueError(f"look_ahead must be at least 1, got {self.look_ahead}")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if not self.request_timeout_s > 0:
            raise ValueError(f"request_timeout_s must be above 0, got {self.request_timeout_s}")


@dataclass(slots=True)
class Progress:
    """Counts while a replay runs."""

    sent: int = 0
    completed: int = 0
    failed: int = 0
    dropped: int = 0
    elapsed_s: float = 0.0
    next_send_in_s: float = 0.0

    @property
    def in_flight(self) -> int:
        return self.sent - self.completed - self.failed


@dataclass(frozen=True, slots=True)
class _Prepared:
    index: int
    request: TraceRequest
    input_tokens: int
    output_tokens: int
    body: bytes
    dropped: str | None = None


class Replay:
    """One replay of a workload against one target. `run` may be called once."""

    def __init__(
        self,
        client: StreamClient,
        target: Target,
        maker: PromptMaker,
        options: ReplayOptions,
        on_progress: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        self._client = client
        self._target = target
        self._maker = maker
        self._options = options
        self._on_progress = on_progress
        self._progress = Progress()
        self._records: list[RequestRecord] = []
        self._running: set[asyncio.Task[None]] = set()
        self._zero_s = 0.0
        self._stop = asyncio.Event()
        self.aborted = False
        self.failure: ValueError | None = None
        self.duration_s = 0.0

    def stop(self) -> None:
        """End the run now: nothing more is sent, requests under way are cancelled and recorded as aborted."""
        self.aborted = True
        self._stop.set()

    async def run(self, requests: Iterable[TraceRequest]) -> list[RequestRecord]:
        """Records in order of schedule. The first arrival of the workload is sent at once (arrivals count from it).

        A `ValueError` of the workload (a bad row) ends the sending, not the run: it is kept in `failure`.
        """
        ready: asyncio.Queue[_Prepared | None] = asyncio.Queue(self._options.look_ahead)
        feeder = asyncio.create_task(self._feed(requests, ready))
        sender = asyncio.create_task(self._send_all(ready, feeder))
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({sender, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if sender.done():
                await sender
                answers = asyncio.gather(*self._running)
                either: tuple[asyncio.Future[Any], ...] = (answers, stopping)
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                if answers.done():
                    await answers
        finally:
            for task in (sender, feeder, stopping, *self._running):
                task.cancel()
            await asyncio.gather(sender, feeder, stopping, *self._running, return_exceptions=True)
            self.duration_s = max(time.perf_counter() - self._zero_s, 1e-9) if self._zero_s else 1e-9
        return sorted(self._records, key=lambda record: record.index)

    async def _feed(self, requests: Iterable[TraceRequest], ready: asyncio.Queue[_Prepared | None]) -> None:
        """Build bodies ahead of their time, no further than the queue is long."""
        try:
            for prepared in self._prepare(requests):
                await ready.put(prepared)
                await asyncio.sleep(0)
        except ValueError as error:
            self.failure, self.aborted = error, True
        except Exception:
            await ready.put(None)
            raise
        await ready.put(None)

    def _prepare(self, requests: Iterable[TraceRequest]) -> Iterator[_Prepared]:
        options, target = self._options, self._target
        for index, request in enumerate(requests):
            output_tokens = request.output_tokens if options.output == "recorded" else options.max_tokens
            if request.output_tokens == 0 and options.zero_output == "drop":
                yield _Prepared(index, request, 0, 0, b"", "recorded without an answer (0 output tokens)")
                continue
            output_tokens = max(1, output_tokens)
            if request.prompt is not None:
                prompt: str | list[int] = request.prompt
            elif target.form == "token_ids":
                prompt = self._maker.pieces(request, index, request.input_tokens, target.token_ids)
            else:
                # The first word stands without a space before it: always the one that was measured there.
                words = max(1, request.input_tokens - target.overhead_tokens)
                drawn = self._maker.pieces(request, index, words - 1, target.words)
                prompt = " ".join([target.words[0], *drawn])
            body = request_body(target, prompt, output_tokens, options.output == "recorded", options.extra)
            yield _Prepared(index, request, request.input_tokens, output_tokens, body)

    async def _send_all(self, ready: asyncio.Queue[_Prepared | None], feeder: asyncio.Task[None]) -> None:
        await self._client.connect(self._options.prewarmed_connections)
        while not ready.full() and not feeder.done():
            await asyncio.sleep(0.001)
        first_s: float | None = None
        while (prepared := await ready.get()) is not None:
            if first_s is None:
                first_s = prepared.request.arrival_s
                self._zero_s = time.perf_counter() + LEAD_S
            scheduled_s = prepared.request.arrival_s - first_s
            if prepared.dropped is not None:
                self._progress.dropped += 1
                self._records.append(self._record(prepared, scheduled_s, Outcome.DROPPED, error=prepared.dropped))
                continue
            delay_s = self._zero_s + scheduled_s - time.perf_counter()
            if delay_s > 0.0:
                self._progress.next_send_in_s = delay_s
                self._report()
                await asyncio.sleep(delay_s)
                self._progress.next_send_in_s = 0.0
            task = asyncio.create_task(self._one(prepared, scheduled_s))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
            self._progress.sent += 1
            self._report()
        await feeder

    async def _one(self, prepared: _Prepared, scheduled_s: float) -> None:
        """Send one request and record what happened; only cancelling ends it without an outcome of its own."""
        into: list[Answer] = []
        error: str | None = None
        outcome = Outcome.COMPLETED
        headers = {"x-request-id": f"replay-{prepared.index}"}
        try:
            async with asyncio.timeout(self._options.request_timeout_s):
                await self._client.post(self._target.path, prepared.body, headers, into)
        except TimeoutError:
            error = f"no complete answer within {self._options.request_timeout_s:g} s"
        except (ConnectionLostError, OSError) as problem:
            error = str(problem)
        except asyncio.CancelledError:
            outcome, error = Outcome.ABORTED, "the run was stopped"
        answer = read_answer(into[0]) if into and into[0].status else StreamedAnswer()
        if outcome is Outcome.COMPLETED and (error or answer.error):
            outcome = Outcome.FAILED
        sent_s = into[0].sent_s if into else None
        self._records.append(self._record(prepared, scheduled_s, outcome, answer, sent_s, error or answer.error))
        if outcome is Outcome.COMPLETED:
            self._progress.completed += 1
        elif outcome is Outcome.FAILED:
            self._progress.failed += 1
        self._report()

    def _record(
        self,
        prepared: _Prepared,
        scheduled_s: float,
        outcome: Outcome,
        answer: StreamedAnswer | None = None,
        sent_s: float | None = None,
        error: str | None = None,
    ) -> RequestRecord:
        answer = answer or StreamedAnswer()
        stamps = answer.token_stamps_s
        output_tokens = answer.completion_tokens
        if output_tokens is None and stamps and outcome is Outcome.COMPLETED:
            output_tokens = len(stamps)
        gaps = tuple(later - earlier for earlier, later in itertools.pairwise(stamps)) if self._options.keep_itl else ()
        zero_s = self._zero_s
        return RequestRecord(
            index=prepared.index,
            request_id=f"replay-{prepared.index}",
            outcome=outcome,
            scheduled_s=scheduled_s,
            requested_input_tokens=prepared.input_tokens,
            requested_output_tokens=prepared.output_tokens,
            recorded_output_tokens=prepared.request.output_tokens,
            sent_s=None if sent_s is None else sent_s - zero_s,
            first_token_s=stamps[0] - zero_s if stamps else None,
            last_token_s=stamps[-1] - zero_s if stamps else None,
            input_tokens=answer.prompt_tokens,
            output_tokens=output_tokens,
            cached_tokens=answer.cached_tokens,
            finish_reason=answer.finish_reason,
            error=error if outcome is not Outcome.COMPLETED else None,
            task=prepared.request.task,
            session_id=prepared.request.session_id,
            directive=answer.directive,
            energy_j=answer.energy_j,
            energy_method=answer.energy_method,
            co2e_g=answer.co2e_g,
            itl_s=gaps,
        )

    def _report(self) -> None:
        self._progress.elapsed_s = time.perf_counter() - self._zero_s
        self._on_progress(self._progress)
