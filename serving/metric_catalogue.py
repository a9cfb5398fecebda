"""Names, units and buckets of every series the inference API exports. One list, so that a test can read it whole.

Latency names and buckets follow vLLM's under our prefix, so that existing panels port by search and replace.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class MetricSpec:
    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


def _decades(largest: int) -> tuple[float, ...]:
    """1, 2, 5, 10, 20, 50, ... up to `largest`."""
    steps = (digit * 10**power for power in range(len(str(largest))) for digit in (1, 2, 5))
    return tuple(float(step) for step in steps if step <= largest)


TTFT_BUCKETS_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
)  # fmt: skip
ITL_BUCKETS_S = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
E2E_BUCKETS_S = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
)  # fmt: skip
TOKEN_BUCKETS = _decades(1_000_000)
N_BUCKETS = (1.0, 2.0, 5.0, 10.0, 20.0)

_MODEL = ("model_name",)

HTTP_REQUESTS = MetricSpec(
    "gridserve_http_requests_total", "counter", "HTTP requests answered, by route.", ("route", "method", "status")
)
REJECTED = MetricSpec(
    "gridserve_requests_rejected_total", "counter", "Generation requests refused before the engine.", ("status",)
)
FINISHED = MetricSpec(
    "gridserve_request_success_total", "counter", "Sequences ended, by reason.", ("model_name", "finished_reason")
)
PROMPT_TOKENS = MetricSpec("gridserve_prompt_tokens_total", "counter", "Prompt tokens of admitted requests.", _MODEL)
GENERATION_TOKENS = MetricSpec("gridserve_generation_tokens_total", "counter", "Tokens generated.", _MODEL)
TTFT = MetricSpec(
    "gridserve_time_to_first_token_seconds",
    "histogram",
    "From the request's arrival to each sequence's first token.",
    _MODEL,
    TTFT_BUCKETS_S,
)
ITL = MetricSpec(
    "gridserve_inter_token_latency_seconds", "histogram", "Between the tokens of a sequence.", _MODEL, ITL_BUCKETS_S
)
E2E = MetricSpec(
    "gridserve_e2e_request_latency_seconds",
    "histogram",
    "From the request's arrival to its last token.",
    _MODEL,
    E2E_BUCKETS_S,
)
REQUEST_PROMPT_TOKENS = MetricSpec(
    "gridserve_request_prompt_tokens", "histogram", "Prompt tokens of a request.", _MODEL, TOKEN_BUCKETS
)
REQUEST_GENERATION_TOKENS = MetricSpec(
    "gridserve_request_generation_tokens", "histogram", "Generated tokens of a sequence.", _MODEL, TOKEN_BUCKETS
)
PARAMS_N = MetricSpec("gridserve_request_params_n", "histogram", "Choices asked for.", _MODEL, N_BUCKETS)
PARAMS_MAX_TOKENS = MetricSpec(
    "gridserve_request_params_max_tokens", "histogram", "Token limit of a sequence.", _MODEL, TOKEN_BUCKETS
)
IN_FLIGHT = MetricSpec("gridserve_api_sequences_in_flight", "gauge", "Sequences admitted and not yet ended.", _MODEL)
ENGINE_READY = MetricSpec("gridserve_engine_ready", "gauge", "1 when the engine takes requests.", _MODEL)
RUNNING = MetricSpec("gridserve_num_requests_running", "gauge", "Sequences running in the engine.", _MODEL)
WAITING = MetricSpec("gridserve_num_requests_waiting", "gauge", "Sequences waiting in the engine.", _MODEL)
KV_USAGE = MetricSpec("gridserve_kv_cache_usage_ratio", "gauge", "Used share of the KV blocks, 0 to 1.", _MODEL)
PREEMPTIONS = MetricSpec("gridserve_num_preemptions_total", "counter", "Sequences preempted by the engine.", _MODEL)
PREFIX_QUERIES = MetricSpec(
    "gridserve_prefix_cache_queries_total", "counter", "Prompt tokens looked up in the prefix cache.", _MODEL
)
PREFIX_HITS = MetricSpec(
    "gridserve_prefix_cache_hits_total", "counter", "Prompt tokens found in the prefix cache.", _MODEL
)
DRAFTED = MetricSpec(
    "gridserve_spec_decode_draft_tokens_total", "counter", "Tokens guessed by speculative decoding.", _MODEL
)
ACCEPTED = MetricSpec(
    "gridserve_spec_decode_accepted_tokens_total", "counter", "Guessed tokens that the model drew itself.", _MODEL
)

RECORDED = (
    HTTP_REQUESTS, REJECTED, FINISHED, PROMPT_TOKENS, GENERATION_TOKENS, TTFT, ITL, E2E, REQUEST_PROMPT_TOKENS,
    REQUEST_GENERATION_TOKENS, PARAMS_N, PARAMS_MAX_TOKENS,
)  # fmt: skip
SCRAPED = (
    IN_FLIGHT, ENGINE_READY, RUNNING, WAITING, KV_USAGE, PREEMPTIONS, PREFIX_QUERIES, PREFIX_HITS, DRAFTED, ACCEPTED,
)  # fmt: skip
CATALOGUE = RECORDED + SCRAPED

# Family names (counters without _total) and vLLM's (its docs, "Production Metrics").
VLLM_NAMES = {
    "gridserve_time_to_first_token_seconds": "vllm:time_to_first_token_seconds",
    "gridserve_inter_token_latency_seconds": "vllm:inter_token_latency_seconds",
    "gridserve_e2e_request_latency_seconds": "vllm:e2e_request_latency_seconds",
    "gridserve_request_prompt_tokens": "vllm:request_prompt_tokens",
    "gridserve_request_generation_tokens": "vllm:request_generation_tokens",
    "gridserve_prompt_tokens": "vllm:prompt_tokens",
    "gridserve_generation_tokens": "vllm:generation_tokens",
    "gridserve_request_success": "vllm:request_success",
    "gridserve_num_requests_running": "vllm:num_requests_running",
    "gridserve_num_requests_waiting": "vllm:num_requests_waiting",
    "gridserve_kv_cache_usage_ratio": "vllm:kv_cache_usage_perc",
    "gridserve_num_preemptions": "vllm:num_preemptions",
    "gridserve_prefix_cache_queries": "vllm:prefix_cache_queries",
    "gridserve_prefix_cache_hits": "vllm:prefix_cache_hits",
}
