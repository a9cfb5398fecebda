"""sd_notify: a process tells whoever started it (systemd, or `gridserve up`) that it is ready, and what it serves.

https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html; variables of our own begin with `X_`.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

VARIABLE = "NOTIFY_SOCKET"
MAX_BYTES = 8192


def notify(**variables: str) -> None:
    """Send `NAME=value` lines, where somebody listens; nothing is said twice and nothing fails."""
    address = os.environ.get(VARIABLE)
    if not address:
        return
    text = "\n".join(f"{name}={value}" for name, value in variables.items())
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        try:
            where = "\0" + address[1:] if address.startswith("@") else address
            channel.sendto(text.encode(), socket.MSG_DONTWAIT, where)
        except OSError:
            return


class NotifyListener:
    """The receiving end, a datagram socket at `path`; never blocks."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.unlink(missing_ok=True)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self.socket.bind(str(path))

    def received(self) -> dict[str, str]:
        """What was said since last asked, later words over earlier ones."""
        found: dict[str, str] = {}
        while True:
            try:
                text = self.socket.recv(MAX_BYTES).decode(errors="replace")
            except BlockingIOError:
                return found
            found |= {name: value for name, _, value in (line.partition("=") for line in text.splitlines())}

    def close(self) -> None:
        self.socket.close()
        self.path.unlink(missing_ok=True)
