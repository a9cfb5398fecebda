"""The control plane: the policy in force carried out on the planes, and everything that happened written down.

    control = ControlPlane(steering, power=..., ledger=...)
    control.open_policy(path)          # the first policy must be good; later ones may fail, the last good one stays
    await control.start(); ...; await control.close()

A change of the file, an edit, SIGHUP, a rule whose time has come and an opened promotion gate all end in `follow`: it
compares what should hold with what was applied and moves the difference. Requests in flight keep what they have.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from carbon.feed_chain import FeedChain
from carbon.intensity import Tier
from power.audit import AuditRecord, inputs_of
from power.controller import Mode
from power.governors import GridSignal
from power.model_shape import ModelShape
from power.plane import PowerPlane
from serving.admin_audit import entry_of, feed_row, now_us, slo_violated
from serving.alarms import AlarmBoard, AlarmNote
from serving.ledger.policy_log import LedgerPolicyLog
from serving.ledger.rows import AuditEntry, Record
from serving.ledger_access import Ledger
from serving.planes import power_in_force, row_of, slo_of, steered_governor, throttle_of, twin_of
from serving.planes_carbon import (
    GridView,
    SteeredCarbonPlane,
    build_carbon,
    build_chain,
    carbon_settings,
    same_feeds,
    undirected_classes,
)
from serving.policy.checks import DeviceRange
from serving.policy.directives_section import Evaluator, Tenant
from serving.policy.effective import AUTO, BandState, Effective, Situation, band_at, effective
from serving.policy.model import Policy
from serving.policy.power_section import Power
from serving.policy.store import Active, PolicyStore
from serving.policy.watch import PolicyWatcher
from serving.steering import Steering

logger = logging.getLogger(__name__)

FOLLOW_S = 0.1
RULES_S = 1.0
RETRY_S = 5.0
MINUTE_S = 60.0


@dataclass(frozen=True, slots=True)
class _Applied:
    """What the planes were last told."""

    policy: Policy
    mode: str
    now: Effective
    floors: dict[str, float | None]
    """The floor of quality of each tenant, by the rules that name it."""


class ControlPlane:
    """`can_act`: whether `power` has an actuator. `folder`: what relative paths of feeds start from. `learned`: where
    the carbon plane's knowledge lives. One control plane for each server; `follow` may be called from any task."""

    def __init__(
        self,
        steering: Steering,
        *,
        shape: ModelShape | None = None,
        can_act: bool = False,
        ledger: Ledger | None = None,
        alarms: AlarmBoard | None = None,
        folder: Path = Path(),
        learned: Path | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.steering = steering
        self.ledger = ledger
        self.alarms = alarms or AlarmBoard()
        self.can_act = can_act
        self.learned = learned
        self.store: PolicyStore | None = None
        self.brief_for_budget: Callable[[str], bool] = lambda tenant: False
        """Whether a tenant has used up a budget that then asks for brief answers."""
        self.shape = shape
        self._folder = folder
        self._clock = clock
        self._watcher: PolicyWatcher | None = None
        self._grid: GridView | None = None
        self._band: BandState | None = None
        self._applied: _Applied | None = None
        self._failed: _Applied | None = None
        self._retry_s = 0.0
        self._power_section: Power | None = None
        self._prepared: tuple[str, FeedChain] | None = None
        self._moving = asyncio.Lock()
        self._grid_task: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._last_value: tuple[str, datetime] | None = None
        self._lock = threading.Lock()

    # Reading

    @property
    def power(self) -> PowerPlane | None:
        return self.steering.power

    @property
    def carbon(self) -> SteeredCarbonPlane | None:
        plane = self.steering.carbon
        assert plane is None or isinstance(plane, SteeredCarbonPlane)
        return plane

    @property
    def active(self) -> Active | None:
        return self.store.active if self.store is not None else None

    @property
    def mode(self) -> str | None:
        return self._applied.mode if self._applied is not None else None

    @property
    def applied(self) -> tuple[Policy, Effective] | None:
        """The policy the planes follow, with what its rules say now."""
        return (self._applied.policy, self._applied.now) if self._applied is not None else None

    @property
    def admits_low_priority(self) -> bool:
        """Whether low-priority requests may run now, by the policy's rules and the row's power."""
        if self._applied is None or self._applied.mode != "enforce":
            return True
        by_row = self.power is None or self.power.controller.admit_low_priority
        return self._applied.now.admit_low_priority and by_row

    def grid(self) -> GridSignal | None:
        """The grid for the power plane; None while it is unknown."""
        view = self._grid
        return view() if view is not None else None

    def effective(self, tenant: str | None = None) -> Effective | None:
        """What the policy asks for now, for a tenant."""
        active = self.active
        return self._effective(active.policy, tenant) if active is not None else None

    def tenant(self, name: str) -> Tenant | None:
        """What the policy in force says of a tenant."""
        if self._applied is None:
            return None
        return next((tenant for tenant in self._applied.policy.spec.tenants if tenant.name == name), None)

    def keep_text(self, tenant: str | None) -> bool:
        """Whether the policy says that the tenant's prompts and answers are kept."""
        if self._applied is None:
            return False
        spec = self._applied.policy.spec
        if spec.ledger.store_prompt_text:
            return True
        return any(known.name == tenant and known.store_prompt_text for known in spec.tenants)

    @property
    def evaluator(self) -> Evaluator | None:
        """What the policy in force says of judging; None where there is nothing to judge."""
        directives = self._applied.policy.spec.directives if self._applied is not None else None
        if directives is None or len(directives.levels) < 2 or self.carbon is None:
            return None
        return directives.evaluator

    def keep_prompt(self, tenant: str | None) -> bool | None:
        """Whether the tenant's prompts are kept for judging; None where nobody's are."""
        evaluator = self.evaluator
        if evaluator is None or not evaluator.enabled or self._applied is None:
            return None
        agreed = {known.name for known in self._applied.policy.spec.tenants if known.keep_prompts}
        if not evaluator.keep_prompts and not agreed:
            return None
        return evaluator.keep_prompts or tenant in agreed

    @property
    def keeps_prompts(self) -> bool:
        """Whether anybody agreed that prompts are kept for judging."""
        return self.keep_prompt(None) is not None

    # Writing down

    def record(self, row: Record) -> bool:
        """Put a row into the ledger, where one is kept; False when it was not taken."""
        return self.ledger.writer.put(row) if self.ledger is not None else False

    def audit(self, kind: str, actor: str, **columns: object) -> None:
        """An audit row of the present, under the policy in force."""
        applied = self._applied
        self.record(
            AuditEntry(
                at_us=now_us(),
                kind=kind,
                actor=actor,
                policy_revision=applied.policy.short_revision if applied else None,
                policy_body=applied.policy.body_revision if applied else None,
                policy_mode=applied.mode if applied else None,
                **columns,  # type: ignore[arg-type]
            )
        )

    def on_power_audit(self, record: AuditRecord) -> None:
        """For the power plane's `on_audit`; any thread."""
        applied = self._applied
        self.record(entry_of(record, applied.policy.body_revision if applied else None))

    def on_power_alarm(self, text: str) -> None:
        """For the power plane's `on_alarm`; any thread."""
        if text.startswith("restored: "):
            self.audit("restore", "actuator", reason=text.removeprefix("restored: "))
            logger.info("power: %s", text)
            return
        self.alarms.event("power", text)

    def on_new_alarm(self, note: AlarmNote) -> None:
        self.audit("alarm", note.source, reason=note.text)

    # The policy

    def open_policy(self, path: Path, *, managed: bool = False) -> None:
        """Load the first policy. Raises `PolicyError`, or `OSError` when it cannot be read."""
        log = LedgerPolicyLog(self.ledger.writer, self.ledger.reader) if self.ledger is not None else None
        self.store = PolicyStore(
            path,
            device=self.device_range,
            log=log,
            evidence=log.evidence if log is not None else None,
            preflight=self._preflight,
            on_alarm=lambda text: self.alarms.stand("policy", text),
            managed=managed,
        )

    @property
    def device_range(self) -> DeviceRange | None:
        if self.power is None:
            return None
        info = self.power.devices[0].info
        limits = info.limits
        return DeviceRange(
            info.name, info.clocks_mhz, limits.min_w if limits else None, limits.max_w if limits else None
        )

    def _preflight(self, policy: Policy) -> None:
        """Build everything the policy needs, so that applying it cannot fail. Raises `ValueError`."""
        power, carbon = self.power, policy.spec.carbon
        if power is not None and self.shape is not None:
            steered_governor(policy.spec.power, twin_of(power.devices[0], self.shape))
        if carbon is None:
            return
        carbon_settings(policy, enforce=False)
        serving = self._applied.policy.spec.carbon if self._applied is not None else None
        if self.carbon is None or not same_feeds(serving, carbon):
            self._prepared = (policy.revision, build_chain(carbon, self._folder, self._clock))

    async def start(self) -> None:
        """Apply the policy and keep following it."""
        await self.follow()
        if self.store is not None:
            self._watcher = PolicyWatcher(self.store)
            self._watcher.start()
            self._tasks.append(asyncio.create_task(self._keep_following(), name="policy-follow"))
        self._tasks.append(asyncio.create_task(self._write_regularly(), name="control-minute"))

    async def close(self) -> None:
        """Stop following. The planes are left to who made them, but for the feeds."""
        if self._watcher is not None:
            await asyncio.to_thread(self._watcher.stop)
        for task in (*self._tasks, self._grid_task):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        if self.carbon is not None:
            await self.carbon.close()

    async def _keep_following(self) -> None:
        rules_due_s = 0.0
        while True:
            await asyncio.sleep(FOLLOW_S)
            active, applied = self.active, self._applied
            assert active is not None
            changed = applied is None or applied.policy is not active.policy or applied.mode != active.mode
            if changed or time.monotonic() >= rules_due_s:
                rules_due_s = time.monotonic() + RULES_S
                await self.follow()

    async def follow(self) -> None:
        """Bring the planes to what the policy in force asks for now. Failing, it raises an alarm and tries again."""
        async with self._moving:
            active = self.active
            if active is None:
                return
            self._band = self._band_now(active.policy)
            wanted = self._wanted(active)
            if wanted == self._applied or (wanted == self._failed and time.monotonic() < self._retry_s):
                return
            try:
                await asyncio.to_thread(self._move_power, wanted)
                await self._move_carbon(wanted)
            except Exception as error:
                logger.exception("the policy could not be carried out")
                self.alarms.stand("policy", f"revision {active.policy.short_revision}: {error}", "apply")
                self._failed, self._retry_s = wanted, time.monotonic() + RETRY_S
                return
            self.alarms.stand("policy", None, "apply")
            before, self._applied, self._failed = self._applied, wanted, None
            self._note_change(active, before, wanted)
            self.steering.follow_policy(
                active.policy.short_revision, undirected_classes(active.policy), self._directive_of
            )
            self._say_held_back(active)

    def _wanted(self, active: Active) -> _Applied:
        policy = active.policy
        floors = {tenant.name: self._effective(policy, tenant.name).quality_floor for tenant in policy.spec.tenants}
        return _Applied(policy, active.mode, self._effective(policy), floors)

    def _say_held_back(self, active: Active) -> None:
        held = f"runs in {active.mode} instead of enforce: {active.held_back}" if active.held_back else None
        self.alarms.stand("policy", held, "gate")

    def _note_change(self, active: Active, before: _Applied | None, wanted: _Applied) -> None:
        if before is None or before.policy.revision != wanted.policy.revision or before.mode != wanted.mode:
            self.audit(
                "policy",
                active.actor,
                asked={
                    "policy": wanted.policy.metadata.name,
                    "revision": wanted.policy.revision,
                    "mode": wanted.policy.spec.mode,
                },
                result="applied",
                reason=f"{active.reason}; held back: {active.held_back}" if active.held_back else active.reason,
            )
        elif before.now != wanted.now:
            rules = ", ".join(sorted(set(wanted.now.rules.values()))) or None
            self.audit(
                "policy",
                "rules",
                rule=rules,
                asked={"band": wanted.now.band, "directive": wanted.now.directive, "governor": wanted.now.governor},
                result="applied",
                reason=f"band {wanted.now.band}; rules that hold: {rules or 'none'}",
            )

    def _move_power(self, wanted: _Applied) -> None:
        power = self.power
        if power is None or self.shape is None:
            return
        controller, policy = power.controller, wanted.policy
        section = power_in_force(policy.spec.power, wanted.now)
        before = self._power_section
        power.slo = slo_of(policy)
        if section != before:
            governor = steered_governor(section, twin_of(power.devices[0], self.shape))
            controller.set_governor(governor, policy.short_revision)
            if before is None or (section.row_budget, section.carbon_follow) != (
                before.row_budget,
                before.carbon_follow,
            ):
                controller.row = row_of(section, governor)
                controller.set_pools(section.row_budget.low_priority_gpus if section.row_budget is not None else ())
            controller.throttle.policy = throttle_of(section)
            self._power_section = section
        controller.policy_revision = policy.short_revision
        mode = Mode(wanted.mode)
        idle_only = mode is Mode.ENFORCE and not self.can_act
        why = "clocks and limits are only recorded, not set: no actuator; start gridserve-powerd and give --powerd"
        self.alarms.stand("power", why if idle_only else None, "actuator")
        mode = Mode.SHADOW if idle_only else mode
        if controller.mode is not mode:
            controller.set_mode(mode)

    async def _move_carbon(self, wanted: _Applied) -> None:
        policy, plane = wanted.policy, self.carbon
        carbon, enforce = policy.spec.carbon, wanted.mode == "enforce"
        if carbon is None:
            self.steering.carbon, self._grid = None, None
            await self._restart_grid(None)
            if plane is not None:
                await plane.close()
            return
        serving = self._applied.policy.spec.carbon if self._applied is not None else None
        if plane is None:
            chain = self._take_prepared(policy)
            plane = await asyncio.to_thread(
                build_carbon,
                policy,
                folder=self._folder,
                learned=self.learned,
                now=self._clock,
                enforce=enforce,
                chain=chain,
            )
            assert plane is not None
            self._grid = GridView(plane, policy)
            self.steering.carbon = plane
            await self._restart_grid(plane)
            return
        settings = carbon_settings(policy, enforce=enforce, now=wanted.now, floors=wanted.floors)
        chain, retired = None, None
        if not same_feeds(serving, carbon):
            chain = self._take_prepared(policy) or await asyncio.to_thread(
                build_chain, carbon, self._folder, self._clock
            )
            retired = plane.chain
        if chain is None and settings == plane.settings:
            return
        replan = chain is not None or replace(settings, enforce=plane.settings.enforce) != plane.settings
        plane.reconfigure(settings, chain)
        self._grid = GridView(plane, policy)
        if chain is not None:
            await self._restart_grid(plane)
        elif replan:
            await plane.replan()
        if retired is not None:
            await retired.close()

    def _take_prepared(self, policy: Policy) -> FeedChain | None:
        prepared, self._prepared = self._prepared, None
        return prepared[1] if prepared is not None and prepared[0] == policy.revision else None

    async def _restart_grid(self, plane: SteeredCarbonPlane | None) -> None:
        """Run the plane's feeds from here on, or none."""
        if self._grid_task is not None:
            self._grid_task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._grid_task
        self._grid_task = asyncio.create_task(self._run_grid(plane), name="carbon") if plane is not None else None

    async def _run_grid(self, plane: SteeredCarbonPlane) -> None:
        """Feeds and plan, begun again should they ever fail as a whole."""
        while True:
            try:
                await plane.run()
            except Exception as error:
                logger.exception("the carbon plane's background work failed")
                self.alarms.event("carbon", f"feeds and plan begin again: {error}")
                await asyncio.sleep(5.0)

    def _band_now(self, policy: Policy) -> BandState:
        return band_at(policy.spec.carbon, self._situation(policy, None))

    def _situation(self, policy: Policy, tenant: str | None) -> Situation:
        plane = self.carbon
        reading = plane.reading() if plane is not None else None
        trusted = reading is not None and reading.tier is Tier.LIVE
        g_per_kwh = reading.g_per_kwh if reading is not None and trusted else None
        return Situation(self._clock(), tenant=tenant, g_per_kwh=g_per_kwh, band=self._band)

    def _effective(self, policy: Policy, tenant: str | None = None) -> Effective:
        return effective(policy, self._situation(policy, tenant))

    def _directive_of(self, tenant: str) -> str:
        """What rules give a tenant's requests; only where the policy may act."""
        applied = self._applied
        if applied is None or applied.mode != "enforce":
            return AUTO
        directives = applied.policy.spec.directives
        if directives is not None and self.brief_for_budget(tenant):
            return directives.levels[-1].id
        return self._effective(applied.policy, tenant).directive

    # Regular rows

    async def _write_regularly(self) -> None:
        minute_due_s = time.monotonic() + MINUTE_S
        while True:
            await asyncio.sleep(1.0)
            try:
                self._write_grid()
                if time.monotonic() >= minute_due_s:
                    minute_due_s = time.monotonic() + MINUTE_S
                    await self._every_minute()
            except Exception:
                logger.exception("the control plane's records failed; it goes on")

    def _write_grid(self) -> None:
        """A row for each value the feeds bring, and the feeds' trouble as an alarm."""
        plane = self.carbon
        if plane is None:
            self.alarms.stand("carbon", None)
            return
        reading = plane.reading()
        trouble = None if reading.tier is Tier.LIVE else f"intensity is {reading.tier}: {reading.reason}"
        self.alarms.stand("carbon", trouble)
        value = reading.intensity
        if value is not None and reading.tier is Tier.LIVE and (value.source, value.start) != self._last_value:
            self._last_value = (value.source, value.start)
            self.record(feed_row(value))

    async def _every_minute(self) -> None:
        if self.store is not None:
            await asyncio.to_thread(self.store.review)
        self._write_shadow()
        if self.learned is not None and self.carbon is not None:
            await asyncio.to_thread(self.save_learned)

    def _write_shadow(self) -> None:
        """A decision a minute while in shadow, so that the promotion gate can count them."""
        power, applied = self.power, self._applied
        if power is None or applied is None or applied.mode != "shadow":
            return
        observation = power.observation()
        inputs = inputs_of(observation)
        gpu = power.controller.gpus[0]
        self.audit(
            "decision",
            f"governor {gpu.governor.name}",
            device=gpu.info.uuid,
            asked={"setpoint": gpu.asked.sm_clock_mhz},
            result="shadow",
            inputs=inputs,
            slo_violated=slo_violated(inputs),
            reason=gpu.reason or "nothing to change",
        )

    def save_learned(self) -> None:
        """Keep what the carbon plane has learned, if a folder was given."""
        from carbon.state import LearnedState

        plane = self.carbon
        if plane is None or self.learned is None:
            return
        with self._lock:
            learned = (plane.energy_model, plane.quality, plane.classifier, plane.bands, plane.evidence, plane.books)
            LearnedState(*learned).save(self.learned)
