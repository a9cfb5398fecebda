"""Virtual-time simulation: what would this policy have cost on that traffic, in joules, grams and missed SLOs?

    outcome = simulate(workload, SimulationPolicy("slack", governor="slo_slack"), SimulationSettings())

The scheduler, the block pool, the governors, the controller with its actuator, and the accounting are the ones that
serve; the clock, the executor, the power device and the feed are swapped. All figures are *simulated*.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

import numpy as np

from carbon.accounting import operational_grams
from power.governors import CarbonFollow, DefaultGovernor, Pool
from traces.cluster import Cluster
from traces.metrics import latencies_s
from traces.record import Outcome, RequestRecord
from traces.record_table import RecordTable, TableBuilder
from traces.request import TraceRequest
from traces.results import DeviceEnergy, RunInfo, RunResult
from traces.simulate_control import ServerControl, SharedRow
from traces.simulate_grid import Grid
from traces.simulate_policy import SimulationPolicy
from traces.simulate_request import SimulatedRequest
from traces.simulate_settings import SimulationSettings
from traces.simulate_timeline import Timeline
from traces.workload import Workload

BACKEND = "gridserve-simulation"
QUIET_S = 2.0
KEEP_ALIVE_S = 20.0
HIGH_PRIORITY, LOW_PRIORITY = 0, 1
_COMPLETED = Outcome.COMPLETED.value


class Directing(Protocol):
    """Chooses the directive level of a request as it arrives, and with it the length of its answer."""

    def choose(self, number: int, trace: TraceRequest, time_s: float) -> tuple[str, int, str]:
        """(level, output tokens, how the length is known)."""
        ...

    def figures(self) -> dict[str, Any]:
        """What the choices were worth, for the results."""
        ...


@dataclass(frozen=True)
class SimulationOutcome:
    """`figures`: what `RunResult.summary` has no key for; merged with it in experiment results."""

    result: RunResult
    timeline: Timeline
    figures: Mapping[str, Any] = field(default_factory=dict)


def simulate(
    workload: Workload,
    policy: SimulationPolicy,
    settings: SimulationSettings,
    *,
    grid: Grid | None = None,
    directing: Directing | None = None,
    seed: int = 0,
    jump: bool = True,
    on_progress: Callable[[float, int], None] = lambda time_s, requests: None,
) -> SimulationOutcome:
    """Run a workload to its end. `on_progress` gets virtual seconds and requests so far, about once a virtual minute.

    Raises `ValueError` for settings that cannot be, and for a workload without requests.
    """
    return _Run(workload, policy, settings, grid, directing, seed, jump, on_progress).run()


class _Run:
    def __init__(
        self,
        workload: Workload,
        policy: SimulationPolicy,
        settings: SimulationSettings,
        grid: Grid | None,
        directing: Directing | None,
        seed: int,
        jump: bool,
        on_progress: Callable[[float, int], None],
    ) -> None:
        self.workload, self.policy, self.settings = workload, policy, settings
        self.grid, self.directing, self.seed = grid, directing, seed
        self.on_progress = on_progress
        self.records = TableBuilder()
        self.timeline = Timeline()
        self.twin = settings.make_twin()
        self.arrivals = self._requests()
        self.next_request = next(self.arrivals, None)
        if self.next_request is None:
            raise ValueError(f"workload {workload.name!r} has no request")
        prefixes = settings.prefix_caching
        self.share_prefixes = any(r.prefix_ids for r in _first(workload, 100)) if prefixes is None else prefixes
        self.cluster = Cluster(self.twin, settings, policy, self.share_prefixes, self._finished, seed=seed, jump=jump)
        follow = policy.carbon_follow
        carbon = None
        if follow is not None:
            carbon = CarbonFollow(DefaultGovernor(), follow.floor_fraction, follow.budget_floor, follow.steps)
        self.row = SharedRow(policy.row, carbon) if policy.row is not None else None
        self.controls = self._make_controls()
        self.submitted = self.dropped = self.held_back = 0
        self.offered_tokens = 0
        self.tick_s = 0.0
        self.last_request_s = 0.0
        self.next_sample_s = settings.sample_s
        self.sampled = (0.0, 0.0, 0.0, 0)
        self.sample_arrivals = 0
        self.warm = (0.0, 0.0)

    def run(self) -> SimulationOutcome:
        settings, cluster = self.settings, self.cluster
        report_s = 0.0
        while True:
            self.tick_s = self._next_tick()
            self._submit_until(self.tick_s)
            cluster.advance(self.tick_s)
            self._watch_row()
            for control in self.controls:
                control.tick()
            if self.tick_s >= self.next_sample_s:
                self._sample()
            if self.tick_s >= report_s:
                report_s = self.tick_s + 60.0
                self.on_progress(self.tick_s, len(self.records))
            if self.next_request is None and not cluster.busy:
                break
        self._sample()
        self.on_progress(self.tick_s, len(self.records))
        cluster.check()
        return self._outcome(settings)

    def _next_tick(self) -> float:
        """The controller's next turn; while nothing runs, straight on to the next arrival."""
        settings = self.settings
        step_s = settings.control_s if self.controls or self.row else settings.sample_s
        next_s = self.tick_s + step_s
        request = self.next_request
        if request is None or self.cluster.busy or self.tick_s < self.cluster.idle_since_s + QUIET_S:
            return next_s
        target_s = math.floor(request.arrival_s / step_s) * step_s
        while target_s - self.tick_s > KEEP_ALIVE_S:
            self.tick_s += KEEP_ALIVE_S
            self.cluster.advance(self.tick_s)
            for control in self.controls:
                control.keep_alive()
            self._sample()
        return max(next_s, target_s)

    def _requests(self) -> Iterator[TraceRequest]:
        return iter(self.workload)

    def _submit_until(self, until_s: float) -> None:
        while (trace := self.next_request) is not None and trace.arrival_s < until_s:
            self.next_request = next(self.arrivals, None)
            self._submit(trace)

    def _submit(self, trace: TraceRequest) -> None:
        number = self.submitted
        self.submitted += 1
        self.sample_arrivals += 1
        self.last_request_s = trace.arrival_s
        level, output_tokens, method = None, trace.output_tokens, "recorded"
        if self.directing is not None:
            level, output_tokens, method = self.directing.choose(number, trace, trace.arrival_s)
        limit = self.settings.max_model_len
        if output_tokens < 1 or trace.input_tokens + output_tokens > limit:
            if output_tokens >= 1 and self.settings.over_window == "error":
                raise ValueError(f"request {number} needs more than the {limit} tokens of the model's window")
            why = "recorded without an answer" if output_tokens < 1 else f"longer than the window of {limit} tokens"
            self.dropped += 1
            self.records.append(_dropped(number, trace, why))
            return
        priority = LOW_PRIORITY if trace.task in self.settings.low_tasks else HIGH_PRIORITY
        request = SimulatedRequest(number, trace, output_tokens, priority=priority, share_prefixes=self.share_prefixes)
        request.level, request.length_method = level, method
        self.cluster.submit(request)

    def _finished(self, request: SimulatedRequest, idle_j: float) -> None:
        trace = request.trace
        energy_j = request.prefill_j + request.decode_j + idle_j
        grams = math.nan
        assert request.first_s is not None
        assert request.last_s is not None
        if self.grid is not None:
            intensity = self.grid.g_per_kwh(request.last_s)
            grams = math.nan if intensity is None else operational_grams(energy_j, self.settings.pue, intensity)
        # In the order of `record_table.NUMBERS` and `TEXTS`.
        self.records.add(
            (
                request.number,
                trace.input_tokens,
                request.sampling.max_tokens,
                trace.output_tokens,
                request.num_prompt_tokens,
                request.num_output_tokens,
                request.num_cached_tokens,
                trace.arrival_s,
                trace.arrival_s,
                request.first_s,
                request.last_s,
                energy_j,
                grams,
            ),
            (_COMPLETED, "length", None, trace.task, trace.session_id, request.level, "simulated"),
        )

    def _make_controls(self) -> list[ServerControl]:
        policy, cluster = self.policy, self.cluster
        if not policy.controls:
            return []
        grid = self.grid
        signal = (lambda: grid.signal(self.tick_s)) if grid is not None else (lambda: None)
        return [
            ServerControl(
                server,
                policy,
                self.settings.slo.slo,
                server.clock,
                pool=Pool.LOW if cluster.is_low_server(place) else Pool.HIGH,
                row=self.row,
                grid=signal,
            )
            for place, server in enumerate(cluster.servers)
        ]

    def _watch_row(self) -> None:
        if self.row is not None:
            grid = self.grid.signal(self.tick_s) if self.grid is not None else None
            self.row.watch(self.tick_s, self.cluster.energy_j, grid)

    def _sample(self) -> None:
        cluster = self.cluster
        self.next_sample_s = self.tick_s + self.settings.sample_s
        time_s, energy_j, idle_j, tokens = self.sampled
        seconds = self.tick_s - time_s
        if seconds <= 0.0:
            return
        now = (self.tick_s, cluster.energy_j, cluster.idle_j, cluster.output_tokens)
        intensity = self.grid.g_per_kwh(self.tick_s - seconds / 2) if self.grid is not None else None
        self.timeline.append(
            end_s=self.tick_s,
            seconds=seconds,
            energy_j=now[1] - energy_j,
            idle_j=now[2] - idle_j,
            clock_mhz=cluster.mean_clock_mhz,
            running=cluster.running,
            waiting=cluster.waiting,
            arrivals=self.sample_arrivals,
            tokens=now[3] - tokens,
            g_per_kwh=math.nan if intensity is None else intensity,
        )
        self.sampled = now
        self.sample_arrivals = 0

    def _outcome(self, settings: SimulationSettings) -> SimulationOutcome:
        cluster, timeline = self.cluster, self.timeline
        total_j = cluster.energy_j
        seconds = self.tick_s * settings.servers_of(self.policy)
        device = DeviceEnergy(
            method="simulated",
            source="twin",
            energy_j=total_j,
            idle_j=cluster.unclaimed_idle_j,
            unattributed_j=0.0,
            average_power_w=total_j / self.tick_s,
            p50_power_w=timeline.percentile_w(50),
            p99_power_w=timeline.percentile_w(99),
            peak_power_w=float(timeline.power_w.max()),
            mean_clock_mhz=cluster.mean_busy_clock_mhz,
            clock_changes=cluster.clock_changes,
            time_at_clock_s=cluster.time_at_clock_s,
            mean_intensity_g_per_kwh=timeline.mean_g_per_kwh if self.grid is not None else None,
            intensity_source=self.grid.source if self.grid is not None else None,
            co2e_g=timeline.grams(settings.pue) if self.grid is not None else None,
        )
        info = RunInfo(
            kind="simulation",
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            backend=BACKEND,
            model_id=settings.model,
            trace=self.workload.name,
            trace_obtained=self.workload.obtained,
            output_lengths="shaped" if self.directing is not None else "recorded",
            prompts="simulated",
            steps=self.workload.steps,
            policy=self.policy.name,
            gpu=settings.gpu,
            seed=self.seed,
            counts={"dropped": self.dropped} if self.dropped else {},
            notes=(f"simulated from profile {settings.gpu}: {self.twin.gpu.fitted_on}",),
        )
        records = self.records.table().in_order()
        result = RunResult(info, self.tick_s, records, device=device, slo_ms=settings.slo.limits_ms)
        figures: dict[str, Any] = {
            "servers": len(cluster.servers),
            "gpus": len(cluster.servers) * settings.tensor_parallel,
            "submitted": self.submitted,
            "prefill_j": cluster.prefill_j,
            "decode_j": cluster.decode_j,
            "request_idle_j": cluster.request_idle_j,
            "unclaimed_idle_j": cluster.unclaimed_idle_j,
            "closure_error_j": cluster.closure_error_j,
            "busy_share": cluster.busy_s / seconds,
            "steps": cluster.steps,
            "jumped_steps": cluster.jumped_steps,
            "preemptions": cluster.preemptions,
            "alarms": sum(len(control.alarms()) for control in self.controls),
        }
        if self.row is not None:
            figures |= self.row.figures()
        if settings.low_tasks:
            figures |= priority_figures(records, settings.low_tasks)
        if self.directing is not None:
            figures |= self.directing.figures()
        return SimulationOutcome(result, timeline, figures)


def priority_figures(records: RecordTable, low_tasks: Sequence[str]) -> dict[str, float | int | None]:
    """Median and 99th percentile of end-to-end latency and TTFT of both priorities, ms."""
    figures: dict[str, float | int | None] = {}
    completed, low = records.of_outcome(Outcome.COMPLETED), records.of_text("task", low_tasks)
    latencies = latencies_s(records)
    for name, found in (("high", completed & ~low), ("low", completed & low)):
        figures[f"{name}_requests"] = int(found.sum())
        for key in ("e2el", "ttft"):
            values = latencies[key][found]
            for percent in (50, 99):
                figure = float(np.percentile(values, percent)) * 1e3 if len(values) else None
                figures[f"{name}_p{percent}_{key}_ms"] = figure
    return figures


def _first(workload: Workload, count: int) -> list[TraceRequest]:
    found = []
    for request in workload:
        found.append(request)
        if len(found) == count:
            break
    return found


def _dropped(number: int, trace: TraceRequest, why: str) -> RequestRecord:
    return RequestRecord(
        index=number,
        request_id=f"sim-{number}",
        outcome=Outcome.DROPPED,
        scheduled_s=trace.arrival_s,
        requested_input_tokens=trace.input_tokens,
        requested_output_tokens=trace.output_tokens,
        recorded_output_tokens=trace.output_tokens,
        error=why,
        task=trace.task,
        session_id=trace.session_id,
    )
