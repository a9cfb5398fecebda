"""What a simulated GPU's driver remembers: clock lock and power limit in a small file that several processes share.

A real board keeps its settings when a process dies, and so must a simulated one, or a crash could not be rehearsed:
`powerd` sets them in one process, the server that draws the power reads them in another, and after a kill they stand
until somebody restores them.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec


class RegisterValues(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """None: as the driver has it by default."""

    lock_min_mhz: int | None = None
    lock_max_mhz: int | None = None
    limit_w: float | None = None


class Registers:
    """The file of one board, `FOLDER/UUID.json`. Written by one process at a time, read by any."""

    def __init__(self, folder: Path, uuid: str) -> None:
        self.path = folder / f"{uuid}.json"
        self._seen: tuple[int, int] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def changed(self) -> RegisterValues | None:
        """The values if they changed since this object last read or wrote them; else None. A damaged file is None."""
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            seen, self._seen = self._seen, None
            return RegisterValues() if seen is not None else None
        stamp = (status.st_mtime_ns, status.st_ino)
        if stamp == self._seen:
            return None
        self._seen = stamp
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=RegisterValues)
        except (OSError, msgspec.MsgspecError):
            return None

    def write(self, values: RegisterValues) -> None:
        """Replace the values at once. Raises `OSError`."""
        fresh = self.path.with_suffix(f".{os.getpid()}")
        fresh.write_bytes(msgspec.json.encode(values))
        fresh.replace(self.path)
        status = os.stat(self.path)
        self._seen = (status.st_mtime_ns, status.st_ino)
