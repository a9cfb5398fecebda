"""Latency metrics and their formulas, as `vllm bench serve` defines them, and ours beside them.

All statistics are over completed requests: numpy's mean, median, population standard deviation and linearly
interpolated percentiles. Where the definitions of other clients differ, `FORMULAS` says what is meant here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from traces.record import Outcome, RequestRecord
from traces.record_table import RecordTable

Samples = NDArray[np.float64]
DEFAULT_PERCENTILES = (50.0, 90.0, 95.0, 99.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """`key` as in the JSON (`mean_<key>_ms`); `formula` in words."""

    key: str
    header: str
    formula: str


METRICS: tuple[Metric, ...] = (
    Metric("ttft", "Time to First Token", "first token chunk - actual send"),
    Metric(
        "tpot", "Time per Output Token (excl. 1st token)", "(e2el - ttft) / (output tokens - 1), of 2 or more tokens"
    ),
    Metric("itl", "Inter-token Latency", "gaps between token chunks, pooled over all requests"),
    Metric("e2el", "End-to-end Latency", "last token chunk - actual send"),
    Metric("ttft_scheduled", "Time to First Token from schedule", "first token chunk - scheduled send"),
    Metric("e2el_scheduled", "End-to-end Latency from schedule", "last token chunk - scheduled send"),
    Metric("send_lag", "Send lag", "actual send - scheduled send, of all requests sent"),
)
FORMULAS: Mapping[str, str] = {metric.key: metric.formula for metric in METRICS}


def samples(records: Sequence[RequestRecord]) -> dict[str, Samples]:
    """Seconds of each metric; `itl` is empty where no record kept its gaps."""
    table = RecordTable.of(records)
    done = table.of_outcome(Outcome.COMPLETED)
    gaps = (
        []
        if table.gaps is None
        else [table.gaps[place] for place in np.flatnonzero(done).tolist() if table.gaps[place]]
    )
    lag_s = table.column("sent_s") - table.column("scheduled_s")
    found = {name: _known(values[done]) for name, values in latencies_s(table).items()}
    return {
        "ttft": found["ttft"],
        "tpot": found["tpot"],
        "itl": np.concatenate([np.asarray(each, dtype=np.float64) for each in gaps]) if gaps else np.empty(0),
        "e2el": found["e2el"],
        "ttft_scheduled": found["ttft_scheduled"],
        "e2el_scheduled": found["e2el_scheduled"],
        "send_lag": _known(lag_s),
    }


def latencies_s(table: RecordTable) -> dict[str, Samples]:
    """Of every row, as `RequestRecord` defines them; NaN where unknown."""
    scheduled, sent = table.column("scheduled_s"), table.column("sent_s")
    first, last, tokens = table.column("first_token_s"), table.column("last_token_s"), table.column("output_tokens")
    several = np.where(tokens >= 2.0, tokens - 1.0, np.nan)
    return {
        "ttft": first - sent,
        "tpot": (last - first) / several,
        "e2el": last - sent,
        "ttft_scheduled": first - scheduled,
        "e2el_scheduled": last - scheduled,
    }


def _known(values: Samples) -> Samples:
    found: Samples = values[~np.isnan(values)]
    return found


def statistics_ms(key: str, values_s: Samples, percentiles: Sequence[float]) -> dict[str, float | None]:
    """`mean_`, `median_`, `std_`, `pNN_<key>_ms`; all None without samples."""
    names = [f"mean_{key}_ms", f"median_{key}_ms", f"std_{key}_ms"]
    names += [f"p{percentile_word(percentile)}_{key}_ms" for percentile in percentiles]
    if values_s.size == 0:
        return dict.fromkeys(names)
    values_ms = values_s * 1e3
    figures = [values_ms.mean(), np.median(values_ms), values_ms.std(), *np.percentile(values_ms, list(percentiles))]
    return {name: float(figure) for name, figure in zip(names, figures)}


def percentile_word(percentile: float) -> str:
    """`99` for 99.0, `99.9` for 99.9."""
    return str(int(percentile)) if percentile == int(percentile) else str(percentile)


def good_requests(records: Sequence[RequestRecord], slo_ms: Mapping[str, float]) -> int:
    """Completed requests that meet every limit; a request of one token has a TPOT of 0, a failed one is never good."""
    table = RecordTable.of(records)
    good = table.of_outcome(Outcome.COMPLETED)
    latencies = latencies_s(table)
    for name, limit in slo_ms.items():
        good &= np.nan_to_num(latencies[name]) <= limit / 1e3
    return int(good.sum())


SLO_NAMES = ("ttft", "tpot", "e2el", "ttft_scheduled", "e2el_scheduled")


def busiest_second(records: Sequence[RequestRecord]) -> tuple[float, int] | None:
    """Most token chunks in one second, and most requests active in one second, counted from the first send.

    As vllm counts them: seconds are whole ones from the first send of a completed request. None without any.
    """
    table = RecordTable.of(records)
    done = table.of_outcome(Outcome.COMPLETED)
    if not done.any():
        return None
    sent, first, last = (table.column(name)[done] for name in ("sent_s", "first_token_s", "last_token_s"))
    start_s = sent.min()
    seconds = int(np.ceil(last.max() - start_s)) + 1
    chunks = first - start_s
    if table.gaps is not None:
        gaps = [table.gaps[place] for place in np.flatnonzero(done).tolist()]
        later = [chunk + np.cumsum(each) for chunk, each in zip(chunks, gaps) if each]
        chunks = np.concatenate([chunks, *later])
    tokens = np.bincount(np.minimum(chunks.astype(int), seconds - 1))
    active = np.bincount((sent - start_s).astype(int), minlength=seconds + 1)
    active -= np.bincount((last - start_s).astype(int) + 1, minlength=seconds + 1)
    return float(tokens.max()), int(np.cumsum(active).max())
