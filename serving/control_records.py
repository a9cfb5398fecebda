"""What the control plane writes down by itself: the grid's values, feeds in trouble, decisions in shadow."""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import datetime
from typing import TYPE_CHECKING

from carbon.intensity import Tier
from power.audit import inputs_of
from serving.admin_audit import feed_row, slo_violated

if TYPE_CHECKING:
    from serving.control_plane import ControlPlane

logger = logging.getLogger(__name__)

MINUTE_S = 60.0


class RegularRows:
    """Looks once a second, until it is cancelled."""

    def __init__(self, control: ControlPlane) -> None:
        self._control = control
        self._last_value: tuple[str, datetime] | None = None

    async def run(self) -> None:
        minute_due_s = time.monotonic() + MINUTE_S
        while True:
            await asyncio.sleep(1.0)
            try:
                self.write_grid()
                if time.monotonic() >= minute_due_s:
                    minute_due_s = time.monotonic() + MINUTE_S
                    await self._every_minute()
            except Exception:
                logger.exception("the control plane's records failed; it goes on")

    def write_grid(self) -> None:
        """A row for each value the feeds bring, and the feeds' trouble as an alarm."""
        plane, alarms = self._control.carbon, self._control.alarms
        if plane is None:
            alarms.stand("carbon", None)
            return
        reading = plane.reading()
        trouble = None if reading.tier is Tier.LIVE else f"intensity is {reading.tier}: {reading.reason}"
        alarms.stand("carbon", trouble)
        value = reading.intensity
        if value is not None and reading.tier is Tier.LIVE and (value.source, value.start) != self._last_value:
            self._last_value = (value.source, value.start)
            self._control.record(feed_row(value))

    async def _every_minute(self) -> None:
        control = self._control
        if control.store is not None:
            await asyncio.to_thread(control.store.review)
        self.write_shadow()

    def write_shadow(self) -> None:
        """A decision a minute while in shadow, so that the promotion gate can count them."""
        power = self._control.power
        if power is None or self._control.mode != "shadow":
            return
        observation = power.observation()
        inputs = inputs_of(observation)
        gpu = power.controller.gpus[0]
        self._control.audit(
            "decision",
            f"governor {gpu.governor.name}",
            device=gpu.info.uuid,
            asked={"setpoint": gpu.asked.sm_clock_mhz},
            result="shadow",
            inputs=inputs,
            slo_violated=slo_violated(inputs),
            reason=gpu.reason or "nothing to change",
        )
