"""Once a second: what the engine, the devices and the grid do, into memory for charts and into the ledger."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from engine.client_protocol import EngineClientProtocol
from power.client import ActuatorUnavailableError, PowerdClient
from power.messages import HoldStatus, Status
from power.plane_status import PlaneStatus
from serving.control_plane import ControlPlane
from serving.energy_totals import EnergyTotals
from serving.latency_window import LatencyWindow
from serving.live_series import STEP_S, LiveSeries, spec_of

logger = logging.getLogger(__name__)

RATE_WINDOW_S = 10.0


class Sampler:
    """`run` until cancelled. `status` and `hold` are at most a second old; asking for them costs nothing."""

    def __init__(
        self,
        control: ControlPlane,
        engine: EngineClientProtocol,
        latency: LatencyWindow,
        totals: EnergyTotals,
        generated_tokens: Callable[[], int],
        powerd: Path | None = None,
    ) -> None:
        self.series = LiveSeries()
        self._control = control
        self._engine = engine
        self._latency = latency
        self._totals = totals
        self._generated_tokens = generated_tokens
        self._client = PowerdClient(powerd, holder="control plane") if powerd is not None else None
        self._rates: deque[tuple[float, int, int, float | None]] = deque()
        self._lock = threading.Lock()
        self._status: PlaneStatus | None = None
        self._hold: HoldStatus | None = None
        self._hold_at_s = 0.0

    @property
    def status(self) -> PlaneStatus | None:
        """The power plane a moment ago; None without one."""
        if self._status is None and self._control.power is not None:
            self._status = self._control.power.status()
        return self._status

    @property
    def hold(self) -> tuple[HoldStatus, float] | None:
        """The hold in force, and when (monotonic) it was asked for."""
        return (self._hold, self._hold_at_s) if self._hold is not None else None

    async def run(self) -> None:
        due_s = time.monotonic()
        while True:
            due_s = max(due_s + STEP_S, time.monotonic())
            await asyncio.sleep(due_s - time.monotonic())
            try:
                await self.sample()
            except Exception:
                logger.exception("a sample was lost; sampling goes on")

    async def refresh(self) -> None:
        """Read the power plane and the actuator now."""
        await asyncio.to_thread(self._look)

    def _look(self) -> None:
        power = self._control.power
        if power is None:
            return
        with self._lock:
            self._status = power.status()
            actuator = self._actuator_status()
            self._hold = actuator.hold if actuator is not None else None
            self._hold_at_s = time.monotonic()
        for device in power.devices:
            error = power.telemetry.error(device.info.uuid)
            self._control.alarms.stand("power", f"{device.info.name}: {error}" if error else None, device.info.uuid)

    def _actuator_status(self) -> Status | None:
        if self._client is None:
            return self._status.actuator if self._status is not None else None
        try:
            status = self._client.status()
        except (ActuatorUnavailableError, ValueError) as error:
            self._control.alarms.stand("power", str(error), "powerd")
            return None
        self._control.alarms.stand("power", None, "powerd")
        return status

    async def sample(self) -> None:
        await self.refresh()
        wall_s = time.time()
        values = self._engine_values() | self._power_values() | self._grid_values() | self._rate_values()
        self.series.put(wall_s, values)
        ledger = self._control.ledger
        if ledger is not None:
            at_us = round(wall_s * 1e6)
            for name, value in values.items():
                if value is not None:
                    ledger.writer.sample(spec_of(name), at_us, value)

    def _engine_values(self) -> dict[str, float | None]:
        stats = self._engine.stats
        if stats is None:
            return {}
        used = stats.kv_blocks_used / stats.kv_blocks_total if stats.kv_blocks_total else None
        return {"running": stats.running, "waiting": stats.waiting, "kv_usage_ratio": used}

    def _power_values(self) -> dict[str, float | None]:
        power, status = self._control.power, self._status
        if power is None or status is None:
            return {}
        books = status.books
        values: dict[str, float | None] = {
            'energy_j{phase="prefill"}': books.prefill_j,
            'energy_j{phase="decode"}': books.decode_j,
            'energy_j{phase="request_idle"}': books.request_idle_j,
            'energy_j{phase="idle"}': books.idle_j,
            'energy_j{phase="unattributed"}': books.unattributed_j,
        }
        watts: list[float | None] = []
        for number, device in enumerate(power.devices):
            reading = power.telemetry.latest(device.info.uuid)
            watts.append(reading.power_w if reading is not None else None)
            label = f'{{gpu="{number}"}}'
            values[f"asked_clock_mhz{label}"] = status.asked_mhz.get(device.info.uuid)
            if reading is not None:
                values[f"power_w{label}"] = reading.power_w
                values[f"power_limit_w{label}"] = reading.power_limit_w
                values[f"sm_clock_mhz{label}"] = reading.sm_clock_mhz
                values[f"temperature_c{label}"] = reading.temperature_c
        known = [value for value in watts if value is not None]
        values["power_w"] = sum(known) if len(known) == len(watts) else None
        return values

    def _grid_values(self) -> dict[str, float | None]:
        plane = self._control.carbon
        if plane is None:
            return {}
        return {"intensity_g_per_kwh": plane.reading().g_per_kwh, "grams_total": self._totals.grams_total}

    def _rate_values(self) -> dict[str, float | None]:
        now, summary = time.monotonic(), self._latency.summary()
        counter_j = self._status.books.counter_j if self._status is not None else None
        self._rates.append((now, self._generated_tokens(), self._latency.finished_requests, counter_j))
        while now - self._rates[0][0] > RATE_WINDOW_S + STEP_S:
            self._rates.popleft()
        values: dict[str, float | None] = {
            "ttft_p95_s": summary.ttft_p95_s,
            "ttft_p99_s": summary.ttft_p99_s,
            "tpot_p99_s": summary.tpot_p99_s,
        }
        began, tokens, requests, joules = self._rates[0]
        span_s = now - began
        if span_s > 0:
            made = self._rates[-1][1] - tokens
            values["output_tokens_per_s"] = made / span_s
            values["requests_per_s"] = (self._rates[-1][2] - requests) / span_s
            if joules is not None and counter_j is not None and made:
                values["joules_per_token"] = (counter_j - joules) / made
        return values
