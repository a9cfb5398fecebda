"""Prometheus series of power, carbon, policy, tenants, ledger and jobs: read from the live objects at each scrape."""

from __future__ import annotations

import socket
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from power.plane import PowerPlane
from power.plane_status import PlaneStatus
from serving import control_catalogue as catalogue
from serving.admin_context import AdminContext
from serving.energy_totals import JOULE_BUCKETS
from serving.metric_catalogue import MetricSpec
from serving.policy.model import MODES
from serving.tenants_gate import TenantGate

MEGA = 1e6
MILLI = 1e3


class ControlCollector(Collector):
    """A series whose figure is unknown is left out, never 0."""

    def __init__(self, context: AdminContext, gate: TenantGate) -> None:
        self._context = context
        self._gate = gate
        self._host = socket.gethostname()

    def collect(self) -> Iterator[Metric]:
        power, status = self._context.control.power, self._context.sampler.status
        if power is not None and status is not None:
            # First: aiperf takes a GPU's identity from whichever series names its number first.
            yield from self._dcgm(power)
            yield from self._devices(power, status)
            yield from self._energy(power, status)
        yield from self._requests()
        yield from self._carbon()
        yield from self._policy()
        yield from self._tenants()
        yield from self._ledger()
        yield from self._jobs()
        yield from self._traces()

    def describe(self) -> Iterator[Metric]:
        """Nothing: names are checked against the catalogue by a test, and a scrape needs live objects."""
        return iter(())

    def _devices(self, power: PowerPlane, status: PlaneStatus) -> Iterator[Metric]:
        watts, limits, clocks = (
            _gauge(spec) for spec in (catalogue.GPU_POWER, catalogue.GPU_LIMIT, catalogue.GPU_CLOCK)
        )
        asked, heat, joules = (
            _gauge(catalogue.GPU_ASKED_CLOCK),
            _gauge(catalogue.GPU_TEMPERATURE),
            _counter(catalogue.GPU_ENERGY),
        )
        for number, device in enumerate(power.devices):
            labels = [str(number), device.info.uuid]
            asked_mhz = status.asked_mhz.get(device.info.uuid)
            reading = power.telemetry.latest(device.info.uuid)
            values: list[tuple[GaugeMetricFamily | CounterMetricFamily, float | None]] = [
                (asked, None if asked_mhz is None else asked_mhz * MEGA)
            ]
            if reading is not None:
                values += [
                    (watts, reading.power_w),
                    (limits, reading.power_limit_w),
                    (clocks, None if reading.sm_clock_mhz is None else reading.sm_clock_mhz * MEGA),
                    (heat, reading.temperature_c),
                    (joules, reading.energy_j),
                ]
            for family, value in values:
                if value is not None:
                    family.add_metric(labels, value)
        yield from (watts, limits, clocks, asked, heat, joules)

    def _energy(self, power: PowerPlane, status: PlaneStatus) -> Iterator[Metric]:
        model = self._context.service.engine.info.model_id
        method = power.devices[0].info.method.value
        books = status.books
        energy = _counter(catalogue.ENERGY)
        for phase, value in (
            ("prefill", books.prefill_j),
            ("decode", books.decode_j),
            ("request_idle", books.request_idle_j),
            ("idle", books.idle_j),
            ("unattributed", books.unattributed_j),
        ):
            energy.add_metric([model, phase, method], value)
        yield energy
        for spec, value in (
            (catalogue.ENERGY_COUNTER, books.counter_j),
            (catalogue.ENERGY_ESTIMATED, books.estimated_j),
            (catalogue.COUNTER_RESETS, books.counter_resets),
            (catalogue.ENERGY_GAPS, books.gaps),
            (catalogue.FOREIGN_SAMPLES, books.foreign_samples),
            (catalogue.POWER_SAMPLES, status.samples),
            (catalogue.POWER_LOST, status.lost_samples),
            (catalogue.STALLS, status.stalls),
        ):
            yield _one(spec, value)
        yield _one(catalogue.CLOSURE_ERROR, books.closure_error_j)
        yield _one(catalogue.LEASED, float(status.leased))
        actuations = _counter(catalogue.ACTUATIONS)
        for outcome, count in sorted(power.controller.outcomes.items()):
            actuations.add_metric([outcome], count)
        yield actuations
        yield _one_hot(catalogue.CONTROLLER_MODE, status.mode.value)
        yield _one(catalogue.HOLD_ACTIVE, float(self._context.sampler.hold is not None))

    def _dcgm(self, power: PowerPlane) -> Iterator[Metric]:
        """The exporter's names and units, so that other tools compute energy per token from outside."""
        watts = GaugeMetricFamily(catalogue.DCGM_POWER.name, catalogue.DCGM_POWER.help, labels=catalogue.DCGM_LABELS)
        # The name has no _total, so it cannot be exposed as a counter by type.
        joules = Metric(catalogue.DCGM_ENERGY.name, catalogue.DCGM_ENERGY.help, "unknown")
        for number, device in enumerate(power.devices):
            reading, info = power.telemetry.latest(device.info.uuid), device.info
            if reading is None:
                continue
            labels = [str(number), info.uuid, info.name, self._host]
            if reading.power_w is not None:
                watts.add_metric(labels, reading.power_w)
            if reading.energy_j is not None:
                named = dict(zip(catalogue.DCGM_LABELS, labels))
                joules.add_sample(catalogue.DCGM_ENERGY.name, named, reading.energy_j * MILLI)
        yield from (watts, joules)

    def _requests(self) -> Iterator[Metric]:
        totals, model = self._context.totals, self._context.service.engine.info.model_id
        joules, grams, given = (
            _counter(spec) for spec in (catalogue.REQUEST_ENERGY, catalogue.CARBON, catalogue.DIRECTIVES)
        )
        for (phase, directive, tenant), value in list(totals.joules.items()):
            joules.add_metric([model, phase, directive, tenant], value)
        for (zone, directive, tenant), value in list(totals.grams.items()):
            grams.add_metric([zone, model, directive, tenant], value)
        for (directive, reason), count in list(totals.directives.items()):
            given.add_metric([directive, reason], count)
        yield from (joules, grams, given)
        yield _one(catalogue.UNKNOWN_ENERGY, totals.unknown_requests)
        histogram = HistogramMetricFamily(catalogue.REQUEST_JOULES.name, catalogue.REQUEST_JOULES.help)
        counts, buckets = 0, []
        for bound, count in zip((*JOULE_BUCKETS, None), totals.histogram):
            counts += count
            buckets.append(("+Inf" if bound is None else f"{bound:g}", float(counts)))
        histogram.add_metric([], buckets, totals.histogram_sum_j)
        yield histogram

    def _carbon(self) -> Iterator[Metric]:
        plane = self._context.control.carbon
        if plane is None:
            return
        reading = plane.reading()
        value = reading.intensity
        if value is not None:
            family = _gauge(catalogue.INTENSITY)
            labels = [value.zone, value.source, str(value.methodology.basis), str(reading.tier)]
            family.add_metric(labels, value.g_per_kwh)
            yield family
            yield _one(catalogue.SIGNAL_TIME, value.end.timestamp(), value.zone)
        forecast = plane.chain.forecast()
        if forecast is not None:
            yield _one(catalogue.FORECAST_TIME, forecast.made_at.timestamp(), plane.chain.zone)
        failures = _gauge(catalogue.FEED_FAILURES)
        for health in plane.chain.health:
            failures.add_metric([health.name], health.failures)
        yield failures

    def _policy(self) -> Iterator[Metric]:
        store = self._context.control.store
        if store is None:
            return
        active = store.active
        info = _gauge(catalogue.POLICY_INFO)
        info.add_metric([active.policy.short_revision, active.policy.metadata.name], 1.0)
        yield info
        yield _one_hot(catalogue.POLICY_MODE, active.mode)
        yield _one(catalogue.RELOAD_OK, float(store.last_reload_ok))
        yield _one(catalogue.RELOAD_TIME, store.last_success_at.timestamp())

    def _tenants(self) -> Iterator[Metric]:
        used = _gauge(catalogue.BUDGET_USED)
        applied = self._context.control.applied
        for tenant in applied[0].spec.tenants[:100] if applied is not None else ():
            verdict = self._context.budgets.verdict(tenant.name)
            if verdict is not None:
                used.add_metric([tenant.name, verdict.what], verdict.share)
        yield used
        yield _one(catalogue.GATE_WAITING, self._gate.waiting)
        refused = _counter(catalogue.GATE_REFUSED)
        for why, count in self._gate.refused.items():
            refused.add_metric([why], count)
        yield refused
        yield _one(catalogue.ALARMS, len(self._context.control.alarms.notes()))

    def _ledger(self) -> Iterator[Metric]:
        ledger = self._context.ledger
        if ledger is None:
            return
        status = ledger.writer.status
        yield _one(catalogue.LEDGER_QUEUED, status.queued_rows)
        yield _one(catalogue.LEDGER_WRITTEN, status.written_rows)
        yield _one(catalogue.LEDGER_REFUSED, status.refused_rows + status.rejected_rows)
        yield _one(catalogue.LEDGER_DROPPED, status.dropped_samples)
        yield _one(catalogue.LEDGER_OK, float(status.alarm is None))

    def _jobs(self) -> Iterator[Metric]:
        success, failures = _gauge(catalogue.JOB_SUCCESS), _counter(catalogue.JOB_FAILURES)
        for job in self._context.jobs.records.values():
            failures.add_metric([job.name], job.failures)
            if job.last_success_unix_s is not None:
                success.add_metric([job.name], job.last_success_unix_s)
        yield from (success, failures)

    def _traces(self) -> Iterator[Metric]:
        exports = self._context.exports
        if exports is None:
            return
        yield _one(catalogue.TRACES_EXPORTED, exports.exported)
        lost = _counter(catalogue.TRACES_LOST)
        lost.add_metric(["undelivered"], exports.undelivered)
        lost.add_metric(["queue_full"], exports.dropped)
        yield lost


def _gauge(spec: MetricSpec) -> GaugeMetricFamily:
    return GaugeMetricFamily(spec.name, spec.help, labels=spec.labels)


def _counter(spec: MetricSpec) -> CounterMetricFamily:
    return CounterMetricFamily(spec.name, spec.help, labels=spec.labels)


def _one(spec: MetricSpec, value: float, *labels: str) -> Metric:
    family = _counter(spec) if spec.kind == "counter" else _gauge(spec)
    family.add_metric(labels, value)
    return family


def _one_hot(spec: MetricSpec, mode: str) -> Metric:
    family = _gauge(spec)
    for known in MODES:
        family.add_metric([known], float(known == mode))
    return family
