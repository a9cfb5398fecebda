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
from datetime import UTC, datetime
from pathlib import Path

from carbon.intensity import Tier
from power.audit import AuditRecord
from power.governors import GridSignal
from power.model_shape import ModelShape
from power.plane import PowerPlane
from serving.admin_audit import entry_of, now_us
from serving.alarms import AlarmBoard, AlarmNote
from serving.control_mover import Applied, PlaneMover
from serving.control_records import RegularRows
from serving.ledger.policy_log import LedgerPolicyLog
from serving.ledger.rows import AuditEntry, Record
from serving.ledger_access import Ledger
from serving.planes_carbon import SteeredCarbonPlane, undirected_classes
from serving.policy.checks import DeviceRange
from serving.policy.directives_section import Evaluator, Tenant
from serving.policy.effective import AUTO, BandState, Effective, Situation, band_at, effective
from serving.policy.model import Policy
from serving.policy.store import Active, PolicyStore
from serving.policy.watch import PolicyWatcher
from serving.steering import Steering

logger = logging.getLogger(__name__)

FOLLOW_S = 0.1
RULES_S = 1.0
RETRY_S = 5.0


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
        self.learned = learned
        self.store: PolicyStore | None = None
        self.brief_for_budget: Callable[[str], bool] = lambda tenant: False
        """Whether a tenant has used up a budget that then asks for brief answers."""
        self.shape = shape
        self._clock = clock
        self._mover = PlaneMover(
            steering, self.alarms, shape=shape, can_act=can_act, folder=folder, learned=learned, clock=clock
        )
        self.rows = RegularRows(self)
        self._watcher: PolicyWatcher | None = None
        self._band: BandState | None = None
        self._failed: Applied | None = None
        self._retry_s = 0.0
        self._moving = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._lock = threading.Lock()

    # Reading

    @property
    def can_act(self) -> bool:
        return self._mover.can_act

    @can_act.setter
    def can_act(self, can_act: bool) -> None:
        self._mover.can_act = can_act

    @property
    def _applied(self) -> Applied | None:
        return self._mover.applied

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
        return self._mover.grid()

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
            preflight=self._mover.preflight,
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

    async def start(self) -> None:
        """Apply the policy and keep following it."""
        await self.follow()
        if self.store is not None:
            self._watcher = PolicyWatcher(self.store)
            self._watcher.start()
            self._tasks.append(asyncio.create_task(self._keep_following(), name="policy-follow"))
        self._tasks.append(asyncio.create_task(self.rows.run(), name="control-minute"))

    async def close(self) -> None:
        """Stop following. The planes are left to who made them, but for the feeds."""
        if self._watcher is not None:
            await asyncio.to_thread(self._watcher.stop)
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await self._mover.close()
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
            before = self._applied
            try:
                await self._mover.move(wanted)
            except Exception as error:
                logger.exception("the policy could not be carried out")
                self.alarms.stand("policy", f"revision {active.policy.short_revision}: {error}", "apply")
                self._failed, self._retry_s = wanted, time.monotonic() + RETRY_S
                return
            self.alarms.stand("policy", None, "apply")
            self._failed = None
            self._note_change(active, before, wanted)
            self.steering.follow_policy(
                active.policy.short_revision, undirected_classes(active.policy), self._directive_of
            )
            self._say_held_back(active)

    def _wanted(self, active: Active) -> Applied:
        policy = active.policy
        floors = {tenant.name: self._effective(policy, tenant.name).quality_floor for tenant in policy.spec.tenants}
        return Applied(policy, active.mode, self._effective(policy), floors)

    def _say_held_back(self, active: Active) -> None:
        held = f"runs in {active.mode} instead of enforce: {active.held_back}" if active.held_back else None
        self.alarms.stand("policy", held, "gate")

    def _note_change(self, active: Active, before: Applied | None, wanted: Applied) -> None:
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

    def save_learned(self) -> None:
        """Keep what the carbon plane has learned, if a folder was given."""
        from carbon.state import LearnedState

        plane = self.carbon
        if plane is None or self.learned is None:
            return
        with self._lock:
            learned = (plane.energy_model, plane.quality, plane.classifier, plane.bands, plane.evidence, plane.books)
            LearnedState(*learned).save(self.learned)
