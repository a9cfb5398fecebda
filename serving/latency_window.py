"""Latency, tokens, joules and grams of the requests that ended lately."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from serving.openai_responses import EnergyUsage
from serving.request_log import Finished

WINDOW_S = 60.0
MAX_REQUESTS = 20_000


@dataclass(frozen=True, slots=True)
class _Ended:
    at_s: float
    ttft_s: float | None
    tpot_s: float | None


@dataclass(frozen=True, slots=True)
class _Cost:
    at_s: float
    tokens: int
    joules: float | None
    grams: float | None


@dataclass(frozen=True, slots=True)
class LatencySummary:
    """Percentiles by nearest rank; None without any. Joules and grams are None where a single request lacks them."""

    window_s: float
    requests: int
    ttft_p50_s: float | None
    ttft_p95_s: float | None
    ttft_p99_s: float | None
    tpot_p50_s: float | None
    tpot_p99_s: float | None
    joules_per_token: float | None
    grams_per_1k_tokens: float | None


class LatencyWindow:
    """`ended` when a request ends, `settled` when its energy is known."""

    def __init__(self, window_s: float = WINDOW_S, clock: Callable[[], float] = time.monotonic) -> None:
        self.window_s = window_s
        self._clock = clock
        self._ended: deque[_Ended] = deque(maxlen=MAX_REQUESTS)
        self._costs: deque[_Cost] = deque(maxlen=MAX_REQUESTS)
        self.finished_requests = 0

    def ended(self, finished: Finished) -> None:
        self.finished_requests += 1
        self._ended.append(_Ended(self._clock(), finished.ttft_s, finished.tpot_s))

    def settled(self, finished: Finished, usage: EnergyUsage | None) -> None:
        joules = usage.energy_joules if usage is not None else None
        grams = usage.grams_co2e if usage is not None else None
        self._costs.append(_Cost(self._clock(), finished.completion_tokens, joules, grams))

    def summary(self) -> LatencySummary:
        oldest = self._clock() - self.window_s
        while self._ended and self._ended[0].at_s < oldest:
            self._ended.popleft()
        while self._costs and self._costs[0].at_s < oldest:
            self._costs.popleft()
        ttfts = sorted(one.ttft_s for one in self._ended if one.ttft_s is not None)
        tpots = sorted(one.tpot_s for one in self._ended if one.tpot_s is not None)
        tokens = sum(cost.tokens for cost in self._costs)
        joules = _total([cost.joules for cost in self._costs])
        grams = _total([cost.grams for cost in self._costs])
        return LatencySummary(
            self.window_s,
            len(self._ended),
            percentile(ttfts, 0.5),
            percentile(ttfts, 0.95),
            percentile(ttfts, 0.99),
            percentile(tpots, 0.5),
            percentile(tpots, 0.99),
            joules / tokens if joules is not None and tokens else None,
            1000.0 * grams / tokens if grams is not None and tokens else None,
        )


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """Nearest rank of ascending values."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


def _total(values: Sequence[float | None]) -> float | None:
    total = 0.0
    for value in values:
        if value is None:
            return None
        total += value
    return total
