"""The governors' view of a simulated engine: the same figures as `power.engine_view.EngineTracker`, kept without
looking at every request in every step. A test holds the two together."""

from __future__ import annotations

from collections import deque

from power.engine_view import (
    FEWEST_LATENCIES,
    LATENCY_WINDOW_S,
    MIN_ANSWERS,
    RATE_WINDOW_S,
    STEP_WINDOW_S,
    percentile,
)
from power.governors import EngineView, Phase
from power.twin import StepWork
from traces.simulate_board import DecodeRun
from traces.simulate_request import SimulatedRequest


class ViewTracker:
    """Feed it every arrival, step, run and end of one engine; ask for a view when the controller ticks."""

    def __init__(self, max_running: int, max_step_tokens: int) -> None:
        self.max_running = max_running
        self.max_step_tokens = max_step_tokens
        self.waiting = 0
        self._resident = 0
        self._backlog: dict[SimulatedRequest, None] = {}
        self._running = 0
        self._kv_tokens = 0
        self._phase = Phase.IDLE
        self._arrivals: deque[tuple[float, float]] = deque()
        self._steps: deque[tuple[float, float, int]] = deque()
        self._drawn: deque[tuple[float, int]] = deque()
        self._drawn_tokens = 0
        self._finished: deque[float] = deque()
        self._ttfts: deque[tuple[float, float]] = deque()
        self._tpots: deque[tuple[float, float]] = deque()
        self._started_s: float | None = None

    def arrive(self, request: SimulatedRequest, time_s: float) -> None:
        self._resident += 1
        self._backlog[request] = None
        self._arrivals.append((time_s, float(request.num_prompt_tokens)))
        if self._started_s is None:
            self._started_s = time_s

    def step(self, started_s: float, ended_s: float, work: StepWork, kv_tokens: int) -> None:
        """`kv_tokens`: read by the requests that drew a token from a decode."""
        self._running, self._kv_tokens = work.decode_sequences, kv_tokens
        self._steps.append((ended_s, ended_s - started_s, work.prefill_tokens))
        self._draw(ended_s, work.decode_sequences)
        decoding = work.decode_sequences > 0
        mixed = decoding and work.prefill_tokens
        self._phase = Phase.MIXED if mixed else Phase.DECODE if decoding else Phase.PREFILL

    def run(self, run: DecodeRun, sequences: int, last_kv_tokens: int) -> None:
        self._running, self._kv_tokens = sequences, last_kv_tokens
        append = self._steps.append
        for ended_s, seconds in zip(run.ends_s, run.durations_s):
            append((ended_s, seconds, 0))
            self._draw(ended_s, sequences)
        self._phase = Phase.DECODE

    def first_token(self, request: SimulatedRequest, time_s: float) -> None:
        if self._backlog.pop(request, _ABSENT) is None:
            self._draw(time_s, 1)
            self._ttfts.append((time_s, time_s - request.arrival_s))

    def finish(self, request: SimulatedRequest, time_s: float) -> None:
        self._resident -= 1
        drawn = request.num_output_tokens
        if drawn:
            self._finished.append(time_s)
        if drawn > 1 and request.first_s is not None:
            self._tpots.append((time_s, (time_s - request.first_s) / (drawn - 1)))
        if not self._resident:
            self._running = self._kv_tokens = 0
            self._phase = Phase.IDLE

    def _draw(self, time_s: float, tokens: int) -> None:
        self._drawn.append((time_s, tokens))
        self._drawn_tokens += tokens

    def _mean_answer(self, now_s: float) -> float | None:
        """As `EngineTracker` has it: tokens drawn over answers finished, in the window."""
        drawn, finished, earliest_s = self._drawn, self._finished, now_s - RATE_WINDOW_S
        while drawn and drawn[0][0] < earliest_s:
            self._drawn_tokens -= drawn.popleft()[1]
        while finished and finished[0] < earliest_s:
            finished.popleft()
        return self._drawn_tokens / len(finished) if len(finished) >= MIN_ANSWERS else None

    def view(self, now_s: float) -> EngineView | None:
        """`None` before the first request: nothing is known yet."""
        if self._started_s is None:
            return None
        for recent, window in (
            (self._arrivals, RATE_WINDOW_S),
            (self._steps, STEP_WINDOW_S),
            (self._ttfts, LATENCY_WINDOW_S),
            (self._tpots, LATENCY_WINDOW_S),
        ):
            while recent and recent[0][0] < now_s - window:
                recent.popleft()
        span = max(1.0, min(RATE_WINDOW_S, now_s - self._started_s))
        prompts = [tokens for _, tokens in self._arrivals]
        mean_answer = self._mean_answer(now_s)
        count = len(self._steps)
        total_s, tokens = 0.0, 0
        for _, seconds, prompt_tokens in self._steps:
            total_s += seconds
            tokens += prompt_tokens
        backlog = self._backlog
        return EngineView(
            running=self._running,
            kv_tokens=self._kv_tokens,
            waiting=self.waiting,
            waiting_tokens=sum(max(0, r.num_prompt_tokens - r.num_computed_tokens) for r in backlog),
            oldest_wait_s=max((now_s - request.arrival_s for request in backlog), default=0.0),
            prompt_tokens_per_s=sum(prompts) / span,
            output_tokens_per_s=len(prompts) / span * mean_answer if mean_answer is not None else None,
            prompt_p99_tokens=round(percentile(prompts, 0.99) or 512),
            max_step_tokens=self.max_step_tokens,
            max_running=self.max_running,
            step_s=total_s / count if count else None,
            step_tokens=tokens / count if count else 0.0,
            ttft_p99_s=_p99(self._ttfts),
            tpot_p99_s=_p99(self._tpots),
            phase=self._phase if self._resident else Phase.IDLE,
        )


_ABSENT = object()


def _p99(recent: deque[tuple[float, float]]) -> float | None:
    return percentile([value for _, value in recent], 0.99) if len(recent) >= FEWEST_LATENCIES else None
