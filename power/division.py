"""An interval's joules divided among the steps in it and the requests of each step.

Steps come in runs with the same requests, so that what falls upon a request is summed over a run before it is booked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise

from power.accounts import Account
from power.spread import Interval, Piece, spread
from power.work import Share, Weighed


class Cohort:
    """The requests of consecutive steps, in the steps' order: such steps share one cohort."""

    def __init__(self, request_ids: list[str]) -> None:
        self.request_ids = request_ids
        self._first: Weighed | None = None
        self._steps = 0

    def begin(self, weights: Weighed) -> None:
        """A step of the cohort that later ones may continue."""
        self._first, self._steps = weights if weights.by_context else None, 0

    def continued(self, work: Sequence[Share]) -> Weighed | None:
        """The weights of a step that goes on as the last ones did: the same requests, one token drawn for each, one
        cached token more to read. Such a step refers to the first one's contexts, and a run of them is booked by its
        sums, whatever its length. `None`: something is different."""
        first = self._first
        if first is None or len(work) != len(self.request_ids):
            return None
        steps = self._steps + 1
        for share, request_id, context in zip(work, self.request_ids, first.decode, strict=True):
            if (
                share.kv_tokens_read - context != steps
                or share.decode_tokens != 1
                or share.prefill_tokens
                or share.request_id != request_id
            ):
                return None
        self._steps = steps
        return first.later(steps)


@dataclass(slots=True)
class Step:
    """A step that waits for the counter. Not frozen for the reason that `Weighed` is not."""

    started_s: float
    ended_s: float
    cohort: Cohort
    weights: Weighed

    @property
    def duration_s(self) -> float:
        return self.ended_s - self.started_s

    def weight_of(self, request_id: str) -> tuple[float, float]:
        """Prefill and decode weight of one request; zero where the step has nothing of it."""
        prefill = decode = 0.0
        weights = self.weights
        for index, name in enumerate(self.cohort.request_ids):
            if name == request_id:
                prefill += weights.prefill[index] if weights.prefill is not None else 0.0
                decode += weights.decode[index] * weights.factor + weights.fixed
        return prefill, decode


@dataclass(slots=True)
class Division:
    """Joules of an interval. `units[i]`: dynamic joules for each of the weights of `steps[i]`.

    `idle_j`: within the steps and in the pauses. `unattributed_j`: above idle in the pauses, or in steps without work.
    `weighed_j` are the dynamic joules, `modelled_j` what the work model says of the same work.
    """

    steps: list[Step] = field(default_factory=list)
    units: list[float] = field(default_factory=list)
    idle_j: float = 0.0
    unattributed_j: float = 0.0
    weighed_j: float = 0.0
    modelled_j: float = 0.0

    def of_request(self, request_id: str) -> tuple[float, float]:
        """Prefill and decode joules of one request."""
        prefill_j = decode_j = 0.0
        for step, unit in zip(self.steps, self.units, strict=True):
            prefill, decode = step.weight_of(request_id)
            prefill_j += prefill * unit
            decode_j += decode * unit
        return prefill_j, decode_j

    def runs(self) -> Iterator[tuple[list[str], list[float] | None, list[float]]]:
        """Request ids with their prefill (`None`: none) and decode joules, for each run of steps with one cohort."""
        for cohort, run in groupby(zip(self.steps, self.units, strict=True), key=lambda pair: pair[0].cohort):
            count = len(cohort.request_ids)
            prefill_j, decode_j, constant_j = list[float](), [0.0] * count, 0.0
            column: Sequence[float] = decode_j
            scale = 0.0
            for step, unit in run:
                weights = step.weights
                if weights.decode is not column:
                    if scale:
                        decode_j = _add(decode_j, column, scale, 0.0)
                    column, scale = weights.decode, 0.0
                scale += unit * weights.factor
                constant_j += unit * weights.fixed
                if weights.prefill is not None:
                    prefill_j = _add(prefill_j or [0.0] * count, weights.prefill, unit, 0.0)
            yield cohort.request_ids, prefill_j or None, _add(decode_j, column, scale, constant_j)


def _add(joules: list[float], column: Sequence[float], scale: float, constant: float) -> list[float]:
    return [before + scale * weight + constant for before, weight in zip(joules, column, strict=True)]


def divide(interval: Interval, steps: Iterable[Step], idle_w: float, model_scale: float | None) -> Division:
    """Divide an interval's joules; `steps` in the order of their start. `model_scale`: see `Attributor`."""
    inside, pieces = list[Step](), list[Piece]()
    covered, end = interval.start_s, interval.end_s
    for step in steps:
        begin, stop = step.started_s, step.ended_s
        if begin >= end:
            break
        expected_w, total = 1.0, step.weights.total
        if model_scale is not None and total > 0.0 and stop > begin:
            expected_w = idle_w + model_scale * total / (stop - begin)
        if begin < covered:
            begin = covered
        if stop > end:
            stop = end
        if stop > begin:
            covered = stop
            inside.append(step)
            pieces.append((begin, stop, expected_w))
    division = Division()
    stepped_s = stepped_j = idle_j = weighed_j = modelled_j = 0.0
    for step, (begin, stop, _), energy in zip(inside, pieces, spread(interval, pieces), strict=True):
        seconds, total = stop - begin, step.weights.total
        stepped_s += seconds
        stepped_j += energy
        idle = idle_w * seconds
        if idle > energy:
            idle = energy
        idle_j += idle
        if total <= 0.0:
            division.unattributed_j += energy - idle
            continue
        weighed_j += energy - idle
        modelled_j += total * seconds / (step.ended_s - step.started_s)
        division.steps.append(step)
        division.units.append((energy - idle) / total)
    outside_j, outside_s = interval.joules - stepped_j, end - interval.start_s - stepped_s
    outside_idle_j = min(max(outside_j, 0.0), idle_w * max(0.0, outside_s))
    division.idle_j, division.weighed_j, division.modelled_j = idle_j + outside_idle_j, weighed_j, modelled_j
    division.unattributed_j += outside_j - outside_idle_j
    return division


@dataclass(slots=True)
class IdleShares:
    """Idle joules of an interval by residency: `each_j` for those of `whole`, who stayed throughout; the others with
    their own."""

    whole: list[Account]
    each_j: float
    others: list[tuple[Account, float]]

    @property
    def joules(self) -> float:
        return len(self.whole) * self.each_j + sum(joules for _, joules in self.others)

    def of_account(self, account: Account) -> float:
        if any(one is account for one in self.whole):
            return self.each_j
        return sum(joules for one, joules in self.others if one is account)


def share_idle(interval: Interval, idle_j: float, accounts: Iterable[Account]) -> IdleShares:
    """Split idle joules equally among the residents of each moment between two arrivals or departures; a moment
    without residents keeps its part."""
    start, end = interval.start_s, interval.end_s
    whole, partial = list[Account](), list[tuple[float, float, Account]]()
    for account in accounts:
        admitted, retired = account.admitted_s, account.retired_s
        if admitted <= start and (retired is None or retired >= end):
            whole.append(account)
        else:
            begin, stop = max(admitted, start), end if retired is None else min(retired, end)
            if stop > begin:
                partial.append((begin, stop, account))
    if end <= start:
        return IdleShares([], 0.0, [])
    if not partial:
        return IdleShares(whole, idle_j / len(whole) if whole else 0.0, [])
    each_j, others_j = 0.0, [0.0] * len(partial)
    edges = {start, end, *(begin for begin, _, _ in partial), *(stop for _, stop, _ in partial)}
    for left, right in pairwise(sorted(edges)):
        present = [index for index, (begin, stop, _) in enumerate(partial) if begin <= left and stop >= right]
        count = len(whole) + len(present)
        if not count:
            continue
        share = idle_j * (right - left) / (end - start) / count
        each_j += share
        for index in present:
            others_j[index] += share
    return IdleShares(
        whole, each_j, [(account, joules) for (_, _, account), joules in zip(partial, others_j, strict=True)]
    )
