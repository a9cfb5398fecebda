"""The unprivileged side of the actuator: what the controller talks to, by socket or in the same process."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path
from typing import Protocol

from power.actuator import Actuator, LeaseError
from power.messages import (
    Acquire,
    Actuation,
    ActuationReply,
    AnyReply,
    AnyRequest,
    ErrorReply,
    FrameError,
    GetStatus,
    Heartbeat,
    Hold,
    HoldMode,
    LeaseReply,
    LockClocks,
    Release,
    ReleaseHold,
    ResetClocks,
    ResetPowerLimit,
    RestoreAll,
    SetPowerLimit,
    Status,
    StatusReply,
    decode_reply,
    encode_frame,
    receive_frame,
)

TIMEOUT_S = 5.0


class ActuatorUnavailableError(Exception):
    """The actuator cannot be reached; the message says what to do."""


class ActuatorPort(Protocol):
    """What the controller needs. Setters raise `LeaseError` when the lease has ended."""

    def acquire(self) -> None: ...
    def heartbeat(self) -> None: ...
    def release(self) -> None: ...
    def lock_clocks(self, uuid: str, min_mhz: int, max_mhz: int) -> Actuation: ...
    def reset_clocks(self, uuid: str) -> Actuation: ...
    def set_power_limit(self, uuid: str, watts: float) -> Actuation: ...
    def reset_power_limit(self, uuid: str) -> Actuation: ...
    def status(self) -> Status: ...


class LocalActuator:
    """An actuator in this process, for devices that need no privileges (the simulated ones)."""

    def __init__(self, actuator: Actuator, *, holder: str = "controller", ttl_s: float = 10.0) -> None:
        self.actuator = actuator
        self._holder = holder
        self._ttl_s = ttl_s
        self._lease_id = ""

    def acquire(self) -> None:
        self._lease_id, _ = self.actuator.acquire(self._holder, self._ttl_s)

    def heartbeat(self) -> None:
        self.actuator.heartbeat(self._lease_id)

    def release(self) -> None:
        self.actuator.release(self._lease_id)

    def lock_clocks(self, uuid: str, min_mhz: int, max_mhz: int) -> Actuation:
        return self.actuator.lock_clocks(self._lease_id, uuid, min_mhz, max_mhz)

    def reset_clocks(self, uuid: str) -> Actuation:
        return self.actuator.reset_clocks(self._lease_id, uuid)

    def set_power_limit(self, uuid: str, watts: float) -> Actuation:
        return self.actuator.set_power_limit(self._lease_id, uuid, watts)

    def reset_power_limit(self, uuid: str) -> Actuation:
        return self.actuator.reset_power_limit(self._lease_id, uuid)

    def status(self) -> Status:
        return self.actuator.status()


class PowerdClient:
    """Talks to `powerd`. One request at a time; reconnects once when the daemon was restarted."""

    def __init__(
        self,
        path: Path,
        *,
        holder: str = "controller",
        ttl_s: float = 10.0,
        watch_pids: tuple[int, ...] = (),
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._path = path
        self._holder = holder
        self._ttl_s = ttl_s
        self._watch_pids = watch_pids
        self._timeout_s = timeout_s
        self._connection: socket.socket | None = None
        self._lease_id = ""
        self._lock = threading.Lock()

    def acquire(self) -> None:
        reply = self._ask(Acquire(self._holder, self._ttl_s, self._watch_pids))
        if not isinstance(reply, LeaseReply):
            raise ActuatorUnavailableError(f"unexpected answer {type(reply).__name__} from powerd")
        self._lease_id = reply.lease_id

    def heartbeat(self) -> None:
        self._ask(Heartbeat(self._lease_id))

    def release(self) -> None:
        self._ask(Release(self._lease_id))

    def lock_clocks(self, uuid: str, min_mhz: int, max_mhz: int) -> Actuation:
        return self._act(LockClocks(self._lease_id, uuid, min_mhz, max_mhz))

    def reset_clocks(self, uuid: str) -> Actuation:
        return self._act(ResetClocks(self._lease_id, uuid))

    def set_power_limit(self, uuid: str, watts: float) -> Actuation:
        return self._act(SetPowerLimit(self._lease_id, uuid, watts))

    def reset_power_limit(self, uuid: str) -> Actuation:
        return self._act(ResetPowerLimit(self._lease_id, uuid))

    def status(self) -> Status:
        reply = self._ask(GetStatus())
        if not isinstance(reply, StatusReply):
            raise ActuatorUnavailableError(f"unexpected answer {type(reply).__name__} from powerd")
        return reply.status

    def restore_all(self, reason: str = "operator") -> tuple[Actuation, ...]:
        return self._actuations(RestoreAll(reason))

    def hold(
        self, mode: HoldMode, seconds: float | None, pin_mhz: int | None = None, reason: str = ""
    ) -> tuple[Actuation, ...]:
        return self._actuations(Hold(mode, seconds, pin_mhz, reason))

    def release_hold(self) -> None:
        self._ask(ReleaseHold())

    def close(self) -> None:
        """Drop the connection. The lease lives on until released or expired, or this process ends."""
        with self._lock:
            self._disconnect()

    def _act(self, request: AnyRequest) -> Actuation:
        (actuation,) = self._actuations(request)
        return actuation

    def _actuations(self, request: AnyRequest) -> tuple[Actuation, ...]:
        reply = self._ask(request)
        if not isinstance(reply, ActuationReply):
            raise ActuatorUnavailableError(f"unexpected answer {type(reply).__name__} from powerd")
        return reply.actuations

    def _ask(self, request: AnyRequest) -> AnyReply:
        with self._lock:
            known = self._connection is not None
            try:
                reply = self._exchange(request)
            except (OSError, FrameError) as error:
                self._disconnect()
                if not known:
                    raise self._unreachable(error) from error
                try:
                    reply = self._exchange(request)
                except (OSError, FrameError) as again:
                    self._disconnect()
                    raise self._unreachable(again) from again
        if isinstance(reply, ErrorReply):
            if reply.lease:
                raise LeaseError(reply.error)
            raise ValueError(reply.error)
        return reply

    def _exchange(self, request: AnyRequest) -> AnyReply:
        if self._connection is None:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.settimeout(self._timeout_s)
            try:
                connection.connect(str(self._path))
            except OSError:
                connection.close()
                raise
            self._connection = connection
        try:
            self._connection.sendall(encode_frame(request))
        except BrokenPipeError:
            return decode_reply(receive_frame(self._connection))  # a refusal, sent before the connection was closed
        return decode_reply(receive_frame(self._connection))

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _unreachable(self, error: Exception) -> ActuatorUnavailableError:
        if isinstance(error, PermissionError):
            why = f"user {os.geteuid()} may not open {self._path}: join the socket's group"
        elif isinstance(error, FileNotFoundError | ConnectionRefusedError):
            why = f"no powerd at {self._path}: start it (systemctl start gridserve-powerd) or give --socket"
        else:
            why = f"powerd at {self._path} does not answer: {error}"
        return ActuatorUnavailableError(why)
