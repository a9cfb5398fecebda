"""The live window of every series: filled once, then only what is new, shared by all sessions."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import pandas as pd

from dashboard.client import AdminClient
from dashboard.errors import ApiError
from dashboard.schema_state import SeriesAnswer, SeriesInfo

WINDOW_S = 900.0
REFRESH_S = 1.0
CATALOGUE_S = 10.0
"""A series joins the catalogue with its first figure, such as the first latency."""
MAX_SERIES_PER_CALL = 16
MAX_POINTS = 2000
OVERLAP_S = 3.0
"""Asked again at each step: a point is only complete once its second is over."""
REFILL_AFTER_S = 30.0
BRIDGED_POINTS = 2


def frame_of(answers: Sequence[SeriesAnswer]) -> pd.DataFrame:
    """One column a series, indexed by whole milliseconds since 1970; a gap is NaN."""
    columns = {
        data.name: pd.Series(data.mean, index=[round(at * 1000) for at in data.start_unix_s], dtype="float64")
        for answer in answers
        for data in answer.series
    }
    frame = pd.DataFrame(columns)
    # Names as plain objects: looking one up in an index of Arrow strings takes twice as long.
    frame.columns = frame.columns.astype(object)
    frame.index.name = "t"
    return frame.sort_index()


def fetch(client: AdminClient, names: Sequence[str], since: float, until: float, points: int) -> list[SeriesAnswer]:
    """As many calls as the API's bound on series asks for."""
    return [
        client.series(names[first : first + MAX_SERIES_PER_CALL], since, until, min(points, MAX_POINTS))
        for first in range(0, len(names), MAX_SERIES_PER_CALL)
    ]


class LiveSeries:
    """`frame()` never raises: on failure the last window stays and `error` says why."""

    def __init__(self, client: AdminClient, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._lock = threading.Lock()
        self._frame = pd.DataFrame()
        self._catalogue: list[SeriesInfo] = []
        self._catalogue_s: float | None = None
        self._asked_s: float | None = None
        self.error: str | None = None

    def frame(self, now_unix_s: float) -> pd.DataFrame:
        """`now_unix_s`: the server's clock, so that the two machines' clocks need not agree. Do not change it."""
        if self._is_due() and self._lock.acquire(blocking=self._asked_s is None):
            try:
                if self._is_due():
                    self._refresh(now_unix_s)
            finally:
                self._lock.release()
        return self._frame

    def catalogue(self) -> list[SeriesInfo]:
        return self._catalogue

    def _is_due(self) -> bool:
        return self._asked_s is None or self._clock() - self._asked_s >= 0.9 * REFRESH_S

    def _refresh(self, now_unix_s: float) -> None:
        started_s = self._clock()
        try:
            if self._catalogue_s is None or started_s - self._catalogue_s > CATALOGUE_S:
                self._catalogue = self._client.series_list().series
                self._catalogue_s = started_s
            names = [info.name for info in self._catalogue]
            since = now_unix_s - WINDOW_S
            known = not self._frame.empty and set(self._frame.columns) == set(names)
            if known and now_unix_s - self._frame.index[-1] / 1000 < REFILL_AFTER_S:
                since = self._frame.index[-1] / 1000 - OVERLAP_S
            points = max(10, round(now_unix_s - since) + 1)
            new = frame_of(fetch(self._client, names, since, now_unix_s, points)) if names else pd.DataFrame()
            self._frame = merge(self._frame if known else pd.DataFrame(), new, now_unix_s)
            self.error = None
        except ApiError as error:
            self.error = str(error)
        self._asked_s = self._clock()


def merge(old: pd.DataFrame, new: pd.DataFrame, now_unix_s: float) -> pd.DataFrame:
    """`new` replaces `old` from its first point on; what left the window goes."""
    if not old.empty and not new.empty:
        new = pd.concat([old[old.index < new.index[0]], new])
    elif new.empty:
        new = old
    return bridged(new[new.index >= (now_unix_s - WINDOW_S) * 1000]) if len(new) else new


def bridged(frame: pd.DataFrame, most: int = BRIDGED_POINTS) -> pd.DataFrame:
    """Gaps of at most `most` points inside a series keep the value before them; longer ones stay gaps.

    A server samples each second, though never exactly: two samples can fall into one second and none into the next.
    """
    absent = frame.isna()
    if not absent.to_numpy().any():
        return frame
    filled = frame.ffill().where(frame.bfill().notna())
    for name in frame.columns[absent.any()]:
        runs = (~absent[name]).cumsum()
        lengths = absent[name].groupby(runs).transform("sum")
        filled[name] = filled[name].where(lengths <= most, frame[name])
    return filled
