"""Reload the policy when its file changes or on SIGHUP.

The folder is watched, not the file: editors and `os.replace` put a new file in its place, and Kubernetes swaps the
`..data` link beside it. Where the system sends no events (network file systems) a look every few seconds remains.
"""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType

from watchfiles import watch

from serving.policy.store import PolicyStore

logger = logging.getLogger(__name__)

POLL_S = 5.0
DEBOUNCE_MS = 100
STEP_MS = 50


class PolicyWatcher:
    """A thread that reloads the store; `start`, then `stop`."""

    def __init__(self, store: PolicyStore, poll_s: float = POLL_S) -> None:
        self._store = store
        self._poll_s = poll_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="policy-watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._follow()
            except OSError as error:
                logger.warning("the policy's folder cannot be watched, looking every %g s: %s", self._poll_s, error)
                self._look()
                self._stop.wait(self._poll_s)

    def _follow(self) -> None:
        events = watch(
            self._store.path.parent,
            watch_filter=None,
            debounce=DEBOUNCE_MS,
            step=STEP_MS,
            stop_event=self._stop,
            rust_timeout=int(self._poll_s * 1000),
            yield_on_timeout=True,
            recursive=False,
        )
        self._look()
        for _ in events:
            self._look()

    def _look(self) -> None:
        was_ok = self._store.last_reload_ok
        done = self._store.reload()
        if done.changed:
            logger.info("policy %s is in force", done.revision[:12])
        elif not done.ok and was_ok:
            logger.error("the policy file is refused, the last good policy stays in force:\n%s", done.error)


def reload_on_sighup(store: PolicyStore) -> None:
    """Reload on SIGHUP. Call from the main thread; the reload runs on a thread of its own, where it may block."""

    def handle(_signal: int, _frame: FrameType | None) -> None:
        threading.Thread(target=store.reload, args=("sighup", "SIGHUP"), name="policy-reload", daemon=True).start()

    signal.signal(signal.SIGHUP, handle)
