"""A slower clock on a simulated device, made real: each step takes longer by a factor."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from engine.batch import Batch, Executor, StepResult


class PacedExecutor:
    """Runs batches on `inner` and waits until a step has taken `factor` times as long as it did."""

    def __init__(
        self,
        inner: Executor,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._inner = inner
        self._clock = clock
        self._sleep = sleep
        self.factor = 1.0

    def run(self, batch: Batch) -> StepResult:
        result = self._inner.run(batch)
        if self.factor <= 1.0:
            return result
        self._sleep((self.factor - 1.0) * (result.ended_s - result.started_s))
        return replace(result, ended_s=self._clock())
