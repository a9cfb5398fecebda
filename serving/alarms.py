"""What an operator must know: conditions that last until they are over, and events that are shown for a while."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

logger = logging.getLogger(__name__)

SHOWN_S = 900.0


@dataclass(frozen=True, slots=True)
class AlarmNote:
    """`since_unix_s`: when a condition began, or when an event happened last."""

    source: str
    text: str
    since_unix_s: float


class AlarmBoard:
    """Thread-safe. `on_new` is called once for each new text, for the audit."""

    def __init__(
        self, on_new: Callable[[AlarmNote], None] | None = None, wall: Callable[[], float] = time.time
    ) -> None:
        self._lock = threading.Lock()
        self._standing: dict[tuple[str, str], AlarmNote] = {}
        self._events: deque[AlarmNote] = deque(maxlen=50)
        self.on_new: Callable[[AlarmNote], None] | None = None
        self._wall = wall

    def stand(self, source: str, text: str | None, key: str = "") -> None:
        """A condition of a source holds, or, with None, holds no longer."""
        with self._lock:
            known = self._standing.get((source, key))
            if text is None:
                self._standing.pop((source, key), None)
                return
            if known is not None and known.text == text:
                return
            note = AlarmNote(source, text, known.since_unix_s if known is not None else self._wall())
            self._standing[source, key] = note
        self._tell(note)

    def event(self, source: str, text: str) -> None:
        """Something happened; the same text again only moves its time."""
        note = AlarmNote(source, text, self._wall())
        with self._lock:
            again = next((known for known in self._events if (known.source, known.text) == (source, text)), None)
            if again is not None:
                self._events.remove(again)
            self._events.append(note)
        if again is None:
            self._tell(note)

    def notes(self) -> list[AlarmNote]:
        """Standing conditions, then events of the last quarter of an hour, newest first."""
        oldest = self._wall() - SHOWN_S
        with self._lock:
            events = [note for note in reversed(self._events) if note.since_unix_s >= oldest]
            return [*self._standing.values(), *events]

    def _tell(self, note: AlarmNote) -> None:
        logger.warning("%s: %s", note.source, note.text)
        if self.on_new is not None:
            self.on_new(note)
