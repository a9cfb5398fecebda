"""Prometheus series of one inference API: recorded as requests pass, or read from the engine when scraped."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from engine.client_protocol import EngineClientProtocol, EngineStats
from serving import metric_catalogue as catalogue
from serving.limits import Admission
from serving.metric_catalogue import MetricSpec
from serving.step_histogram import StepHistogram


class EngineCollector(Collector):
    """Reads the engine's last report at each scrape; series the engine has not reported yet are left out."""

    def __init__(self, engine: EngineClientProtocol, admission: Admission) -> None:
        self._engine = engine
        self._admission = admission

    def collect(self) -> Iterator[Metric]:
        yield self._family(catalogue.IN_FLIGHT, self._admission.in_flight)
        yield self._family(catalogue.ENGINE_READY, int(self._engine.health.ready))
        stats = self._engine.stats
        if stats is not None:
            yield from self._engine_families(stats)

    def _engine_families(self, stats: EngineStats) -> Iterator[Metric]:
        yield self._family(catalogue.RUNNING, stats.running)
        yield self._family(catalogue.WAITING, stats.waiting)
        if stats.kv_blocks_total:
            yield self._family(catalogue.KV_USAGE, stats.kv_blocks_used / stats.kv_blocks_total)
        yield self._family(catalogue.PREEMPTIONS, stats.preemptions)
        yield self._family(catalogue.PREFIX_QUERIES, stats.prefix_query_tokens)
        yield self._family(catalogue.PREFIX_HITS, stats.prefix_hit_tokens)
        yield self._family(catalogue.DRAFTED, stats.drafted_tokens)
        yield self._family(catalogue.ACCEPTED, stats.accepted_tokens)

    def _family(self, spec: MetricSpec, value: float) -> Metric:
        kind = CounterMetricFamily if spec.kind == "counter" else GaugeMetricFamily
        family = kind(spec.name, spec.help, labels=spec.labels)
        family.add_metric([self._engine.info.model_id], value)
        return family


class VllmNames(Collector):
    """The series whose like vLLM exports, once more under vLLM's names, so that its dashboards work as they are."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._copying = False

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        if self._copying:
            return
        self._copying = True
        try:
            found = [family for family in self._registry.collect() if family.name in catalogue.VLLM_NAMES]
        finally:
            self._copying = False
        for family in found:
            name = catalogue.VLLM_NAMES[family.name]
            copy = Metric(name, family.documentation, family.type)
            for sample in family.samples:
                copy.add_sample(sample.name.replace(family.name, name, 1), sample.labels, sample.value)
            yield copy


class ApiMetrics:
    """The series of one application, in a registry of its own."""

    def __init__(self, engine: EngineClientProtocol, admission: Admission) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.registry.register(EngineCollector(engine, admission))
        self.generated_tokens = 0
        model = engine.info.model_id
        self._http_requests = self._counter(catalogue.HTTP_REQUESTS)
        self._rejected = self._counter(catalogue.REJECTED)
        self._finished = self._counter(catalogue.FINISHED)
        self._model = model
        self._prompt_tokens = self._counter(catalogue.PROMPT_TOKENS).labels(model)
        self._generation_tokens = self._counter(catalogue.GENERATION_TOKENS).labels(model)
        self._ttft_s = self._histogram(catalogue.TTFT).labels(model)
        self._itl_s = StepHistogram(catalogue.ITL, model)
        self.registry.register(self._itl_s)
        self._e2e_s = self._histogram(catalogue.E2E).labels(model)
        self._request_prompt_tokens = self._histogram(catalogue.REQUEST_PROMPT_TOKENS).labels(model)
        self._request_generation_tokens = self._histogram(catalogue.REQUEST_GENERATION_TOKENS).labels(model)
        self._params_n = self._histogram(catalogue.PARAMS_N).labels(model)
        self._params_max_tokens = self._histogram(catalogue.PARAMS_MAX_TOKENS).labels(model)

    def add_vllm_names(self) -> None:
        self.registry.register(VllmNames(self.registry))

    def _counter(self, spec: MetricSpec) -> Counter:
        return Counter(spec.name, spec.help, spec.labels, registry=self.registry)

    def _histogram(self, spec: MetricSpec) -> Histogram:
        return Histogram(spec.name, spec.help, spec.labels, buckets=spec.buckets, registry=self.registry)

    def http_request(self, route: str, method: str, status: int) -> None:
        """`route` is a path template of the application, never a client's text."""
        self._http_requests.labels(route, method, str(status)).inc()

    def rejected(self, status: int) -> None:
        self._rejected.labels(str(status)).inc()

    def admitted(self, prompt_tokens: int, num_choices: int, max_tokens: list[int]) -> None:
        self._prompt_tokens.inc(prompt_tokens)
        self._request_prompt_tokens.observe(prompt_tokens)
        self._params_n.observe(num_choices)
        for limit in max_tokens:
            self._params_max_tokens.observe(limit)

    def request_done(self, duration_s: float) -> None:
        self._e2e_s.observe(duration_s)

    def timer(self, arrival_s: float) -> SequenceTimer:
        return SequenceTimer(self, arrival_s)


class SequenceTimer:
    """Latencies of one sequence, in monotonic seconds."""

    __slots__ = ("_last_s", "_metrics", "num_tokens")

    def __init__(self, metrics: ApiMetrics, arrival_s: float) -> None:
        self._metrics = metrics
        self._last_s = arrival_s
        self.num_tokens = 0

    def tokens(self, count: int) -> None:
        """So many tokens arrived now; tokens of one step share its interval evenly."""
        now_s = time.monotonic()
        metrics, elapsed_s = self._metrics, now_s - self._last_s
        if self.num_tokens == 0:
            metrics._ttft_s.observe(elapsed_s)
        else:
            metrics._itl_s.observe(elapsed_s / count, count)
        metrics._generation_tokens.inc(count)
        metrics.generated_tokens += count
        self.num_tokens += count
        self._last_s = now_s

    def finished(self, reason: str) -> None:
        self._metrics._finished.labels(self._metrics._model, reason).inc()
        self._metrics._request_generation_tokens.observe(self.num_tokens)
