"""Bounds of the inference API: what it holds at once, and who is sent away."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

from serving.openai_errors import ApiError, BadRequestError

MAX_RETRY_AFTER_S = 60
_SMOOTHING = 0.1


class Admission:
    """Counts the sequences between admission and their last token, and refuses what the queue cannot hold.

    `num_slots` sequences run at once in the engine; `max_queued` more may wait for them.
    """

    def __init__(self, num_slots: int, max_queued: int) -> None:
        self.num_slots = num_slots
        self.capacity = num_slots + max_queued
        self.in_flight = 0
        self._mean_duration_s: float | None = None

    @contextmanager
    def admit(self, num_sequences: int) -> Iterator[None]:
        """Hold places for the sequences of a request. Raises `ApiError` 429 when there are not enough."""
        if num_sequences > self.capacity:
            raise BadRequestError(
                f"the request asks for {num_sequences} sequences; this server holds {self.capacity} at once", "n"
            )
        if self.in_flight + num_sequences > self.capacity:
            raise ApiError(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"The server is at capacity: {self.in_flight} sequences are running or waiting. Try again later.",
                code="over_capacity",
                headers={"Retry-After": str(self.retry_after_s())},
            )
        self.in_flight += num_sequences
        try:
            yield
        finally:
            self.in_flight -= num_sequences

    def record_duration(self, duration_s: float) -> None:
        mean_s = self._mean_duration_s
        self._mean_duration_s = duration_s if mean_s is None else mean_s + _SMOOTHING * (duration_s - mean_s)

    def retry_after_s(self) -> int:
        """Estimated time until those that wait have begun: rounds through the engine x mean duration of a request."""
        rounds = max(1.0, (self.in_flight - self.num_slots) / self.num_slots)
        return min(MAX_RETRY_AFTER_S, max(1, math.ceil(rounds * (self._mean_duration_s or 0.0))))
