"""Traces of requests, exported by OTLP over HTTP.

Spans are made once a request's energy is known, from what was recorded of it: nothing is traced while tokens pass. They
wait in a bounded queue for a thread that sends them; what a slow or dead collector does not take is dropped, counted
and told once. OpenTelemetry is the extra `gridserve[otel]` and imported only when a tracer is opened.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from importlib import metadata
from typing import TYPE_CHECKING

from serving.openai_errors import ApiError
from serving.openai_requests import ChatCompletionRequest, GenerationBody
from serving.openai_responses import EnergyUsage
from serving.request_log import Finished
from serving.service import Caller, Run
from serving.trace_context import RequestTrace, TraceContext
from serving.tracing_options import TracingOptions
from serving.tracing_spans import PlannedSpan, Refusal, phase_spans, refusal_span, request_span

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

    from serving.tracing_export import Exports

logger = logging.getLogger(__name__)

CLOSE_S = 3.0
NS_PER_S = 1e9


class RequestTracer:
    """`settled` and `refused` from the event loop; `exports` counts what became of the spans."""

    def __init__(self, provider: TracerProvider, exports: Exports, wall: Callable[[], float] = time.time) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self.exports = exports
        self._provider = provider
        self._tracer = provider.get_tracer("gridserve", metadata.version("gridserve"))
        self._propagator = TraceContextTextMapPropagator()
        self._wall = wall

    def ended(self, run: Run) -> RequestTrace:
        """What is known of a run's trace beside its record."""
        return RequestTrace(run.caller.trace, run.generations[0].sampling, bool(run.body.stream))

    def settled(self, finished: Finished, usage: EnergyUsage | None) -> None:
        """A request has ended and its energy is known, or is not going to be."""
        parent = finished.trace.parent if finished.trace is not None else None
        whole = self._begin(request_span(finished, usage), self._context(parent))
        if whole.is_recording():
            from opentelemetry.trace import set_span_in_context

            within = set_span_in_context(whole)
            for phase in phase_spans(finished, usage):
                self._begin(phase, within, inner=True).end(_ns(phase.end_unix_s))
        whole.end(_ns(finished.finished_unix_s))

    def refused(self, body: GenerationBody, caller: Caller, model: str, error: ApiError) -> None:
        """A request was sent away."""
        now_s = self._wall()
        refusal = Refusal(
            caller.trace,
            "/v1/chat/completions" if isinstance(body, ChatCompletionRequest) else "/v1/completions",
            model,
            caller.key_name,
            now_s - (time.monotonic() - caller.arrival_s),
            now_s,
            error.status,
            error.code,
        )
        planned = refusal_span(refusal)
        self._begin(planned, self._context(refusal.parent)).end(_ns(planned.end_unix_s))

    def close(self) -> None:
        """Send what waits, for `CLOSE_S` at most: a collector that hangs holds up no stop."""
        closing = threading.Thread(target=self._provider.shutdown, name="traces-close", daemon=True)
        closing.start()
        closing.join(CLOSE_S)

    def _context(self, parent: TraceContext | None) -> Context:
        from opentelemetry.context import Context

        if parent is None:
            return Context()
        carrier = {"traceparent": parent.traceparent}
        if parent.tracestate is not None:
            carrier["tracestate"] = parent.tracestate
        return self._propagator.extract(carrier, Context())

    def _begin(self, planned: PlannedSpan, context: Context, inner: bool = False) -> Span:
        from opentelemetry.trace import SpanKind, Status, StatusCode

        kind = SpanKind.INTERNAL if inner else SpanKind.SERVER
        span = self._tracer.start_span(
            planned.name, context, kind, planned.attributes, start_time=_ns(planned.start_unix_s)
        )
        if planned.failed:
            span.set_status(Status(StatusCode.ERROR))
        return span


def open_tracer(options: TracingOptions) -> RequestTracer | None:
    """A tracer that exports as the options and OpenTelemetry's environment variables say.

    A variable that its library refuses is a `ValueError` where the flag asks for traces; else it is logged, and there
    are none.
    """
    from serving.tracing_export import open_exports

    try:
        provider, exports = open_exports(options.endpoint)
    except (ValueError, OSError) as error:
        if options.endpoint is not None:
            raise ValueError(f"traces cannot be exported: {error}") from error
        logger.warning("the environment asks for traces, but there will be none: %s", error)
        return None
    return RequestTracer(provider, exports)


def _ns(unix_s: float) -> int:
    return round(unix_s * NS_PER_S)
