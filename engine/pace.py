"""A slower clock on a simulated device, made real: each step takes longer by a factor."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from engine.batch import Batch, Executor, LaunchingExecutor, StepResult


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
        return self._stretch(self._inner.run(batch))

    def _stretch(self, result: StepResult) -> StepResult:
        if self.factor <= 1.0:
            return result
        self._sleep((self.factor - 1.0) * (result.ended_s - result.started_s))
        return replace(result, ended_s=self._clock())


class PacedLaunchingExecutor(PacedExecutor):
    """The same for an executor that launches: the wait comes when a step is collected."""

    def __init__(
        self,
        inner: LaunchingExecutor,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(inner, clock, sleep)
        self._launching = inner
        self._ended_s = float("-inf")

    def launch(self, batch: Batch) -> object:
        return self._launching.launch(batch)

    def collect(self, launched: object) -> StepResult:
        result = self._launching.collect(launched)
        started_s = min(max(result.started_s, self._ended_s), result.ended_s)
        paced = self._stretch(replace(result, started_s=started_s))
        self._ended_s = paced.ended_s
        return paced
