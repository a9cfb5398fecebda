"""Latency metrics and their formulas, as `vllm bench serve` defines them, and ours beside them.

All statistics are over completed requests: numpy's mean, median, population standard deviation and linearly
interpolated percentiles. Where the definitions of other clients differ, `FORMULAS` says what is meant here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from traces.record import RequestRecord

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
    done = [record for record in records if record.completed]
    sent = [record for record in records if record.sent_s is not None]
    gaps = [np.asarray(record.itl_s, dtype=np.float64) for record in done if record.itl_s]
    return {
        "ttft": _array([record.ttft_s for record in done]),
        "tpot": _array([record.tpot_s for record in done]),
        "itl": np.concatenate(gaps) if gaps else np.empty(0),
        "e2el": _array([record.e2el_s for record in done]),
        "ttft_scheduled": _array([record.ttft_scheduled_s for record in done]),
        "e2el_scheduled": _array([record.e2el_scheduled_s for record in done]),
        "send_lag": _array([record.send_lag_s for record in sent]),
    }


def _array(values: Sequence[float | None]) -> Samples:
    return np.asarray([value for value in values if value is not None], dtype=np.float64)


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
    limits = {name: limit / 1e3 for name, limit in slo_ms.items()}
    return sum(
        record.completed and all(_slo_value(record, n) <= limit for n, limit in limits.items()) for record in records
    )


SLO_NAMES = ("ttft", "tpot", "e2el", "ttft_scheduled", "e2el_scheduled")


def _slo_value(record: RequestRecord, name: str) -> float:
    value: float | None = getattr(record, f"{name}_s")
    return 0.0 if value is None else value


def busiest_second(records: Sequence[RequestRecord]) -> tuple[float, int] | None:
    """Most token chunks in one second, and most requests active in one second, counted from the first send.

    As vllm counts them: seconds are whole ones from the first send of a completed request. None without any.
    """
    done = [record for record in records if record.completed]
    if not done:
        return None
    start_s = min(record.sent_s for record in done if record.sent_s is not None)
    end_s = max(record.last_token_s for record in done if record.last_token_s is not None)
    seconds = int(np.ceil(end_s - start_s)) + 1
    tokens = np.zeros(seconds)
    active = np.zeros(seconds + 1)
    for record in done:
        assert record.sent_s is not None
        assert record.first_token_s is not None
        assert record.last_token_s is not None
        first = record.first_token_s - start_s
        gaps = np.concatenate(([0.0], np.cumsum(record.itl_s))) if record.itl_s else np.zeros(1)
        np.add.at(tokens, np.minimum((first + gaps).astype(int), seconds - 1), 1)
        active[int(record.sent_s - start_s)] += 1
        active[int(record.last_token_s - start_s) + 1] -= 1
    return float(tokens.max()), int(np.cumsum(active).max())
