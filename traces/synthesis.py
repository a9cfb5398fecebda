"""Draw a workload from stated statistics: rates by hour, gamma arrivals, lengths, shared prefixes, prompt classes.

Everything follows from the spec and its seed (numpy's PCG64); arrivals, classes and lengths have streams of their own,
so that a change of one leaves the others as they were.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from traces.arrivals import RateWindow, arrivals, gamma_shape, hourly_windows
from traces.judged import JudgedRow, read_judged_rows
from traces.reader import Origin, read_length_pairs
from traces.request import BASELINE_LEVEL, ShapedLength, TraceRequest
from traces.synthesis_spec import LevelSpec, PrefixSharing, PromptClass, SynthesisSpec
from traces.window import clip_to_window
from traces.workload import Workload

_OPEN_SESSIONS = 256


def synthesize(spec: SynthesisSpec) -> Workload:
    """The workload of a spec. Reads the judged files it names at once; draws requests when iterated."""
    judged = {part.task: _judged_rows(part) for part in spec.classes if part.judged is not None}
    start_s = 0.0
    if spec.started_at is not None:
        at = spec.started_at
        start_s = at.hour * 3600.0 + at.minute * 60.0 + at.second + at.microsecond * 1e-6
    origin = Origin(spec.started_at, start_s if spec.started_at is not None else None)
    step = f"synthesized from {spec.name}, seed {spec.seed}"
    return Workload(_Synthesis(spec, judged, start_s), spec.name, "synthetic", origin, (step,))


def arrivals_for_lengths(path: Path, rate_rps: float, interarrival_cv: float, duration_s: float, seed: int) -> Workload:
    """Gamma arrivals at a constant rate, with pairs of lengths drawn from the rows of a file of any format."""
    pairs = read_length_pairs(path)
    if not pairs:
        raise ValueError(f"{path}: no rows to draw lengths from")
    step = f"lengths drawn from {path.name}, {rate_rps:g} req/s, inter-arrival CV {interarrival_cv:g}, seed {seed}"
    windows = (RateWindow(0.0, duration_s, rate_rps, "gamma", gamma_shape(interarrival_cv)),)
    return Workload(_DrawnPairs(windows, pairs, seed), path.name, "synthetic", Origin(), (step,))


@dataclass(frozen=True, slots=True)
class _DrawnPairs:
    """Re-iterable: arrivals of the windows, each with a pair of lengths of one row."""

    windows: Sequence[RateWindow]
    pairs: Sequence[tuple[int, int]]
    seed: int

    def __iter__(self) -> Iterator[TraceRequest]:
        arrival_seed, length_seed = np.random.SeedSequence(self.seed).spawn(2)
        rng = np.random.Generator(np.random.PCG64(length_seed))
        for arrival_s in arrivals(self.windows, np.random.Generator(np.random.PCG64(arrival_seed))):
            input_tokens, output_tokens = self.pairs[int(rng.integers(len(self.pairs)))]
            yield TraceRequest(round(arrival_s, 6), input_tokens, output_tokens)


def _judged_rows(part: PromptClass) -> Sequence[JudgedRow]:
    assert part.judged is not None
    by_task = read_judged_rows(part.judged)
    if part.task not in by_task:
        raise ValueError(f"{part.judged}: no rows of task {part.task!r}; it has {', '.join(sorted(by_task))}")
    return by_task[part.task]


class _Synthesis:
    """Iterating starts the same draw anew."""

    def __init__(self, spec: SynthesisSpec, judged: Mapping[str, Sequence[JudgedRow]], start_s: float) -> None:
        self._spec = spec
        self._judged = judged
        self._start_s = start_s

    def __iter__(self) -> Iterator[TraceRequest]:
        spec = self._spec
        seeds = np.random.SeedSequence(spec.seed).spawn(2 + len(spec.classes))
        generators = [np.random.Generator(np.random.PCG64(seed)) for seed in seeds]
        windows = hourly_windows(
            spec.rates_rps, spec.duration_s, spec.interarrival_cv, self._start_s, spec.rates_period_s
        )
        shares = np.cumsum([part.share for part in spec.classes])
        ids = _FreshIds()
        drawers = [
            _ClassDrawer(part, generators[2 + index], ids, index, self._judged.get(part.task, ()), spec.window_tokens)
            for index, part in enumerate(spec.classes)
        ]
        for arrival_s in arrivals(windows, generators[0]):
            index = int(np.searchsorted(shares, generators[1].random() * shares[-1], side="right"))
            request = drawers[min(index, len(drawers) - 1)].draw(round(arrival_s, 6))
            yield request if spec.window_tokens is None else clip_to_window(request, spec.window_tokens)


class _FreshIds:
    """Prefix ids never given before."""

    def __init__(self) -> None:
        self._next = 0

    def take(self, count: int) -> tuple[int, ...]:
        self._next += count
        return tuple(range(self._next - count, self._next))


@dataclass(slots=True, eq=False)
class _Session:
    session_id: str
    ready_s: float
    tokens: int
    whole_blocks: tuple[int, ...]


class _ClassDrawer:
    """Draws the requests of one prompt class."""

    def __init__(
        self,
        part: PromptClass,
        rng: np.random.Generator,
        ids: _FreshIds,
        index: int,
        judged: Sequence[JudgedRow],
        window_tokens: int | None,
    ) -> None:
        self._part = part
        self._rng = rng
        self._ids = ids
        self._index = index
        self._judged = judged
        self._window_tokens = window_tokens
        self._sessions: list[_Session] = []
        self._session_count = 0
        prefix = part.prefix
        self._system_ids: list[tuple[int, ...]] = []
        if prefix is not None:
            self._system_ids = [ids.take(prefix.tokens // prefix.block_tokens) for _ in range(prefix.prompts)]
            self._popularity = np.cumsum(1.0 / np.arange(1, prefix.prompts + 1))

    def draw(self, arrival_s: float) -> TraceRequest:
        part, rng = self._part, self._rng
        message = part.input_tokens.draw(rng)
        output_tokens = part.output_tokens.draw(rng)
        preferred, row, shaped = self._levels(output_tokens)
        if part.prefix is None:
            return TraceRequest(
                arrival_s,
                message,
                output_tokens,
                task=part.task,
                preferred_level=preferred,
                judged_row=row,
                shaped=shaped,
            )
        session = self._session(part.prefix, arrival_s)
        input_tokens = session.tokens + message
        block = part.prefix.block_tokens
        known = session.whole_blocks
        prefix_ids = known + self._ids.take(-(-input_tokens // block) - len(known))
        session.tokens = input_tokens + output_tokens
        session.whole_blocks = prefix_ids[: input_tokens // block]
        session.ready_s = arrival_s + part.prefix.think_s
        if self._window_tokens is not None and session.tokens >= self._window_tokens // 2 and session in self._sessions:
            self._sessions.remove(session)
        return TraceRequest(
            arrival_s,
            input_tokens,
            output_tokens,
            session_id=session.session_id if part.prefix.turns_mean > 1.0 else None,
            prefix_ids=prefix_ids,
            block_tokens=block,
            task=part.task,
            preferred_level=preferred,
            judged_row=row,
            shaped=shaped,
        )

    def _session(self, prefix: PrefixSharing, arrival_s: float) -> _Session:
        """A session whose user has had time to think goes on, or a new one begins."""
        goes_on = self._rng.random() < 1.0 - 1.0 / prefix.turns_mean
        ready = [session for session in self._sessions if session.ready_s <= arrival_s] if goes_on else []
        if ready:
            return ready[int(self._rng.integers(len(ready)))]
        self._session_count += 1
        system: tuple[int, ...] = ()
        tokens = 0
        if prefix.tokens and self._rng.random() < prefix.shared:
            drawn = self._rng.random() * self._popularity[-1]
            system = self._system_ids[int(np.searchsorted(self._popularity, drawn, side="right"))]
            tokens = prefix.tokens
        session = _Session(f"{self._index}-{self._session_count}", 0.0, tokens, system)
        if prefix.turns_mean > 1.0:
            self._sessions.append(session)
            if len(self._sessions) > _OPEN_SESSIONS:
                self._sessions.pop(0)
        return session

    def _levels(self, output_tokens: int) -> tuple[str | None, int | None, tuple[ShapedLength, ...]]:
        """Preferred level, judged row and lengths by level of one answer."""
        if self._judged:
            row = self._judged[int(self._rng.integers(len(self._judged)))]
            return row.preferred_level, row.row, row.shaped(output_tokens)
        if not self._part.levels:
            return None, None, ()
        shaped = tuple(
            ShapedLength(level, max(1, round(output_tokens * self._ratio(spec))), "synthetic", "synthesis spec")
            for level, spec in self._part.levels.items()
        )
        coin = self._rng.random()
        preferred = BASELINE_LEVEL
        for level, spec in self._part.levels.items():
            coin -= spec.preferred_share
            if coin < 0.0:
                preferred = level
                break
        return preferred, None, shaped

    def _ratio(self, spec: LevelSpec) -> float:
        """Lognormal around the mean ratio."""
        if spec.ratio_cv == 0.0:
            return spec.output_ratio
        variance = math.log1p(spec.ratio_cv**2)
        return spec.output_ratio * math.exp(math.sqrt(variance) * self._rng.standard_normal() - variance / 2.0)
