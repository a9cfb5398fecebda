"""The steps of the recent past, in rows that compiled code writes and sums."""

from __future__ import annotations

import numpy as np

from power.engine_view import RATE_WINDOW_S, STEP_WINDOW_S
from traces.compiled import compiled
from traces.decode_arithmetic import DRAWN, ENDS, PROMPTS, SECONDS
from traces.twin_arithmetic import Numbers

LONGEST_RUN = 512
FIRST_CAPACITY = 8192


class StepLog:
    """When each step ended, how long it took, its prompt tokens and the tokens it drew.

    Columns before `place` are written. What has left the longest window is dropped when the rows are full: memory does
    not grow with the run.
    """

    def __init__(self) -> None:
        self.rows: Numbers = np.zeros((4, FIRST_CAPACITY))
        self.place = 0
        self._drawn = 0.0
        self._first_drawn = 0
        self._first_recent = 0

    def make_room(self, steps: int) -> None:
        """For `steps` more; the newest one is no later than any moment asked for from now on."""
        if self.place + steps <= self.rows.shape[1]:
            return
        self._forget(float(self.rows[ENDS, self.place - 1]))
        first = self._first_drawn
        kept = self.place - first
        rows = self.rows if 2 * (kept + steps) <= self.rows.shape[1] else np.zeros((4, 4 * (kept + steps)))
        rows[:, :kept] = self.rows[:, first : self.place].copy()
        self.rows, self.place = rows, kept
        self._first_drawn, self._first_recent = 0, self._first_recent - first

    def add(self, ended_s: float, seconds: float, prompt_tokens: int, drawn: int) -> None:
        self.make_room(1)
        self.rows[:, self.place] = ended_s, seconds, prompt_tokens, drawn
        self.place += 1
        self._drawn += drawn

    def ran(self, steps: int, drawn: int) -> None:
        """Compiled code wrote `steps` columns from `place` on, with `drawn` tokens in all."""
        self.place += steps
        self._drawn += drawn

    def draw_one_more(self) -> None:
        """A first token was drawn in the newest step."""
        self.rows[DRAWN, self.place - 1] += 1
        self._drawn += 1

    def recent(self, now_s: float) -> tuple[float | None, float, int]:
        """Mean duration and mean prompt tokens of the steps within the step window (None, 0.0 without any), and the
        tokens drawn within the rate window."""
        self._forget(now_s)
        count = self.place - self._first_recent
        if not count:
            return None, 0.0, int(self._drawn)
        seconds, tokens = sum_steps(self.rows, self._first_recent, self.place)
        return seconds / count, tokens / count, int(self._drawn)

    def _forget(self, now_s: float) -> None:
        self._first_drawn, self._first_recent, self._drawn = forget_steps(
            self.rows,
            self._first_drawn,
            self._first_recent,
            self.place,
            self._drawn,
            now_s - RATE_WINDOW_S,
            now_s - STEP_WINDOW_S,
        )


@compiled
def forget_steps(
    rows: Numbers, drawn_from: int, recent_from: int, place: int, drawn: float, rate_s: float, step_s: float
) -> tuple[int, int, float]:
    """Move the starts of both windows to the first steps that ended at `rate_s` and `step_s` or later."""
    while drawn_from < place and rows[ENDS, drawn_from] < rate_s:
        drawn -= rows[DRAWN, drawn_from]
        drawn_from += 1
    while recent_from < place and rows[ENDS, recent_from] < step_s:
        recent_from += 1
    return drawn_from, recent_from, drawn


@compiled
def sum_steps(rows: Numbers, first: int, place: int) -> tuple[float, float]:
    """Seconds and prompt tokens of the steps from `first` on, added in their order."""
    seconds = tokens = 0.0
    for column in range(first, place):
        seconds += rows[SECONDS, column]
        tokens += rows[PROMPTS, column]
    return seconds, tokens
