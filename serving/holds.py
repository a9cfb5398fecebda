"""Operator's holds: through the actuator at hand, on record, and taken up again after a restart."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from power.client import PowerdClient
from power.messages import Actuation, HoldMode
from serving.admin_audit import now_us
from serving.control_plane import ControlPlane
from serving.ledger.rows import HoldRow


class HoldsUnavailableError(Exception):
    """There is nothing to hold; the message says why."""


class Holds:
    """`powerd`: socket of the privileged helper; None for the actuator in this process."""

    def __init__(self, control: ControlPlane, powerd: Path | None = None) -> None:
        self._control = control
        self._client = PowerdClient(powerd, holder="operator") if powerd is not None else None
        self.last: HoldRow | None = None

    async def place(
        self, mode: HoldMode, duration_s: float | None, clock_mhz: int | None, reason: str, actor: str
    ) -> tuple[HoldRow, Sequence[Actuation]]:
        """Raises `ValueError` for a hold that makes no sense, `HoldsUnavailableError` without an actuator."""
        if not reason.strip():
            raise ValueError("a hold needs a reason; say why control is taken")
        actuations = await asyncio.to_thread(self._hold, mode, duration_s, clock_mhz, f"{actor}: {reason}")
        placed = now_us()
        row = HoldRow(
            hold_id=uuid.uuid4().hex,
            mode=mode.value,
            placed_us=placed,
            placed_by=actor,
            reason=reason,
            clock_mhz=clock_mhz,
            expires_us=placed + round(duration_s * 1e6) if duration_s is not None else None,
        )
        self._end_last(actor)
        self.last = row
        self._control.record(row)
        self._write(
            "hold", actor, reason, {"mode": mode.value, "duration_s": duration_s, "clock_mhz": clock_mhz}, actuations
        )
        return row, actuations

    async def release(self, reason: str, actor: str) -> None:
        """Give control back to the policy. Raises `HoldsUnavailableError` without an actuator."""
        await asyncio.to_thread(self._release)
        self._end_last(actor)
        self._write("release", actor, reason, None, ())

    async def take_up(self) -> None:
        """Go on with the hold that was in force when the server ended; `powerd` keeps its own."""
        ledger = self._control.ledger
        if ledger is None or self._control.power is None:
            return
        rows = await asyncio.to_thread(ledger.reader.active_holds, now_us())
        if not rows:
            return
        self.last = HoldRow(**rows[-1])
        if self._client is not None or not self._control.can_act:
            return
        last = self.last
        left_s = (last.expires_us - now_us()) / 1e6 if last.expires_us is not None else None
        await asyncio.to_thread(self._hold, HoldMode(last.mode), left_s, last.clock_mhz, last.reason)
        self._write("hold", "restart", f"taken up again: {last.reason}", {"mode": last.mode}, ())

    def current(self) -> HoldRow | None:
        """The hold this server knows of, unless it has ended."""
        last = self.last
        if last is None or last.released_us is not None:
            return None
        return last if last.expires_us is None or last.expires_us > time.time_ns() // 1000 else None

    def _hold(self, mode: HoldMode, seconds: float | None, clock_mhz: int | None, reason: str) -> Sequence[Actuation]:
        if self._client is not None:
            return self._client.hold(mode, seconds, clock_mhz, reason)
        power = self._control.power
        if power is None or not self._control.can_act:
            raise HoldsUnavailableError("no actuator runs here: there is no clock to hold")
        return power.hold(mode, seconds, clock_mhz, reason)

    def _release(self) -> None:
        if self._client is not None:
            self._client.release_hold()
            return
        power = self._control.power
        if power is None or not self._control.can_act:
            raise HoldsUnavailableError("no actuator runs here: there is no hold to release")
        power.release_hold()

    def _end_last(self, actor: str) -> None:
        if self.last is None or self.last.released_us is not None:
            return
        columns = {name: getattr(self.last, name) for name in HoldRow.__dataclass_fields__}
        self.last = HoldRow(**(columns | {"released_us": now_us(), "released_by": actor}))
        self._control.record(self.last)

    def _write(self, kind: str, actor: str, reason: str, asked: object, actuations: Sequence[Actuation]) -> None:
        outcomes = sorted({actuation.outcome.value for actuation in actuations})
        read_back = {actuation.uuid: actuation.read_back for actuation in actuations} or None
        result = ", ".join(outcomes) or "accepted"
        self._control.audit(kind, actor, asked=asked, read_back=read_back, result=result, reason=reason)
