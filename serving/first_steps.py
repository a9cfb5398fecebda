"""How long a request waits: when the engine first ran each sequence, taken from the records of its steps."""

from __future__ import annotations

from collections.abc import Sequence

from engine.batch import StepRecord


class FirstSteps:
    """When each awaited sequence was first in a step. Costs nothing in steps while none is awaited."""

    def __init__(self) -> None:
        self._awaited: set[str] = set()
        self._started_s: dict[str, float] = {}

    def expect(self, request_ids: Sequence[str]) -> None:
        self._awaited.update(request_ids)

    def on_step(self, record: StepRecord) -> None:
        if not self._awaited:
            return
        for work in record.work:
            if work.request_id in self._awaited:
                self._awaited.discard(work.request_id)
                self._started_s[work.request_id] = record.started_s

    def take(self, request_ids: Sequence[str]) -> float | None:
        """Monotonic seconds of the earliest, which are then forgotten; None when none has run."""
        self._awaited.difference_update(request_ids)
        found = [self._started_s.pop(one) for one in request_ids if one in self._started_s]
        return min(found, default=None)
