"""The scheduler's limits, and the figures it reports about itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Limits of a step and of the queue. Raises `ValueError` naming the field that is out of range.

    `max_num_batched_tokens`: tokens of one step, prefill and decode together. `long_prefill_threshold_tokens`: most
    tokens of one request in one step, so that a long prompt leaves room for others; `None`: no such limit.
    `watermark`: fraction of the KV blocks that admission keeps free for the running requests to grow into.
    `max_model_len`: tokens of prompt and answer together. The block size is the pool's.
    """

    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    max_model_len: int = 8192
    long_prefill_threshold_tokens: int | None = None
    watermark: float = 0.01

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "long_prefill_threshold_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.max_model_len < 2:
            raise ValueError(
                f"max_model_len must be at least 2, a prompt and an answer token; got {self.max_model_len}"
            )
        if not 0.0 <= self.watermark < 1.0:
            raise ValueError(f"watermark must be a fraction from 0 to below 1, got {self.watermark}")


@dataclass(frozen=True, slots=True)
class SchedulerStats:
    """A snapshot for metrics and controllers; the counters from `prefix_query_tokens` on only rise.

    `waiting_prefill_tokens`: the backlog, tokens of waiting requests and of running prompts not yet computed.
    `oldest_waiting_arrival_s`: monotonic seconds; `None` when no request waits. `drafted_tokens` were guessed and
    computed, `accepted_tokens` of them were what the model drew. `token_budget`: most tokens of a step as things are.
    """

    running: int
    waiting: int
    waiting_prefill_tokens: int
    oldest_waiting_arrival_s: float | None
    kv_blocks_used: int
    kv_blocks_total: int
    prefix_query_tokens: int
    prefix_hit_tokens: int
    preemptions: int
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    token_budget: int | None = None


def capped(name: str, value: int | None, configured: int) -> int:
    """A limit set for a while: never above the configured one, which None restores. Raises `ValueError` below 1."""
    if value is None:
        return configured
    if value < 1:
        raise ValueError(f"the {name} must be at least 1, got {value}; use pause() to stop")
    return min(value, configured)
