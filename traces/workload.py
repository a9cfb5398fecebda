"""A workload: requests in order of arrival that can be read again and again, and what was done to them.

Every operation gives a new workload and reads nothing until it is iterated; memory stays constant (jitter and
amplification hold the requests of one jitter width). Iterating twice gives the same requests.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Literal

import msgspec

from traces.reader import SECONDS_A_DAY, Origin, TraceFile
from traces.request import TraceRequest
from traces.window import clip_to_window

Obtained = Literal["recorded", "synthetic"]
_replace = msgspec.structs.replace


class Workload:
    """`source` is any re-iterable of requests with non-decreasing arrivals. `steps` tells its making, in order."""

    def __init__(
        self,
        source: Iterable[TraceRequest],
        name: str,
        obtained: Obtained = "recorded",
        origin: Origin | None = None,
        steps: tuple[str, ...] = (),
    ) -> None:
        self._source = source
        self.name = name
        self.obtained: Obtained = obtained
        self.origin = origin or Origin()
        self.steps = steps

    @classmethod
    def from_file(cls, trace: TraceFile) -> Workload:
        header = trace.header
        if header is None:
            return cls(trace, trace.path.name, "recorded", trace.origin, (f"read as {trace.layout.name}",))
        obtained: Obtained = "synthetic" if header.obtained == "synthetic" else "recorded"
        return cls(trace, header.name, obtained, trace.origin, (*header.steps, f"read as {trace.layout.name}"))

    def __iter__(self) -> Iterator[TraceRequest]:
        return iter(self._source)

    def _derive(self, make: Callable[[], Iterator[TraceRequest]], step: str, origin: Origin | None = None) -> Workload:
        steps = (*self.steps, step)
        return Workload(_Again(make), self.name, self.obtained, self.origin if origin is None else origin, steps)

    def select(self, start_s: float = 0.0, end_s: float = math.inf, limit: int | None = None) -> Workload:
        """Requests that arrive in `start_s <= arrival < end_s`, the first `limit` of them; arrivals do not change."""
        if not start_s < end_s:
            raise ValueError(f"select: the end must be after the start, got {start_s:g} .. {end_s:g} s")
        if limit is not None and limit < 1:
            raise ValueError(f"select: limit must be at least 1, got {limit}")

        def selected() -> Iterator[TraceRequest]:
            until = itertools.takewhile(lambda request: request.arrival_s < end_s, self)
            return itertools.islice((request for request in until if request.arrival_s >= start_s), limit)

        return self._derive(selected, f"select {start_s:g}..{end_s:g} s" + (f", first {limit}" if limit else ""))

    def where(self, keep: Callable[[TraceRequest], bool], description: str) -> Workload:
        """Requests for which `keep` is true; `description` goes to the steps."""
        return self._derive(lambda: filter(keep, self), f"where {description}")

    def thin(self, keep: float, seed: int, by: Literal["request", "session"] = "request") -> Workload:
        """Keep this share of the requests: a lower load with the same time structure.

        By session: whole sessions stay or go, so that sharing of prefixes within them survives; requests without
        session are thinned one by one.
        """
        if not 0.0 < keep <= 1.0:
            raise ValueError(f"thin: the share to keep must be above 0 and at most 1, got {keep:g}")

        def thinned() -> Iterator[TraceRequest]:
            rng = random.Random(seed)
            for request in self:
                coin = rng.random()
                if by == "session" and request.session_id is not None:
                    coin = _coin(seed, request.session_id)
                if coin < keep:
                    yield request

        return self._derive(thinned, f"thin to {keep:g} by {by}, seed {seed}")

    def amplify(self, factor: float, seed: int, jitter_s: float) -> Workload:
        """A higher load: each request `factor` times on average, copies moved by up to `jitter_s` seconds later.

        Copies get sessions of their own; their prompts share the prefix ids of the original.
        """
        if not (math.isfinite(factor) and factor >= 1.0):
            raise ValueError(f"amplify: the factor must be at least 1, got {factor:g}; thin for a lower load")
        if not (math.isfinite(jitter_s) and jitter_s >= 0.0):
            raise ValueError(f"amplify: the jitter must be at least 0 s, got {jitter_s:g}")

        def amplified() -> Iterator[TraceRequest]:
            rng = random.Random(seed)

            def copies() -> Iterator[TraceRequest]:
                for request in self:
                    yield request
                    extra = int(factor) - 1 + (rng.random() < factor % 1.0)
                    for copy in range(1, extra + 1):
                        session = None if request.session_id is None else f"{request.session_id}+{copy}"
                        moved = request.arrival_s + rng.random() * jitter_s
                        yield _replace(request, arrival_s=moved, session_id=session)

            return _reordered(copies(), jitter_s)

        return self._derive(amplified, f"amplify by {factor:g} within {jitter_s:g} s, seed {seed}")

    def jitter(self, width_s: float, seed: int) -> Workload:
        """Move each arrival by up to `width_s` later: undoes quantised stamps (Mooncake: ticks of 3 s)."""
        if not (math.isfinite(width_s) and width_s > 0.0):
            raise ValueError(f"jitter: the width must be above 0 s, got {width_s:g}")

        def jittered() -> Iterator[TraceRequest]:
            rng = random.Random(seed)
            moved = (_replace(request, arrival_s=request.arrival_s + rng.random() * width_s) for request in self)
            return _reordered(moved, width_s)

        return self._derive(jittered, f"jitter by up to {width_s:g} s, seed {seed}")

    def scale_time(self, factor: float) -> Workload:
        """Multiply arrivals. Below 1 the same requests come faster: another load, not only a shorter run."""
        if not (math.isfinite(factor) and factor > 0.0):
            raise ValueError(f"scale time: the factor must be above 0, got {factor:g}")

        def scaled() -> Iterator[TraceRequest]:
            return (_replace(request, arrival_s=request.arrival_s * factor) for request in self)

        return self._derive(scaled, f"scale time by {factor:g}")

    def scale_lengths(self, input_factor: float = 1.0, output_factor: float = 1.0) -> Workload:
        """Multiply token counts (at least 1 remains; an answer recorded as 0 stays 0). Prefix ids keep their order.

        Blocks shrink or grow with the prompts, so that the shared share stays the same.
        """
        if not (input_factor > 0.0 and output_factor > 0.0):
            raise ValueError(f"scale lengths: factors must be above 0, got {input_factor:g} and {output_factor:g}")

        def tokens(count: int, factor: float) -> int:
            return max(1, round(count * factor)) if count else 0

        def scaled() -> Iterator[TraceRequest]:
            for request in self:
                shaped = tuple(
                    _replace(length, output_tokens=tokens(length.output_tokens, output_factor))
                    for length in request.shaped
                )
                yield _replace(
                    request,
                    input_tokens=tokens(request.input_tokens, input_factor),
                    output_tokens=tokens(request.output_tokens, output_factor),
                    block_tokens=None if request.block_tokens is None else tokens(request.block_tokens, input_factor),
                    shaped=shaped,
                )

        return self._derive(scaled, f"scale lengths by {input_factor:g} (input) and {output_factor:g} (output)")

    def clip(self, window_tokens: int) -> Workload:
        """Cut every request to a model's window (see `clip_to_window`)."""
        return self._derive(
            lambda: (clip_to_window(request, window_tokens) for request in self), f"clip to {window_tokens} tokens"
        )

    def shift(self, offset_s: float) -> Workload:
        """All arrivals later (or earlier) by so much, against the same origin: traffic at another time of the day.

        Raises `ValueError` on iteration where a request would arrive before 0.
        """

        def shifted() -> Iterator[TraceRequest]:
            for request in self:
                arrival_s = request.arrival_s + offset_s
                if arrival_s < 0.0:
                    raise ValueError(
                        f"shift by {offset_s:g} s puts a request at {arrival_s:g} s; select later ones first"
                    )
                yield _replace(request, arrival_s=arrival_s)

        return self._derive(shifted, f"shift by {offset_s:g} s")

    def from_zero(self) -> Workload:
        """The first request arrives at 0; the origin moves along, so that every request keeps its moment."""
        first = next(iter(self), None)
        offset_s = first.arrival_s if first is not None else 0.0
        started, of_day = self.origin.started_at, self.origin.seconds_of_day
        origin = Origin(
            None if started is None else started + timedelta(seconds=offset_s),
            None if of_day is None else (of_day + offset_s) % SECONDS_A_DAY,
        )

        def moved() -> Iterator[TraceRequest]:
            return (_replace(request, arrival_s=request.arrival_s - offset_s) for request in self)

        return self._derive(moved, f"from zero (moved by -{offset_s:g} s)", origin)

    def loop(self, times: int, period_s: float) -> Workload:
        """Repeat `times` times, one round each `period_s` seconds (a day: 86,400).

        Sessions of later rounds are new ones; prefix ids recur, as system prompts and documents do. Raises
        `ValueError` on iteration where a request arrives after the period.
        """
        if times < 1:
            raise ValueError(f"loop: times must be at least 1, got {times}")
        if not (math.isfinite(period_s) and period_s > 0.0):
            raise ValueError(f"loop: the period must be above 0 s, got {period_s:g}")

        def looped() -> Iterator[TraceRequest]:
            for turn in range(times):
                for request in self:
                    if request.arrival_s > period_s:
                        raise ValueError(
                            f"loop: a request arrives at {request.arrival_s:g} s, after the period of {period_s:g} s; "
                            "choose a longer period or select less"
                        )
                    session = request.session_id
                    if turn and session is not None:
                        session = f"{session}@{turn}"
                    yield _replace(request, arrival_s=request.arrival_s + turn * period_s, session_id=session)

        return self._derive(looped, f"loop {times} times each {period_s:g} s")

    def merge(self, *others: Workload) -> Workload:
        """All requests of several workloads in order of arrival; origins are not aligned, only arrivals count.

        Sessions and prefix ids of each are taken as its own: they are made distinct by the position.
        """
        parts = (self, *others)

        def merged() -> Iterator[TraceRequest]:
            streams = [_as_part(part, index, len(parts)) for index, part in enumerate(parts)]
            return heapq.merge(*streams, key=lambda request: request.arrival_s)

        name = " + ".join(part.name for part in parts)
        steps = tuple(f"{part.name}: {step}" for part in parts for step in part.steps)
        obtained: Obtained = "synthetic" if any(part.obtained == "synthetic" for part in parts) else "recorded"
        return Workload(_Again(merged), name, obtained, self.origin, (*steps, "merge"))


class _Again:
    """Calls its maker at each iteration."""

    def __init__(self, make: Callable[[], Iterator[TraceRequest]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[TraceRequest]:
        return self._make()


def _as_part(requests: Iterable[TraceRequest], index: int, parts: int) -> Iterator[TraceRequest]:
    for request in requests:
        if request.session_id is None and not request.prefix_ids:
            yield request
            continue
        session = None if request.session_id is None else f"{index}/{request.session_id}"
        ids = tuple(prefix_id * parts + index for prefix_id in request.prefix_ids)
        yield _replace(request, session_id=session, prefix_ids=ids)


def _coin(seed: int, key: str) -> float:
    digest = hashlib.blake2b(f"{seed}:{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2.0**64


def _reordered(requests: Iterator[TraceRequest], width_s: float) -> Iterator[TraceRequest]:
    """Sort requests each of which was moved from a sorted place to at most `width_s` seconds later."""
    waiting: list[tuple[float, int, TraceRequest]] = []
    for number, request in enumerate(requests):
        safe_s = request.arrival_s - width_s
        while waiting and waiting[0][0] <= safe_s:
            yield heapq.heappop(waiting)[2]
        heapq.heappush(waiting, (request.arrival_s, number, request))
    while waiting:
        yield heapq.heappop(waiting)[2]
