"""What a workload looks like: rates, burstiness and lengths, in one pass and bounded memory."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from traces.reader import Origin
from traces.request import TraceRequest

BIN_S = 10.0
PERCENTILES = (50.0, 95.0, 99.0)


@dataclass(frozen=True, slots=True)
class LengthStatistics:
    """Token counts of one side of the requests. Percentiles are exact (nearest rank)."""

    total: int
    mean: float
    percentiles: Mapping[float, int]
    maximum: int


@dataclass(frozen=True, slots=True)
class WorkloadStatistics:
    """`interarrival_cv` and `count_dispersion` (variance over mean of 10 s counts) are 1 for Poisson arrivals.

    None where too few requests say anything. `by_hour`: requests by hour of the day, where the origin is known.
    `whole_second_stamps`: no arrival has a fraction of a second.
    """

    requests: int
    first_s: float
    last_s: float
    rate_rps: float | None
    busiest_minute_rps: float
    empty_bins_share: float | None
    count_dispersion: float | None
    interarrival_cv: float | None
    longest_gap_s: float
    distinct_stamps: int
    input_tokens: LengthStatistics | None
    output_tokens: LengthStatistics | None
    zero_outputs: int
    with_session: int
    with_prefix_ids: int
    tasks: Mapping[str, int]
    by_hour: Sequence[int] | None
    whole_second_stamps: bool

    @property
    def span_s(self) -> float:
        return self.last_s - self.first_s


def describe(requests: Iterable[TraceRequest], origin: Origin | None = None) -> WorkloadStatistics:
    """Statistics of requests in order of arrival."""
    zero_of_day_s = origin.seconds_of_day if origin else None
    counts = 0
    first_s = last_s = longest_gap_s = 0.0
    gap_mean = gap_m2 = 0.0
    distinct = zero_outputs = with_session = with_prefix = 0
    whole = True
    inputs: Counter[int] = Counter()
    outputs: Counter[int] = Counter()
    tasks: Counter[str] = Counter()
    by_hour = [0] * 24
    tens, minutes = _Bins(BIN_S), _Bins(60.0)
    for request in requests:
        arrival_s = request.arrival_s
        if counts == 0:
            first_s, distinct = arrival_s, 1
        else:
            gap_s = arrival_s - last_s
            distinct += gap_s > 0.0
            longest_gap_s = max(longest_gap_s, gap_s)
            delta = gap_s - gap_mean
            gap_mean += delta / counts
            gap_m2 += delta * (gap_s - gap_mean)
        counts += 1
        last_s = arrival_s
        tens.add(arrival_s - first_s)
        minutes.add(arrival_s - first_s)
        whole = whole and arrival_s == math.floor(arrival_s)
        inputs[request.input_tokens] += 1
        outputs[request.output_tokens] += 1
        zero_outputs += request.output_tokens == 0
        with_session += request.session_id is not None
        with_prefix += bool(request.prefix_ids)
        if request.task is not None:
            tasks[request.task] += 1
        if zero_of_day_s is not None:
            by_hour[int((zero_of_day_s + arrival_s) // 3600.0) % 24] += 1
    span_s = last_s - first_s
    variance = gap_m2 / (counts - 1) if counts > 1 else 0.0
    return WorkloadStatistics(
        requests=counts,
        first_s=first_s,
        last_s=last_s,
        rate_rps=counts / span_s if span_s > 0 else None,
        busiest_minute_rps=minutes.highest / 60.0,
        empty_bins_share=tens.empty_share if span_s > 0 else None,
        count_dispersion=tens.dispersion if span_s > 0 else None,
        interarrival_cv=math.sqrt(variance) / gap_mean if gap_mean > 0 else None,
        longest_gap_s=longest_gap_s,
        distinct_stamps=distinct,
        input_tokens=_lengths(inputs),
        output_tokens=_lengths(outputs),
        zero_outputs=zero_outputs,
        with_session=with_session,
        with_prefix_ids=with_prefix,
        tasks=dict(tasks.most_common()),
        by_hour=by_hour if zero_of_day_s is not None and counts else None,
        whole_second_stamps=whole and counts > 0,
    )


class _Bins:
    """Counts of fixed bins, kept as sums only; arrivals come in order."""

    def __init__(self, width_s: float) -> None:
        self._width_s = width_s
        self._current = 0
        self._count = 0
        self._square_sum = 0
        self._sum = 0
        self._filled = 0
        self._highest = 0

    def add(self, at_s: float) -> None:
        index = int(at_s // self._width_s)
        if index != self._current:
            self._close()
            self._current = index
            self._count = 0
        self._count += 1

    def _close(self) -> None:
        self._sum += self._count
        self._square_sum += self._count * self._count
        self._filled += self._count > 0
        self._highest = max(self._highest, self._count)

    @property
    def highest(self) -> int:
        return max(self._highest, self._count)

    @property
    def empty_share(self) -> float:
        return 1.0 - (self._filled + (self._count > 0)) / (self._current + 1)

    @property
    def dispersion(self) -> float | None:
        """Population variance over mean of the counts of all bins."""
        bins = self._current + 1
        total = self._sum + self._count
        if bins < 2 or total == 0:
            return None
        mean = total / bins
        return (self._square_sum + self._count * self._count) / bins / mean - mean


def _lengths(counts: Counter[int]) -> LengthStatistics | None:
    number = sum(counts.values())
    if number == 0:
        return None
    ordered = sorted(counts)
    total = sum(tokens * count for tokens, count in counts.items())
    found: dict[float, int] = {}
    for percentile in PERCENTILES:
        rank, seen = math.ceil(percentile / 100.0 * number), 0
        for tokens in ordered:
            seen += counts[tokens]
            if seen >= rank:
                found[percentile] = tokens
                break
    return LengthStatistics(total, total / number, found, ordered[-1])


def prefix_reuse(requests: Iterable[TraceRequest]) -> float | None:
    """Share of prefix blocks an infinite cache would hit: a block hits if all blocks up to it were seen in this order.

    Keeps every id seen. None without prefix ids.
    """
    seen: set[int] = set()
    blocks = hits = 0
    for request in requests:
        blocks += len(request.prefix_ids)
        for block in request.prefix_ids:
            if block not in seen:
                break
            hits += 1
        seen.update(request.prefix_ids)
    return hits / blocks if blocks else None
