"""The governors' view of a simulated engine: the same figures as `power.engine_view.EngineTracker`, kept without
looking at every request in every step. A test holds the two together."""

from __future__ import annotations

from collections import deque

from power.engine_view import FEWEST_LATENCIES, LATENCY_WINDOW_S, MIN_ANSWERS, RATE_WINDOW_S
from power.governors import EngineView, Phase
from traces.recent_values import RecentValues
from traces.simulate_request import SimulatedRequest
from traces.step_log import StepLog


class ViewTracker:
    """Feed it every arrival, step, run and end of one engine; ask for a view when the controller ticks."""

    def __init__(self, max_running: int, max_step_tokens: int) -> None:
        self.max_running = max_running
        self.max_step_tokens = max_step_tokens
        self.waiting = 0
        self.log = StepLog()
        self._resident = 0
        self._backlog: dict[SimulatedRequest, None] = {}
        self._running = 0
        self._kv_tokens = 0
        self._phase = Phase.IDLE
        self._prompts = RecentValues(RATE_WINDOW_S)
        self._finished: deque[float] = deque()
        self._ttfts = RecentValues(LATENCY_WINDOW_S)
        self._tpots = RecentValues(LATENCY_WINDOW_S)
        self._started_s: float | None = None

    def arrive(self, request: SimulatedRequest, time_s: float) -> None:
        self._resident += 1
        self._backlog[request] = None
        self._prompts.add(time_s, float(request.num_prompt_tokens))
        if self._started_s is None:
            self._started_s = time_s

    def step(self, started_s: float, ended_s: float, prompt_tokens: int, sequences: int, kv_tokens: int) -> None:
        """`sequences` drew a token from a decode and read `kv_tokens`."""
        self._running, self._kv_tokens = sequences, kv_tokens
        self.log.add(ended_s, ended_s - started_s, prompt_tokens, sequences)
        mixed = sequences > 0 and prompt_tokens > 0
        self._phase = Phase.MIXED if mixed else Phase.DECODE if sequences else Phase.PREFILL

    def run(self, steps: int, sequences: int, last_kv_tokens: int) -> None:
        """`steps` decode steps that are in the log's rows already."""
        self._running, self._kv_tokens = sequences, last_kv_tokens
        self.log.ran(steps, steps * sequences)
        self._phase = Phase.DECODE

    def first_token(self, request: SimulatedRequest, time_s: float) -> None:
        """Drawn in the newest step."""
        if self._backlog.pop(request, _ABSENT) is None:
            self.log.draw_one_more()
            self._ttfts.add(time_s, time_s - request.arrival_s)

    def finish(self, request: SimulatedRequest, time_s: float) -> None:
        self._resident -= 1
        drawn = request.num_output_tokens
        if drawn:
            self._drop_finished(time_s)
            self._finished.append(time_s)
        if drawn > 1 and request.first_s is not None:
            self._tpots.add(time_s, (time_s - request.first_s) / (drawn - 1))
        if not self._resident:
            self._running = self._kv_tokens = 0
            self._phase = Phase.IDLE

    def view(self, now_s: float) -> EngineView | None:
        """`None` before the first request: nothing is known yet."""
        if self._started_s is None:
            return None
        prompts, ttfts, tpots = self._prompts, self._ttfts, self._tpots
        for recent in (prompts, ttfts, tpots):
            recent.forget(now_s)
        span = max(1.0, min(RATE_WINDOW_S, now_s - self._started_s))
        step_s, step_tokens, drawn = self.log.recent(now_s)
        self._drop_finished(now_s)
        finished = len(self._finished)
        # As `EngineTracker` has it: tokens drawn over answers finished, in the window.
        mean_answer = drawn / finished if finished >= MIN_ANSWERS else None
        backlog = self._backlog
        return EngineView(
            running=self._running,
            kv_tokens=self._kv_tokens,
            waiting=self.waiting,
            waiting_tokens=sum([max(0, r.num_prompt_tokens - r.num_computed_tokens) for r in backlog]),
            oldest_wait_s=max([now_s - request.arrival_s for request in backlog], default=0.0),
            prompt_tokens_per_s=prompts.total / span,
            output_tokens_per_s=len(prompts) / span * mean_answer if mean_answer is not None else None,
            prompt_p99_tokens=round(prompts.percentile(0.99) or 512),
            max_step_tokens=self.max_step_tokens,
            max_running=self.max_running,
            step_s=step_s,
            step_tokens=step_tokens,
            ttft_p99_s=ttfts.percentile(0.99) if len(ttfts) >= FEWEST_LATENCIES else None,
            tpot_p99_s=tpots.percentile(0.99) if len(tpots) >= FEWEST_LATENCIES else None,
            phase=self._phase if self._resident else Phase.IDLE,
        )

    def _drop_finished(self, now_s: float) -> None:
        finished, earliest_s = self._finished, now_s - RATE_WINDOW_S
        while finished and finished[0] < earliest_s:
            finished.popleft()


_ABSENT = object()
