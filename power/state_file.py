"""What the actuator changed, on disk before it changes it, so that whoever comes next can undo it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Touched(msgspec.Struct):
    """One device: the limit as it was found (`None` if never touched) and whether its clocks were locked."""

    uuid: str
    prior_limit_w: float | None = None
    clocks_locked: bool = False


class SavedHold(msgspec.Struct):
    """An operator's hold; `expires_unix_s` is wall time, so that it outlives the process."""

    mode: str
    reason: str
    expires_unix_s: float | None


class State(msgspec.Struct):
    boot_id: str
    touched: list[Touched] = []
    hold: SavedHold | None = None


class StateFile:
    """`save` returns only when the bytes are on disk. A torn or foreign file is kept aside, not trusted."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / "powerd-state.json"

    def load(self) -> tuple[State | None, str | None]:
        """The saved state, `None` when there is none, and a note when something was wrong with it.

        After a reboot the settings are gone with the driver; only the hold is kept.
        """
        try:
            state = msgspec.json.decode(self.path.read_bytes(), type=State)
        except FileNotFoundError:
            return None, None
        except (msgspec.MsgspecError, OSError) as error:
            aside = self.path.with_suffix(f".unreadable-{int(time.time())}")
            self.path.replace(aside)
            return None, f"state file was unreadable ({error}); kept as {aside.name}"
        if state.boot_id != boot_id():
            return State(boot_id(), [], state.hold), "machine was rebooted; settings are gone with the driver"
        return state, None

    def save(self, state: State) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_suffix(".new")
        with fresh.open("wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(msgspec.json.encode(state))
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self.path)
        self._sync_directory()

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self._sync_directory()

    def _sync_directory(self) -> None:
        if not self.directory.is_dir():
            return
        handle = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def boot_id() -> str:
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return "unknown"
