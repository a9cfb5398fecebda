"""A histogram for what is observed at every token: a tenth of the client library's time, and the same series."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from serving.metric_catalogue import MetricSpec


class StepHistogram(Collector):
    """Observed on one thread; scraped on any. `labels` are the values of the spec's labels."""

    def __init__(self, spec: MetricSpec, *labels: str) -> None:
        self._spec = spec
        self._labels = labels
        self._bounds = spec.buckets
        self._counts = [0] * (len(spec.buckets) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def collect(self) -> Iterator[Metric]:
        spec, below, buckets = self._spec, 0, []
        for bound, count in zip((*self._bounds, None), self._counts):
            below += count
            buckets.append(("+Inf" if bound is None else str(bound), float(below)))
        family = HistogramMetricFamily(spec.name, spec.help, labels=spec.labels)
        family.add_metric(self._labels, buckets, self._sum)
        yield family

    def describe(self) -> Iterator[Metric]:
        yield HistogramMetricFamily(self._spec.name, self._spec.help, labels=self._spec.labels)
