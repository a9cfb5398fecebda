"""From the engine's events to the governors' `EngineView`: batch, backlog, arrival rates, measured latencies."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from power.governors import EngineView, Phase
from power.work import Share

RATE_WINDOW_S = 30.0
STEP_WINDOW_S = 1.0
LATENCY_WINDOW_S = 30.0
MIN_ANSWERS = 10
FEWEST_LATENCIES = 5


@dataclass(slots=True)
class _Life:
    admitted_s: float
    prompt_tokens: int
    computed: int = 0
    first_s: float | None = None
    last_s: float = 0.0
    drawn: int = 0


class EngineTracker:
    """Feed `admit`, `on_step` and `finish`; `set_queue` with what only the scheduler knows. Not thread-safe."""

    def __init__(self, *, max_running: int = 256, max_step_tokens: int = 2048) -> None:
        self.max_running = max_running
        self.max_step_tokens = max_step_tokens
        self._lives: dict[str, _Life] = {}
        self._waiting = 0
        self._running = 0
        self._kv_tokens = 0
        self._phase = Phase.IDLE
        self._arrivals: deque[tuple[float, int]] = deque()
        self._steps: deque[tuple[float, float, int]] = deque()
        self._drawn: deque[tuple[float, int]] = deque()
        self._drawn_tokens = 0
        self._finished: deque[float] = deque()
        self._ttfts: deque[tuple[float, float]] = deque()
        self._tpots: deque[tuple[float, float]] = deque()
        self._started_s: float | None = None

    def admit(self, request_id: str, prompt_tokens: int, time_s: float) -> None:
        """A request has arrived; it may wait before its first step."""
        if request_id not in self._lives:
            self._lives[request_id] = _Life(time_s, prompt_tokens)
            self._arrivals.append((time_s, prompt_tokens))
            if self._started_s is None:
                self._started_s = time_s

    def set_queue(self, waiting: int) -> None:
        """Requests the scheduler has not started."""
        self._waiting = waiting

    def on_step(self, started_s: float, ended_s: float, work: Sequence[Share]) -> None:
        lives = self._lives
        running = kv_tokens = prompt_tokens = first_tokens = 0
        for share in work:
            life = lives.get(share.request_id)
            if share.decode_tokens:
                running += 1
                kv_tokens += share.kv_tokens_read
                if life is not None:
                    life.drawn += share.decode_tokens
                    life.last_s = ended_s
            if share.prefill_tokens:
                prompt_tokens += share.prefill_tokens
                if life is not None and self._prefilled(life, share, ended_s):
                    first_tokens += 1
        self._running, self._kv_tokens = running, kv_tokens
        self._drawn.append((ended_s, running + first_tokens))
        self._drawn_tokens += running + first_tokens
        self._steps.append((ended_s, ended_s - started_s, prompt_tokens))
        self._phase = Phase.MIXED if running and prompt_tokens else Phase.DECODE if running else Phase.PREFILL

    def finish(self, request_id: str, time_s: float) -> None:
        life = self._lives.pop(request_id, None)
        if life is None:
            return
        if life.drawn:
            self._finished.append(time_s)
        if life.first_s is not None and life.drawn > 1:
            self._tpots.append((time_s, (life.last_s - life.first_s) / (life.drawn - 1)))
        if not self._lives:
            self._running = self._kv_tokens = 0
            self._phase = Phase.IDLE

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
        steps = len(self._steps)
        backlog = [life for life in self._lives.values() if life.first_s is None]
        mean_answer = self._mean_answer(now_s)
        prompts = [float(tokens) for _, tokens in self._arrivals]
        return EngineView(
            running=self._running,
            kv_tokens=self._kv_tokens,
            waiting=self._waiting,
            waiting_tokens=sum(max(0, life.prompt_tokens - life.computed) for life in backlog),
            oldest_wait_s=max((now_s - life.admitted_s for life in backlog), default=0.0),
            prompt_tokens_per_s=sum(prompts) / span,
            output_tokens_per_s=len(prompts) / span * mean_answer if mean_answer is not None else None,
            prompt_p99_tokens=round(percentile(prompts, 0.99) or 512),
            max_step_tokens=self.max_step_tokens,
            max_running=self.max_running,
            step_s=sum(duration for _, duration, _ in self._steps) / steps if steps else None,
            step_tokens=sum(tokens for _, _, tokens in self._steps) / steps if steps else 0.0,
            ttft_p99_s=_enough([value for _, value in self._ttfts]),
            tpot_p99_s=_enough([value for _, value in self._tpots]),
            phase=self._phase if self._lives else Phase.IDLE,
        )

    def _mean_answer(self, now_s: float) -> float | None:
        """Tokens drawn over answers finished, in the window. The mean of the finished ones alone would be short:
        long answers finish last."""
        while self._drawn and self._drawn[0][0] < now_s - RATE_WINDOW_S:
            self._drawn_tokens -= self._drawn.popleft()[1]
        while self._finished and self._finished[0] < now_s - RATE_WINDOW_S:
            self._finished.popleft()
        count = len(self._finished)
        return self._drawn_tokens / count if count >= MIN_ANSWERS else None

    def _prefilled(self, life: _Life, share: Share, ended_s: float) -> bool:
        """`kv_tokens_read` reaches the prompt's length, prefix hits included, when the first token is drawn; true
        when that is in this step."""
        life.computed = max(life.computed + share.prefill_tokens, share.kv_tokens_read)
        if life.first_s is not None or life.computed < life.prompt_tokens:
            return False
        life.first_s = life.last_s = ended_s
        life.drawn = max(life.drawn, 1)
        self._ttfts.append((ended_s, ended_s - life.admitted_s))
        return True


def percentile(values: list[float], share: float) -> float | None:
    """Nearest rank; `None` for no values."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]


def _enough(values: list[float]) -> float | None:
    return percentile(values, 0.99) if len(values) >= FEWEST_LATENCIES else None
