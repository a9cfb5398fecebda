"""One picture of the service a second, shared by all sessions, and what was last known when the API falls silent."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from dashboard.client import AdminClient
from dashboard.errors import ApiError, ApiRefusedError, ApiUnreachableError
from dashboard.schema_state import State

REFRESH_S = 1.0


@dataclass(frozen=True)
class Snapshot:
    """`state`: the last one known, null before the first. `error`: why the last attempt failed; then `age_s` grows."""

    state: State | None
    error: str | None
    unreachable: bool
    denied: bool
    age_s: float | None


class SnapshotSource:
    """Asks at most once each `REFRESH_S`; a caller never waits for another caller's answer once there is one."""

    def __init__(self, client: AdminClient, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._fetching = threading.Lock()
        self._state: State | None = None
        self._fetched_s: float | None = None
        self._asked_s: float | None = None
        self._error: ApiError | None = None

    def get(self) -> Snapshot:
        if self._is_due() and self._fetching.acquire(blocking=self._asked_s is None):
            try:
                if self._is_due():
                    self._fetch()
            finally:
                self._fetching.release()
        age_s = None if self._fetched_s is None else max(0.0, self._clock() - self._fetched_s)
        error = self._error
        return Snapshot(
            state=self._state,
            error=None if error is None else str(error),
            unreachable=isinstance(error, ApiUnreachableError),
            denied=isinstance(error, ApiRefusedError) and error.status in (401, 403),
            age_s=age_s,
        )

    def _is_due(self) -> bool:
        # A little less than the period, so that a timer of the same period never skips every other beat.
        return self._asked_s is None or self._clock() - self._asked_s >= 0.9 * REFRESH_S

    def _fetch(self) -> None:
        try:
            state = self._client.state()
        except ApiError as error:
            self._error = error
        else:
            self._state, self._error, self._fetched_s = state, None, self._clock()
        self._asked_s = self._clock()
