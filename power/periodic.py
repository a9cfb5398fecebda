"""A thread that does something at a fixed pace: monotonic deadlines, skips what it missed, never catches up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Periodic:
    """`work` is called about every `period_s`; `skipped` counts deadlines that passed meanwhile, `failed` the calls
    that raised (told to `on_error`)."""

    def __init__(
        self, name: str, period_s: float, work: Callable[[], None], on_error: Callable[[str], None] | None = None
    ) -> None:
        if period_s <= 0:
            raise ValueError(f"period must be positive, got {period_s:g} s")
        self.period_s = period_s
        self.skipped = 0
        self.failed = 0
        self.last_started_s: float | None = None
        self.last_ended_s: float | None = None
        self._work = work
        self._on_error = on_error
        self._name = name
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        if self._thread is not None:
            raise ValueError(f"{self._name} is already running")
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._thread.start()

    def stop(self, patience_s: float = 5.0) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(patience_s)
            self._thread = None

    @property
    def running_for_s(self) -> float | None:
        """How long the present call has been going on; `None` between calls."""
        started, ended = self.last_started_s, self.last_ended_s
        if started is None or (ended is not None and ended >= started):
            return None
        return time.monotonic() - started

    def _run(self) -> None:
        deadline = time.monotonic()
        while not self._stop.is_set():
            self.last_started_s = time.monotonic()
            try:
                self._work()
            except Exception as error:  # noqa: BLE001  a loop that guards hardware must outlive any one fault
                self.failed += 1
                if self._on_error is not None:
                    self._on_error(f"{self._name}: {type(error).__name__}: {error}")
            now = self.last_ended_s = time.monotonic()
            deadline += self.period_s
            if deadline <= now:
                missed = int((now - deadline) / self.period_s) + 1
                self.skipped += missed
                deadline += missed * self.period_s
            self._stop.wait(deadline - now)
