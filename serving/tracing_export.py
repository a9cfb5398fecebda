"""The way of spans to a collector: a bounded queue, a thread that sends, and counts of what was sent and what was lost.

The one module that imports OpenTelemetry's SDK, which the extra `gridserve[otel]` brings.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping, Sequence
from importlib import metadata
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

logger = logging.getLogger(__name__)

# The specification's own defaults; its variables of the same meaning win.
MAX_QUEUED_SPANS = 2048
MAX_BATCH_SPANS = 512
_LIBRARY_LOG = "opentelemetry.exporter.otlp.proto.http.trace_exporter"


class Exports:
    """What became of the spans so far. Counted on two threads."""

    def __init__(self, max_queued: int = MAX_QUEUED_SPANS) -> None:
        self.exported = 0
        self.undelivered = 0
        self.dropped = 0
        self._max_queued = max_queued
        self._waiting = 0
        self._lock = threading.Lock()

    @property
    def lost(self) -> int:
        return self.undelivered + self.dropped

    def enter(self) -> bool:
        """Take a place in the queue; False where it is full."""
        with self._lock:
            if self._waiting >= self._max_queued:
                self.dropped += 1
                return False
            self._waiting += 1
            return True

    def leave(self, spans: int, sent: bool) -> None:
        with self._lock:
            self._waiting -= spans
            self.exported += spans if sent else 0
            self.undelivered += 0 if sent else spans


class BoundedQueue(SpanProcessor):
    """Drops the newest where the queue is full, so that traces already queued stay whole."""

    def __init__(self, inner: SpanProcessor, exports: Exports) -> None:
        self._inner = inner
        self._exports = exports

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        pass

    def on_end(self, span: ReadableSpan) -> None:
        if span.context is not None and span.context.trace_flags.sampled and self._exports.enter():
            self._inner.on_end(span)

    def shutdown(self) -> None:
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._inner.force_flush(timeout_millis)


class CountingExporter(SpanExporter):
    """Counts what `inner` sends, and tells once that it no longer can, once that it can again. `place`: the collector
    as the log names it."""

    def __init__(self, inner: SpanExporter, exports: Exports, place: str) -> None:
        self._inner = inner
        self._exports = exports
        self._place = place
        self._failing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            result = self._inner.export(spans)
        except Exception:
            logger.exception("the exporter of traces failed")
            result = SpanExportResult.FAILURE
        sent = result is SpanExportResult.SUCCESS
        self._exports.leave(len(spans), sent)
        if sent and self._failing:
            logger.warning("%s takes traces again; %d spans were lost", self._place, self._exports.lost)
        elif not sent and not self._failing:
            logger.warning("%s takes no traces: they are dropped and counted, serving goes on", self._place)
        self._failing = not sent
        return result

    def shutdown(self) -> None:
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._inner.force_flush(timeout_millis)


def open_exports(endpoint: str | None) -> tuple[TracerProvider, Exports]:
    """A provider that posts spans to `endpoint`, else where OpenTelemetry's environment variables say.

    Headers, time-out, compression, certificates, sampler, batch size and queue length are the environment's too.
    """
    # It logs each retry and each batch; what an operator needs of that is told once, above.
    logging.getLogger(_LIBRARY_LOG).setLevel(logging.CRITICAL)
    max_queued = _count(os.environ, "OTEL_BSP_MAX_QUEUE_SIZE", MAX_QUEUED_SPANS)
    max_batch = min(max_queued, _count(os.environ, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", MAX_BATCH_SPANS))
    exports = Exports(max_queued)
    exporter = CountingExporter(OTLPSpanExporter(endpoint), exports, _place(endpoint, os.environ))
    provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
    queue = BatchSpanProcessor(exporter, max_queue_size=max_queued, max_export_batch_size=max_batch)
    provider.add_span_processor(BoundedQueue(queue, exports))
    return provider, exports


def _resource() -> Resource:
    """The environment's `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` win over ours."""
    ours = {"service.name": "gridserve", "service.version": metadata.version("gridserve")}
    return Resource.create(ours | dict(OTELResourceDetector().detect().attributes))


def _count(environment: Mapping[str, str], name: str, default: int) -> int:
    try:
        return max(1, int(environment.get(name, default)))
    except ValueError:
        logger.warning("%s is no number; %d is taken", name, default)
        return default


def _place(endpoint: str | None, environment: Mapping[str, str]) -> str:
    """Host and port alone: a URL may hold a secret."""
    names = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    url = endpoint or next((environment[name] for name in names if environment.get(name)), "http://localhost:4318")
    parts = urlsplit(url)
    return f"the collector at {parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}"
