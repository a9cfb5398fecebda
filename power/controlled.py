"""A device under control: what was found, what was set, and how to undo it. No leases here; see `power.actuator`."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

from power.device import DeviceError, PowerDevice
from power.messages import Actuation, Outcome
from power.quantities import Clock

CONTESTED_S = 60.0
LIMIT_TOLERANCE_W = 1.0
CLOCK_TOLERANCE_MHZ = 20.0


class ControlledDevice:
    """Sets, reads back, undoes. `save` writes the state file: it is called before anything is changed that was not
    changed before, and again when it is as it was found."""

    def __init__(
        self, device: PowerDevice, clock: Clock, save: Callable[[], None], alarm: Callable[[str], None]
    ) -> None:
        self.device = device
        self.uuid = device.info.uuid
        self.prior_limit_w: float | None = None
        self.limit_w: float | None = None
        self.locked_mhz: tuple[int, int] | None = None
        self.clocks_touched = False
        self.restore_pending = False
        self.contested_until_s = float("-inf")
        self._mismatches = 0
        self._sets_s: deque[float] = deque()
        self._clock = clock
        self._save = save
        self._alarm = alarm

    @property
    def touched(self) -> bool:
        return self.clocks_touched or self.prior_limit_w is not None

    def within_rate(self, max_sets_per_s: int) -> bool:
        """Count one more change; false when there were too many within a second."""
        now = self._clock()
        while self._sets_s and self._sets_s[0] <= now - 1.0:
            self._sets_s.popleft()
        if len(self._sets_s) >= max_sets_per_s:
            return False
        self._sets_s.append(now)
        return True

    def set_limit(self, asked_w: float) -> Actuation:
        """Clamp to the constraints, set, read back."""
        started, info = self._clock(), self.device.info
        if info.limits is None or not math.isfinite(asked_w):
            return self.answer("set_power_limit", Outcome.REFUSED, "no constraints to clamp to", asked_w)
        watts = info.limits.clamp(asked_w)
        try:
            if self.prior_limit_w is None:
                found = self.device.read().power_limit_w
                self.prior_limit_w = found if found is not None else info.limits.default_w
                self._save()
            read_back = self.device.set_power_limit(watts)
        except (DeviceError, ValueError, OSError) as error:
            return self.answer("set_power_limit", Outcome.FAILED, str(error), asked_w, None, started)
        self.limit_w = watts
        if read_back is None:
            outcome, why = Outcome.UNCONFIRMED, "the limit could not be read back"
        elif abs(read_back - watts) > LIMIT_TOLERANCE_W:
            outcome, why = Outcome.IGNORED, f"asked for {watts:g} W, the device says {read_back:g} W"
            self.limit_w = None
            self._alarm(f"{info.name}: {why}")
        elif watts != asked_w:
            outcome, why = Outcome.CLAMPED, f"clamped to the device's constraints ({watts:g} W)"
        else:
            outcome, why = Outcome.APPLIED, ""
        return self.answer("set_power_limit", outcome, why, asked_w, read_back, started)

    def lock_clocks(self, min_mhz: int, max_mhz: int) -> Actuation:
        """Move to supported clocks, lock, read the clock back."""
        started, info = self._clock(), self.device.info
        if not info.clocks_mhz:
            return self.answer("lock_clocks", Outcome.REFUSED, "no list of supported clocks", max_mhz)
        low, high = info.snap_clock(min(min_mhz, max_mhz)), info.snap_clock(max_mhz)
        try:
            if not self.clocks_touched:
                self.clocks_touched = True
                self._save()
            read_back = self.device.lock_clocks(low, high)
        except (DeviceError, ValueError, OSError) as error:
            return self.answer("lock_clocks", Outcome.FAILED, str(error), max_mhz, None, started)
        self.locked_mhz = (low, high)
        if read_back is None:
            outcome, why = Outcome.UNCONFIRMED, "the clock could not be read back"
        elif read_back > high + CLOCK_TOLERANCE_MHZ:
            outcome, why = Outcome.IGNORED, f"asked for {high} MHz, the device runs at {read_back:g} MHz"
            self._alarm(f"{info.name}: {why}")
        elif (low, high) != (min_mhz, max_mhz):
            outcome, why = Outcome.CLAMPED, f"moved to the supported clocks {low}-{high} MHz"
        else:
            outcome, why = Outcome.APPLIED, ""
        return self.answer("lock_clocks", outcome, why, max_mhz, read_back, started)

    def reset_clocks(self, *, save: bool = True) -> Actuation:
        started = self._clock()
        try:
            if self.clocks_touched:
                self.device.reset_clocks()
        except (DeviceError, OSError) as error:
            return self.answer("reset_clocks", Outcome.FAILED, str(error), None, None, started)
        self.locked_mhz, self.clocks_touched = None, False
        if save:
            self._save()
        return self.answer("reset_clocks", Outcome.APPLIED, "", None, None, started)

    def reset_limit(self, *, save: bool = True) -> Actuation:
        """Back to the limit that was found."""
        started, prior = self._clock(), self.prior_limit_w
        if prior is None:
            return self.answer("reset_power_limit", Outcome.APPLIED, "was not touched")
        try:
            read_back = self.device.set_power_limit(prior)
        except (DeviceError, ValueError, OSError) as error:
            return self.answer("reset_power_limit", Outcome.FAILED, str(error), prior, None, started)
        if read_back is not None and abs(read_back - prior) > LIMIT_TOLERANCE_W:
            why = f"the device kept {read_back:g} W"
            return self.answer("reset_power_limit", Outcome.IGNORED, why, prior, read_back, started)
        self.limit_w = self.prior_limit_w = None
        if save:
            self._save()
        return self.answer("reset_power_limit", Outcome.APPLIED, "", prior, read_back, started)

    def restore(self, *, keep_clocks: bool = False) -> list[Actuation]:
        """Undo what was touched. What cannot be undone now stays pending. Does not write the state file: the disk
        may be slow, and every device comes first."""
        actions = [self.reset_clocks(save=False)] if self.clocks_touched and not keep_clocks else []
        if self.prior_limit_w is not None:
            actions.append(self.reset_limit(save=False))
        failed = [action for action in actions if not action.outcome.took_effect]
        if failed and not self.restore_pending:
            self._alarm(f"{self.device.info.name}: restore failed ({failed[0].reason}); retrying")
        self.restore_pending = bool(failed)
        return actions

    def verify(self) -> None:
        """Does the device still do what was asked? Once: ask again. Twice: somebody fights us; back off."""
        if self.restore_pending or (self.limit_w is None and self.locked_mhz is None):
            return
        try:
            reading = self.device.read()
        except DeviceError as error:
            self._alarm(f"{self.device.info.name}: {error}")
            return
        limit, clock = reading.power_limit_w, reading.sm_clock_mhz
        wanted, locked = self.limit_w, self.locked_mhz
        limit_off = wanted is not None and limit is not None and abs(limit - wanted) > LIMIT_TOLERANCE_W
        clock_off = locked is not None and clock is not None and clock > locked[1] + CLOCK_TOLERANCE_MHZ
        if not limit_off and not clock_off:
            self._mismatches = 0
            return
        self._mismatches += 1
        if self._mismatches == 1:
            if limit_off and wanted is not None:
                self.set_limit(wanted)
            if clock_off and locked is not None:
                self.lock_clocks(*locked)
            return
        self._back_off(limit_off=limit_off)

    def _back_off(self, *, limit_off: bool) -> None:
        """Leave the other tool's limit where it is, drop our lock, and ask nothing for a while."""
        self._alarm(f"{self.device.info.name}: another tool changes this device; backing off {CONTESTED_S:g} s")
        self.contested_until_s = self._clock() + CONTESTED_S
        self._mismatches = 0
        if limit_off:
            self.limit_w = self.prior_limit_w = None
        self.restore()
        self._save()

    def answer(
        self,
        action: str,
        outcome: Outcome,
        reason: str = "",
        asked: float | None = None,
        read_back: float | None = None,
        started_s: float | None = None,
    ) -> Actuation:
        latency = self._clock() - started_s if started_s is not None else 0.0
        return Actuation(self.uuid, action, outcome, reason, asked, read_back, latency)
