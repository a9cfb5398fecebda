"""The actuator: the one place that changes clocks and limits, and always changes them back.

Holds at most one lease. Without a live lease every device is as it was found. What is touched is on disk before it
is touched. Values are clamped to the device's own constraints; lowering is rate-limited, restoring never is.
The same class runs inside `powerd` (with privileges) and in process for simulated devices.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from power.controlled import ControlledDevice
from power.device import Capability, DeviceError, PowerDevice
from power.messages import (
    Actuation,
    DeviceStatus,
    HoldMode,
    HoldStatus,
    LeaseStatus,
    Outcome,
    ReadingStatus,
    Status,
)
from power.quantities import Clock
from power.state_file import SavedHold, State, StateFile, Touched, boot_id

MIN_TTL_S, MAX_TTL_S = 0.2, 60.0
MAX_HOLD_S = 7 * 86_400.0
VERIFY_S = 1.0


class LeaseError(Exception):
    """There is no such lease, or somebody else has it."""


@dataclass(slots=True)
class _Lease:
    lease_id: str
    holder: str
    ttl_s: float
    beaten_s: float
    watch_pids: tuple[int, ...]


@dataclass(slots=True)
class _Hold:
    mode: HoldMode
    reason: str
    expires_s: float | None
    pin_mhz: int | None = None


class Actuator:
    """Thread-safe. Call `start` first, `tick` at least every second, `close` last; all three restore what is due."""

    def __init__(
        self,
        devices: Sequence[PowerDevice],
        state_file: StateFile | None,
        *,
        clock: Clock = time.monotonic,
        max_sets_per_s: int = 10,
        on_alarm: Callable[[str], None] | None = None,
    ) -> None:
        self._file = state_file
        self.clock = clock
        self._max_sets_per_s = max_sets_per_s
        self._on_alarm = on_alarm
        self._lock = threading.RLock()
        self._lease: _Lease | None = None
        self._hold: _Hold | None = None
        self._alarms: deque[str] = deque(maxlen=20)
        self._absent: list[Touched] = []
        self._restores = 0
        self._verified_s = clock()
        self._retry_s = float("-inf")
        self._devices = {
            device.info.uuid: ControlledDevice(device, clock, self._save, self._alarm) for device in devices
        }

    def start(self) -> list[Actuation]:
        """Undo what an earlier process left behind, and take up its hold. A pin is not re-applied: it becomes a hold
        at driver defaults."""
        if self._file is None:
            return []
        with self._lock:
            state, note = self._file.load()
            if note:
                self._alarm(note)
            if state is None:
                return []
            for touched in state.touched:
                known = self._devices.get(touched.uuid)
                if known is None:
                    self._alarm(f"state file names {touched.uuid}, which is not here; its settings wait for its return")
                    self._absent.append(touched)
                    continue
                known.prior_limit_w = touched.prior_limit_w
                known.clocks_touched = touched.clocks_locked
                known.restore_pending = True
            saved = state.hold
            if saved is not None and (saved.expires_unix_s is None or saved.expires_unix_s > time.time()):
                left = None if saved.expires_unix_s is None else saved.expires_unix_s - time.time()
                mode = HoldMode.FREEZE if saved.mode == HoldMode.FREEZE else HoldMode.DEFAULTS
                self._hold = _Hold(mode, saved.reason, None if left is None else self.clock() + left)
            return self._restore("stale state file")

    def acquire(self, holder: str, ttl_s: float = 10.0, watch_pids: tuple[int, ...] = ()) -> tuple[str, float]:
        """Take the lease: `(lease id, time to live)`. Raises `LeaseError` while another holder's is alive."""
        with self._lock:
            self.tick()
            if self._lease is not None:
                raise LeaseError(
                    f"{self._lease.holder} holds the lease; wait for its end or run `gridserve power restore`"
                )
            ttl_s = min(max(ttl_s, MIN_TTL_S), MAX_TTL_S)
            self._lease = _Lease(secrets.token_hex(8), holder, ttl_s, self.clock(), watch_pids)
            return self._lease.lease_id, ttl_s

    def heartbeat(self, lease_id: str) -> None:
        """Keep the lease. Raises `LeaseError` when it has ended: everything is restored by then."""
        with self._lock:
            self._live(lease_id).beaten_s = self.clock()

    def release(self, lease_id: str) -> None:
        """End the lease and restore."""
        with self._lock:
            self._live(lease_id)
            self._end_lease("lease released")

    def end_lease(self, reason: str) -> None:
        """The holder is gone; restore now rather than at expiry."""
        with self._lock:
            if self._lease is not None:
                self._end_lease(reason)

    def set_power_limit(self, lease_id: str, uuid: str, watts: float) -> Actuation:
        """Clamped to the device's constraints. Refusals are answers, not exceptions; an unknown device is a
        `ValueError`, a dead lease a `LeaseError`."""
        with self._lock:
            entry = self._leased(lease_id, uuid)
            return self._refusal(entry, "set_power_limit", watts, Capability.CAP) or entry.set_limit(watts)

    def lock_clocks(self, lease_id: str, uuid: str, min_mhz: int, max_mhz: int) -> Actuation:
        """Moved up to supported clocks; otherwise as `set_power_limit`."""
        with self._lock:
            entry = self._leased(lease_id, uuid)
            refused = self._refusal(entry, "lock_clocks", max_mhz, Capability.CLOCKS)
            return refused or entry.lock_clocks(min_mhz, max_mhz)

    def reset_clocks(self, lease_id: str, uuid: str) -> Actuation:
        with self._lock:
            entry = self._leased(lease_id, uuid)
            return self._held(entry, "reset_clocks") or entry.reset_clocks()

    def reset_power_limit(self, lease_id: str, uuid: str) -> Actuation:
        """Back to the limit that was found."""
        with self._lock:
            entry = self._leased(lease_id, uuid)
            return self._held(entry, "reset_power_limit") or entry.reset_limit()

    def restore_all(self, reason: str) -> list[Actuation]:
        """Operator's order: end any lease and restore every device."""
        with self._lock:
            self._lease = None
            return self._restore(reason)

    def hold(
        self, mode: HoldMode, seconds: float | None, pin_mhz: int | None = None, reason: str = ""
    ) -> list[Actuation]:
        """Take control from the controller. Only `defaults` (panic) may last without an expiry."""
        if seconds is None and mode is not HoldMode.DEFAULTS:
            raise ValueError(f"a hold of mode {mode.value} needs an expiry: give seconds (`--minutes`)")
        if seconds is not None and not 0 < seconds <= MAX_HOLD_S:
            raise ValueError(f"a hold lasts more than 0 and at most {MAX_HOLD_S:g} seconds, got {seconds:g}")
        if mode is HoldMode.PIN and pin_mhz is None:
            raise ValueError("a pin needs a clock: give pin_mhz")
        with self._lock:
            expires = None if seconds is None else self.clock() + seconds
            self._hold = _Hold(mode, reason or f"operator hold ({mode.value})", expires, pin_mhz)
            self._save()
            if mode is HoldMode.DEFAULTS:
                return self._restore("operator hold at defaults")
            if mode is HoldMode.PIN:
                assert pin_mhz is not None
                return [
                    entry.lock_clocks(pin_mhz, pin_mhz)
                    for entry in self._devices.values()
                    if entry.device.info.can(Capability.CLOCKS)
                ]
            return []

    def release_hold(self) -> None:
        """Give control back. What a pin set is restored."""
        with self._lock:
            if self._hold is None:
                return
            pinned = self._hold.mode is HoldMode.PIN
            self._hold = None
            if pinned or self._lease is None:
                self._restore("hold released")
            self._save()

    def tick(self) -> None:
        """Expire lease and hold, retry failed restores, and look whether somebody else changes our settings."""
        with self._lock:
            now = self.clock()
            if self._lease is not None and now - self._lease.beaten_s > self._lease.ttl_s:
                self._end_lease(f"lease of {self._lease.holder} expired")
            if self._hold is not None and self._hold.expires_s is not None and now >= self._hold.expires_s:
                self.release_hold()
            if now >= self._retry_s and any(entry.restore_pending for entry in self._devices.values()):
                self._retry_s = now + VERIFY_S
                self._restore("retry", only_pending=True)
            if now - self._verified_s >= VERIFY_S:
                self._verified_s = now
                for entry in self._devices.values():
                    entry.verify()

    def close(self, reason: str = "shutting down") -> None:
        """Restore everything. The state file stays if something could not be restored."""
        with self._lock:
            self._lease = None
            self._restore(reason)

    @property
    def owed(self) -> bool:
        """Something could not be put back yet: a restore failed or the device is away."""
        with self._lock:
            return bool(self._absent) or any(entry.restore_pending for entry in self._devices.values())

    @property
    def watched_pids(self) -> tuple[int, ...]:
        with self._lock:
            return self._lease.watch_pids if self._lease is not None else ()

    @property
    def lease_id(self) -> str | None:
        with self._lock:
            return self._lease.lease_id if self._lease is not None else None

    def status(self) -> Status:
        with self._lock:
            now = self.clock()
            lease, hold = self._lease, self._hold
            return Status(
                devices=tuple(self._device_status(entry, now) for entry in self._devices.values()),
                lease=LeaseStatus(lease.holder, lease.ttl_s, lease.beaten_s + lease.ttl_s - now, lease.watch_pids)
                if lease is not None
                else None,
                hold=HoldStatus(
                    hold.mode, hold.reason, None if hold.expires_s is None else hold.expires_s - now, hold.pin_mhz
                )
                if hold is not None
                else None,
                alarms=tuple(self._alarms),
                restores=self._restores,
                pid=os.getpid(),
            )

    def _device_status(self, entry: ControlledDevice, now: float) -> DeviceStatus:
        info = entry.device.info
        contested = entry.contested_until_s - now
        reading, error = reading_status(entry.device)
        return DeviceStatus(
            uuid=entry.uuid,
            name=info.name,
            capabilities=tuple(sorted(capability.value for capability in info.capabilities)),
            notes=info.notes,
            limit_w=entry.limit_w,
            prior_limit_w=entry.prior_limit_w,
            locked_mhz=entry.locked_mhz,
            contested_for_s=contested if contested > 0 else None,
            restore_pending=entry.restore_pending,
            method=info.method.value,
            reading=reading,
            reading_error=error,
        )

    def _live(self, lease_id: str) -> _Lease:
        self.tick()
        if self._lease is None or not secrets.compare_digest(self._lease.lease_id, lease_id):
            raise LeaseError("the lease has ended or was never given; settings are restored; acquire a new one")
        return self._lease

    def _leased(self, lease_id: str, uuid: str) -> ControlledDevice:
        self._live(lease_id)
        entry = self._devices.get(uuid)
        if entry is None:
            raise ValueError(f"no device {uuid}; known: {', '.join(self._devices) or 'none'}")
        return entry

    def _refusal(self, entry: ControlledDevice, action: str, asked: float, capability: Capability) -> Actuation | None:
        info, now = entry.device.info, self.clock()
        if not info.can(capability):
            why = "; ".join(info.notes) or f"no {capability.value} control"
            return entry.answer(action, Outcome.REFUSED, why, asked)
        if self._hold is not None:
            return entry.answer(action, Outcome.HELD, self._hold.reason, asked)
        if entry.restore_pending:
            return entry.answer(action, Outcome.REFUSED, "an earlier setting could not be restored yet", asked)
        if now < entry.contested_until_s:
            why = f"another tool changes this device; backing off {entry.contested_until_s - now:.0f} s"
            return entry.answer(action, Outcome.CONTESTED, why, asked)
        if not entry.within_rate(self._max_sets_per_s):
            why = f"more than {self._max_sets_per_s} changes within a second"
            return entry.answer(action, Outcome.RATE_LIMITED, why, asked)
        return None

    def _held(self, entry: ControlledDevice, action: str) -> Actuation | None:
        if self._hold is None or self._hold.mode is HoldMode.DEFAULTS:
            return None
        return entry.answer(action, Outcome.HELD, self._hold.reason)

    def _restore(self, reason: str, *, only_pending: bool = False, keep_clocks: bool = False) -> list[Actuation]:
        done = []
        for entry in self._devices.values():
            if entry.touched and (entry.restore_pending or not only_pending):
                done += entry.restore(keep_clocks=keep_clocks)
            elif not entry.touched:
                entry.restore_pending = False
        if done:
            self._save()
            self._restores += 1
            if not only_pending:
                self._alarm(f"restored: {reason}")
        return done

    def _end_lease(self, reason: str) -> None:
        self._lease = None
        pinned = self._hold is not None and self._hold.mode is HoldMode.PIN
        self._restore(reason, keep_clocks=pinned)

    def _save(self) -> None:
        if self._file is None:
            return
        touched = [
            Touched(uuid, entry.prior_limit_w, entry.clocks_touched)
            for uuid, entry in self._devices.items()
            if entry.touched
        ] + self._absent
        hold = self._hold
        if not touched and hold is None:
            self._file.remove()
            return
        saved = None
        if hold is not None:
            left = None if hold.expires_s is None else time.time() + hold.expires_s - self.clock()
            saved = SavedHold(hold.mode.value, hold.reason, left)
        self._file.save(State(boot_id(), touched, saved))

    def _alarm(self, text: str) -> None:
        self._alarms.append(text)
        if self._on_alarm is not None:
            self._on_alarm(text)


def reading_status(device: PowerDevice) -> tuple[ReadingStatus | None, str | None]:
    """A reading to show, or why there is none."""
    try:
        reading = device.read()
    except DeviceError as error:
        return None, str(error)
    return ReadingStatus(
        power_w=reading.power_w,
        energy_j=reading.energy_j,
        sm_clock_mhz=reading.sm_clock_mhz,
        temperature_c=reading.temperature_c,
        utilisation=reading.utilisation,
        power_limit_w=reading.power_limit_w,
        clock_reasons=tuple(sorted(reason.value for reason in reading.clock_reasons or ())),
    ), None
