"""The server's parts and how they hang together; `serving.server` starts and stops them."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from engine.checkpoint import Checkpoint
from engine.client_protocol import EngineClientProtocol
from engine.config import CPU_MAX_NUM_BATCHED_TOKENS
from power.controller import Mode
from power.model_shape import ModelShape
from power.simulated import SimulatedDevice
from serving.admin_auth import AdminAccess
from serving.admin_context import AdminContext
from serving.alarms import AlarmBoard
from serving.control_metrics import ControlCollector
from serving.control_plane import ControlPlane
from serving.control_sampler import Sampler
from serving.deferral import HourAhead, run_now
from serving.energy_totals import EnergyTotals
from serving.holds import Holds
from serving.jobs import Jobs
from serving.latency_window import LatencyWindow
from serving.ledger.engine import Location
from serving.ledger_access import Ledger, open_ledger
from serving.openai_responses import EnergyUsage
from serving.planes import build_power, shape_of
from serving.prompt_keeper import PromptKeeper
from serving.quality_evaluator import QualityEvaluator
from serving.request_log import Finished, RequestLog, row_of
from serving.server_jobs import add_jobs
from serving.server_options import ServerOptions
from serving.steering import Steering
from serving.tenants_budgets import HARD, WITHIN, BudgetBook
from serving.tenants_gate import TenantGate
from serving.tenants_service import TenantService
from serving.text import TextProtocol
from serving.tracing import RequestTracer, open_tracer

BUSY_SHARE = 0.5
"""Low-priority work runs while fewer than this share of the engine's places are taken and nothing waits."""


@dataclass(slots=True)
class Parts:
    """Everything beside the engine. Built by `build_parts`, completed by `Parts.serve`."""

    options: ServerOptions
    alarms: AlarmBoard
    ledger: Ledger | None
    steering: Steering
    control: ControlPlane
    latency: LatencyWindow
    totals: EnergyTotals
    budgets: BudgetBook
    jobs: Jobs
    log: RequestLog
    keeper: PromptKeeper | None = None
    tracer: RequestTracer | None = None
    engine: EngineClientProtocol | None = None
    evaluator: QualityEvaluator | None = None

    def may_run(self) -> bool:
        """Whether low-priority work may run now: the policy admits it and nobody waits for the engine."""
        stats, engine = self.engine.stats if self.engine is not None else None, self.engine
        if not self.control.admits_low_priority:
            return False
        if stats is None or engine is None:
            return True
        return stats.waiting == 0 and stats.running < max(1.0, BUSY_SHARE * engine.info.max_num_seqs)

    def better_moment(self, until_unix_s: float) -> bool:
        """Whether deferrable work that may wait until then should run now."""
        plane, now = self.control.carbon, time.time()
        if plane is None:
            return True
        forecast = plane.chain.forecast()
        ahead = [
            HourAhead(point.start.timestamp(), point.end.timestamp(), point.g_per_kwh)
            for point in (forecast.series if forecast is not None else ())
        ]
        snapshot = plane.snapshot()
        mean = sum(snapshot.window) / len(snapshot.window) if snapshot.window else None
        due = run_now(now, until_unix_s, plane.reading().g_per_kwh, ahead, mean)
        return due and (self.may_run() or until_unix_s - now < 120.0)

    def settled(self, finished: Finished, usage: EnergyUsage | None) -> None:
        """A request's energy is known: one row, and what its tenant used."""
        plane = self.control.carbon
        method = plane.chain.methodology if plane is not None else None
        basis, boundary = (str(method.basis), str(method.boundary)) if method is not None else (None, None)
        self.control.record(row_of(finished, usage, basis, boundary))
        if finished.tenant is None:
            return
        verdict = self.budgets.verdict(finished.tenant)
        if verdict is not None:
            text = f"{finished.tenant} has used {100 * verdict.share:.0f} % of its {verdict.what} budget of the day"
            self.alarms.stand("budget", text if verdict.state != WITHIN else None, finished.tenant)

    def brief_for_budget(self, tenant: str) -> bool:
        """Whether the tenant's used-up budget asks for the briefest answers."""
        rules, verdict = self.control.tenant(tenant), self.budgets.verdict(tenant)
        return rules is not None and rules.on_exceed == "brief" and verdict is not None and verdict.state == HARD


def served_shape(options: ServerOptions, checkpoint: Checkpoint) -> ModelShape:
    """The served model as the power twin sees it."""
    config = checkpoint.config
    return shape_of(config, options.engine.model_id, checkpoint.weight_bytes / config.num_parameters)


def boards(options: ServerOptions) -> int:
    """How many boards serve: one to a rank. Ranks on a CPU share the machine, whose energy is one figure."""
    alone = options.engine.device == "cpu" and not (options.power_device or "").startswith("simulated")
    return 1 if alone else options.engine.tensor_parallel


def build_parts(options: ServerOptions, shape: ModelShape) -> Parts:
    """Open the ledger, the devices and the policy. Raises `LedgerError`, `DeviceError`, `PolicyError`, `ValueError`."""
    alarms = AlarmBoard()
    control: ControlPlane | None = None

    def keep_text(tenant: str | None) -> bool:
        return control is not None and control.keep_text(tenant)

    ledger = None
    if options.ledger is not None:
        location = Location.from_environment(options.ledger)
        ledger = open_ledger(location, keep_text=keep_text, on_alarm=lambda text: alarms.stand("ledger", text))
    try:
        steering = Steering()
        control = ControlPlane(steering, shape=shape, ledger=ledger, alarms=alarms, learned=options.learned)
        alarms.on_new = control.on_new_alarm
        if options.power_device is not None:
            steering.power = build_power(
                options.power_device,
                shape,
                None,
                grid=control.grid,
                max_running=options.engine.max_num_seqs,
                max_step_tokens=options.engine.max_num_batched_tokens or CPU_MAX_NUM_BATCHED_TOKENS,
                powerd_socket=options.powerd_socket,
                on_audit=control.on_power_audit,
                on_alarm=control.on_power_alarm,
                mode=Mode.OBSERVE,
                gpus=boards(options),
            )
        power = steering.power
        simulated = power is not None and all(isinstance(device, SimulatedDevice) for device in power.devices)
        control.can_act = simulated or (power is not None and options.powerd_socket is not None)
        if options.policy is not None:
            control.open_policy(options.policy, managed=options.managed)
        latency, totals = LatencyWindow(), EnergyTotals()
        jobs = Jobs(lambda name, text: alarms.stand("jobs", text, name))
        budgets = BudgetBook(control.tenant)
        log = RequestLog(steering, (latency.settled, totals.settled, budgets.settled))
        keeper = None
        if options.learned is not None:
            keeper = PromptKeeper(options.learned, control.keep_prompt, lambda text: alarms.stand("prompts", text))
        parts = Parts(options, alarms, ledger, steering, control, latency, totals, budgets, jobs, log, keeper)
        log.also(parts.settled)
        if options.tracing is not None:
            parts.tracer = open_tracer(options.tracing)
        if parts.tracer is not None:
            log.also(parts.tracer.settled)
        control.brief_for_budget = parts.brief_for_budget
    except BaseException:
        if ledger is not None:
            ledger.close()
        raise
    return parts


def serve_with(parts: Parts, engine: EngineClientProtocol, text: TextProtocol) -> tuple[TenantService, AdminContext]:
    """The inference service and what the admin API answers from, once the engine has started."""
    options, control = parts.options, parts.control
    parts.engine = engine
    gate = TenantGate(
        parts.budgets,
        control.tenant,
        options.keys,
        enforced=lambda: control.mode == "enforce",
        may_run=parts.may_run,
        better_moment=parts.better_moment,
    )
    parts.log.also(gate.settled)
    service = TenantService(
        engine,
        text,
        options.api,
        parts.steering,
        parts.log,
        gate=gate,
        keep_text=control.keep_text,
        policy_mode=lambda: control.mode,
        on_finished=parts.latency.ended,
        on_answered=parts.keeper.offer if parts.keeper is not None else lambda run: None,
        tracer=parts.tracer,
    )
    parts.evaluator = QualityEvaluator(control, service, parts.keeper)
    metrics = service.metrics
    sampler = Sampler(
        control, engine, parts.latency, parts.totals, lambda: metrics.generated_tokens, options.powerd_socket
    )
    token = options.admin.token if options.admin is not None else None
    access = AdminAccess(token, options.keys) if token is not None else AdminAccess.closed()
    context = AdminContext(
        access=access,
        control=control,
        service=service,
        sampler=sampler,
        holds=Holds(control, options.powerd_socket),
        latency=parts.latency,
        totals=parts.totals,
        budgets=parts.budgets,
        jobs=parts.jobs,
        evaluator=parts.evaluator,
        keeper=parts.keeper,
        keys=options.keys,
        exports=parts.tracer.exports if parts.tracer is not None else None,
        override=options.override,
    )
    metrics.registry.register(ControlCollector(context, gate))
    if options.vllm_names:
        metrics.add_vllm_names()
    add_jobs(parts)
    return service, context


async def sweep_requests(log: RequestLog) -> None:
    """Pass finished requests on as their energy settles, until cancelled."""
    while True:
        await asyncio.sleep(0.25)
        while log.sweep():
            await asyncio.sleep(0.005)
