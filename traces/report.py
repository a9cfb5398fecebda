"""What a run looks like on a terminal, in the layout of `vllm bench serve`, with our figures after it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from traces.metrics import METRICS, percentile_word
from traces.record import Outcome
from traces.results import RunResult

WIDTH = 50
_COUNTS = (
    ("Successful requests:", "completed"),
    ("Failed requests:", "failed"),
    ("Aborted requests:", "aborted_requests"),
    ("Dropped requests (not sent):", "dropped_requests"),
    ("Benchmark duration (s):", "duration"),
    ("Total input tokens:", "total_input_tokens"),
    ("Total generated tokens:", "total_output_tokens"),
    ("Offered request rate (req/s):", "request_rate"),
    ("Request throughput (req/s):", "request_throughput"),
    ("Request goodput (req/s):", "request_goodput"),
    ("Output token throughput (tok/s):", "output_throughput"),
    ("Peak output token throughput (tok/s):", "max_output_tokens_per_s"),
    ("Peak concurrent requests:", "max_concurrent_requests"),
    ("Total token throughput (tok/s):", "total_token_throughput"),
    ("Prompts of another length than asked:", "prompt_token_mismatches"),
    ("Answers of another length than asked:", "output_token_mismatches"),
    ("Energy attributed to requests (J):", "attributed_energy_j"),
    ("Energy per request, attributed (J):", "attributed_j_per_request"),
    ("Energy of the devices (J):", "energy_j"),
)


def report_lines(result: RunResult) -> Iterator[str]:
    """Lines of the report; figures that are not known are left out, the method stands beside those of energy."""
    figures = result.summary()
    yield f"{' Serving Benchmark Result ':=^{WIDTH}}"
    for header, key in _COUNTS:
        if figures[key] is not None:
            yield _line(header, figures[key])
    if methods := figures["attributed_energy_methods"]:
        yield _line("Energy of requests is:", ", ".join(methods))
    if figures["energy_method"]:
        yield _line("Energy of the devices is:", figures["energy_method"])
    for metric in METRICS:
        if figures[f"mean_{metric.key}_ms"] is None:
            continue
        yield f"{metric.header:-^{WIDTH}}"
        yield f"  = {metric.formula}"
        name = metric.key.upper().replace("_", " ")
        for word in ("mean", "median", *(f"p{percentile_word(part)}" for part in result.percentiles)):
            yield _line(f"{word.capitalize()} {name} (ms):", figures[f"{word}_{metric.key}_ms"])
    yield "=" * WIDTH
    if figures["aborted"]:
        yield "The run was stopped before its end: figures cover what was sent."
    yield from _errors(result)


def _line(header: str, value: Any) -> str:
    return f"{header:<40} {value:<10.2f}" if isinstance(value, float) else f"{header:<40} {value:<10}"


def _errors(result: RunResult) -> Iterator[str]:
    """The most frequent reasons of failure."""
    reasons: dict[str, int] = {}
    measured = result.measured
    for record in measured.where(measured.of_outcome(Outcome.FAILED)):
        if record.error:
            reasons[record.error] = reasons.get(record.error, 0) + 1
    for reason, count in sorted(reasons.items(), key=lambda item: -item[1])[:5]:
        yield f"{count} failed: {reason}"


def send_lag_warning(figures: Mapping[str, Any]) -> str | None:
    """A sentence where sends were so late that the load was not the one described."""
    late_ms = figures.get("p99_send_lag_ms")
    if late_ms is None or late_ms <= 500.0:
        return None
    return (
        f"1 % of the requests left more than {late_ms:.0f} ms late: this machine could not hold the schedule. "
        "Latencies from the schedule include the delay; thin the trace or use a faster client machine"
    )
