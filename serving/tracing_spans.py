"""The spans of a request as plain values: queue, prefill and decode under one, with what it cost.

Names follow OpenTelemetry's semantic conventions for generative AI (`gen_ai.*`) where they have one; energy and
carbon, which they do not know, stand under `gridserve.*` with their provenance. Prompts and answers are in none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from serving.openai_responses import EnergyUsage
from serving.request_log import Finished
from serving.trace_context import TraceContext

Value = str | bool | int | float | Sequence[str]

PROVIDER = "gridserve"
CLIENT_CLOSED = 499
SERVER_ERROR = 500
OPERATIONS = {"/v1/chat/completions": "chat", "/v1/completions": "text_completion"}

# Field of the `energy` object to attribute.
_ENERGY = {
    "energy_joules": "gridserve.energy.joules",
    "prefill_joules": "gridserve.energy.prefill_joules",
    "decode_joules": "gridserve.energy.decode_joules",
    "idle_joules": "gridserve.energy.idle_joules",
    "method": "gridserve.energy.method",
    "source": "gridserve.energy.source",
    "scope": "gridserve.energy.scope",
    "attribution_method": "gridserve.energy.attribution_method",
    "uncertainty_percent": "gridserve.energy.uncertainty_percent",
    "settled": "gridserve.energy.settled",
    "grams_co2e": "gridserve.carbon.grams_co2e",
    "operational_grams": "gridserve.carbon.operational_grams",
    "embodied_grams": "gridserve.carbon.embodied_grams",
    "pue": "gridserve.carbon.pue",
    "carbon_intensity_g_per_kwh": "gridserve.carbon.intensity_g_per_kwh",
    "carbon_source": "gridserve.carbon.source",
    "carbon_kind": "gridserve.carbon.kind",
    "carbon_tier": "gridserve.carbon.tier",
    "carbon_age_seconds": "gridserve.carbon.age_seconds",
    "zone": "gridserve.carbon.zone",
    "directive": "gridserve.directive",
    "directive_reason": "gridserve.directive_reason",
    "policy_revision": "gridserve.policy_revision",
    "unknown": "gridserve.unknown",
}


@dataclass(frozen=True, slots=True)
class PlannedSpan:
    """Times are seconds since 1970. `failed`: the server is at fault, which makes the span's status an error."""

    name: str
    start_unix_s: float
    end_unix_s: float
    attributes: Mapping[str, Value]
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that was sent away before the engine saw it."""

    parent: TraceContext | None
    endpoint: str
    model: str
    tenant: str | None
    arrived_unix_s: float
    refused_unix_s: float
    status: int
    code: str | None


def request_span(finished: Finished, usage: EnergyUsage | None) -> PlannedSpan:
    """The request as a whole. What is not known has no attribute; `gridserve.unknown` says why."""
    trace = finished.trace
    found: dict[str, Value | None] = {
        "gen_ai.operation.name": OPERATIONS[finished.endpoint],
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": finished.model,
        "gen_ai.response.model": finished.model,
        "gen_ai.response.id": finished.request_id,
        "gen_ai.response.finish_reasons": (finished.finish_reason,),
        "gen_ai.usage.input_tokens": finished.prompt_tokens,
        "gen_ai.usage.output_tokens": finished.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": finished.cached_tokens,
        "http.route": finished.endpoint,
        "gridserve.tenant": finished.tenant,
        "gridserve.task": finished.task_class,
        "gridserve.priority": finished.priority,
        "gridserve.policy_mode": finished.policy_mode,
        "error.type": _error_type(finished.status),
    }
    if trace is not None:
        sampling = trace.sampling
        found |= {
            "gen_ai.request.max_tokens": sampling.max_tokens,
            "gen_ai.request.temperature": sampling.temperature,
            "gen_ai.request.top_p": sampling.top_p,
            "gen_ai.request.top_k": float(sampling.top_k) if sampling.top_k > 0 else None,
            "gen_ai.request.presence_penalty": sampling.presence_penalty or None,
            "gen_ai.request.frequency_penalty": sampling.frequency_penalty or None,
            "gen_ai.request.seed": sampling.seed,
            "gen_ai.request.choice.count": finished.choices if finished.choices > 1 else None,
            "gen_ai.request.stream": trace.streamed,
            "gen_ai.response.time_to_first_chunk": finished.ttft_s if trace.streamed else None,
        }
    if usage is not None:
        found |= {name: getattr(usage, field) for field, name in _ENERGY.items()}
    return PlannedSpan(
        f"{OPERATIONS[finished.endpoint]} {finished.model}",
        finished.arrived_unix_s,
        finished.finished_unix_s,
        _known(found),
        finished.status >= SERVER_ERROR,
    )


def phase_spans(finished: Finished, usage: EnergyUsage | None) -> list[PlannedSpan]:
    """Queue, prefill and decode, as far as the request came. A boundary that is not known splits nothing."""
    start_s, end_s = finished.arrived_unix_s, finished.finished_unix_s
    first_s = None if finished.ttft_s is None else min(end_s, start_s + finished.ttft_s)
    spans = []
    if finished.queue_s is not None:
        begun_s = min(first_s or end_s, start_s + finished.queue_s)
        spans.append(PlannedSpan("queue", start_s, begun_s, {}))
        prefill: dict[str, Value | None] = {"gen_ai.usage.input_tokens": finished.prompt_tokens,
                                            "gen_ai.usage.cache_read.input_tokens": finished.cached_tokens,
                                            "gridserve.energy.joules": usage.prefill_joules if usage else None,
                                            "gridserve.energy.method": usage.method if usage else None}  # fmt: skip
        spans.append(PlannedSpan("prefill", begun_s, first_s or end_s, _known(prefill)))
    elif first_s is None:
        spans.append(PlannedSpan("queue", start_s, end_s, {}))
    if first_s is not None:
        decode: dict[str, Value | None] = {"gen_ai.usage.output_tokens": finished.completion_tokens,
                                           "gridserve.energy.joules": usage.decode_joules if usage else None,
                                           "gridserve.energy.method": usage.method if usage else None}  # fmt: skip
        spans.append(PlannedSpan("decode", first_s, end_s, _known(decode)))
    return spans


def refusal_span(refusal: Refusal) -> PlannedSpan:
    operation = OPERATIONS[refusal.endpoint]
    found: dict[str, Value | None] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": refusal.model,
        "http.route": refusal.endpoint,
        "http.response.status_code": refusal.status,
        "gridserve.tenant": refusal.tenant,
        "error.type": refusal.code or str(refusal.status),
    }
    name = f"{operation} {refusal.model}"
    failed = refusal.status >= SERVER_ERROR
    return PlannedSpan(name, refusal.arrived_unix_s, refusal.refused_unix_s, _known(found), failed)


def _error_type(status: int) -> str | None:
    if status == CLIENT_CLOSED:
        return "client_closed"
    return str(status) if status >= 400 else None


def _known(found: Mapping[str, Value | None]) -> dict[str, Value]:
    return {name: value for name, value in found.items() if value is not None}
