"""From a policy to the planes: the difference between what they were told and what should hold, and how to move it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from carbon.feed_chain import FeedChain
from power.controller import Mode
from power.governors import GridSignal
from power.model_shape import ModelShape
from serving.alarms import AlarmBoard
from serving.planes import power_in_force, row_of, slo_of, steered_governor, throttle_of, twin_of
from serving.planes_carbon import GridView, SteeredCarbonPlane, build_carbon, build_chain, carbon_settings, same_feeds
from serving.policy.carbon_section import Carbon
from serving.policy.effective import Effective
from serving.policy.model import Policy
from serving.policy.power_section import Power
from serving.steering import Steering

logger = logging.getLogger(__name__)

AGAIN_S = 5.0
NO_ACTUATOR = "clocks and limits are only recorded, not set: no actuator; start gridserve-powerd and give --powerd"


@dataclass(frozen=True, slots=True)
class Applied:
    """What the planes were last told."""

    policy: Policy
    mode: str
    now: Effective
    floors: dict[str, float | None]
    """The floor of quality of each tenant, by the rules that name it."""


class PlaneMover:
    """`can_act`: whether the power plane has an actuator. `folder`: what relative paths of feeds start from. `learned`:
    where the carbon plane's knowledge lives. One move at a time: whoever calls sees to that."""

    def __init__(
        self,
        steering: Steering,
        alarms: AlarmBoard,
        *,
        shape: ModelShape | None,
        can_act: bool,
        folder: Path,
        learned: Path | None,
        clock: Callable[[], datetime],
    ) -> None:
        self.can_act = can_act
        self.applied: Applied | None = None
        self._steering = steering
        self._alarms = alarms
        self._shape = shape
        self._folder = folder
        self._learned = learned
        self._clock = clock
        self._grid: GridView | None = None
        self._grid_task: asyncio.Task[None] | None = None
        self._power_section: Power | None = None
        self._prepared: tuple[str, FeedChain] | None = None

    @property
    def _carbon(self) -> SteeredCarbonPlane | None:
        plane = self._steering.carbon
        assert plane is None or isinstance(plane, SteeredCarbonPlane)
        return plane

    @property
    def _fed(self) -> Carbon | None:
        """The section whose feeds run."""
        return self.applied.policy.spec.carbon if self.applied is not None else None

    def grid(self) -> GridSignal | None:
        """The grid for the power plane; None while it is unknown."""
        view = self._grid
        return view() if view is not None else None

    def preflight(self, policy: Policy) -> None:
        """Build everything the policy needs, so that applying it cannot fail. Raises `ValueError`."""
        power, carbon = self._steering.power, policy.spec.carbon
        if power is not None and self._shape is not None:
            steered_governor(policy.spec.power, twin_of(power.devices[0], self._shape))
        if carbon is None:
            return
        carbon_settings(policy, enforce=False)
        if self._carbon is None or not same_feeds(self._fed, carbon):
            self._prepared = (policy.revision, build_chain(carbon, self._folder, self._clock))

    async def move(self, wanted: Applied) -> None:
        """Bring both planes to `wanted`, which then is `applied`. Raises what building a plane raises."""
        await asyncio.to_thread(self._move_power, wanted)
        await self._move_carbon(wanted)
        self.applied = wanted

    async def close(self) -> None:
        """Stop the feeds' background work."""
        await self._restart_grid(None)

    def _move_power(self, wanted: Applied) -> None:
        power = self._steering.power
        if power is None or self._shape is None:
            return
        controller, policy = power.controller, wanted.policy
        section = power_in_force(policy.spec.power, wanted.now)
        before = self._power_section
        power.slo = slo_of(policy)
        if section != before:
            governor = steered_governor(section, twin_of(power.devices[0], self._shape))
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
        self._alarms.stand("power", NO_ACTUATOR if idle_only else None, "actuator")
        mode = Mode.SHADOW if idle_only else mode
        if controller.mode is not mode:
            controller.set_mode(mode)

    async def _move_carbon(self, wanted: Applied) -> None:
        policy, plane = wanted.policy, self._carbon
        carbon, enforce = policy.spec.carbon, wanted.mode == "enforce"
        if carbon is None:
            self._steering.carbon, self._grid = None, None
            await self._restart_grid(None)
            if plane is not None:
                await plane.close()
            return
        if plane is None:
            chain = self._take_prepared(policy)
            plane = await asyncio.to_thread(
                build_carbon,
                policy,
                folder=self._folder,
                learned=self._learned,
                now=self._clock,
                enforce=enforce,
                chain=chain,
            )
            assert plane is not None
            self._grid = GridView(plane, policy)
            self._steering.carbon = plane
            await self._restart_grid(plane)
            return
        settings = carbon_settings(policy, enforce=enforce, now=wanted.now, floors=wanted.floors)
        chain, retired = None, None
        if not same_feeds(self._fed, carbon):
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
                self._alarms.event("carbon", f"feeds and plan begin again: {error}")
                await asyncio.sleep(AGAIN_S)
