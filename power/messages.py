"""What travels between the controller and the actuator: typed, length-prefixed MessagePack. Never pickle."""

from __future__ import annotations

import enum
import socket
import struct

import msgspec

MAX_FRAME_BYTES = 256 * 1024
_HEADER = struct.Struct("!I")


class Outcome(enum.StrEnum):
    """What became of an action."""

    APPLIED = "applied"
    CLAMPED = "clamped"
    IGNORED = "ignored"
    UNCONFIRMED = "unconfirmed"
    REFUSED = "refused"
    HELD = "held"
    RATE_LIMITED = "rate_limited"
    CONTESTED = "contested"
    FAILED = "failed"

    @property
    def took_effect(self) -> bool:
        return self in (Outcome.APPLIED, Outcome.CLAMPED, Outcome.UNCONFIRMED)


class HoldMode(enum.StrEnum):
    """`defaults`: panic, driver defaults everywhere; `freeze`: keep what is set; `pin`: an operator's clock."""

    DEFAULTS = "defaults"
    FREEZE = "freeze"
    PIN = "pin"


class Request(msgspec.Struct, frozen=True, tag_field="verb"):
    """Base of all requests; the verb is the tag."""


class GetStatus(Request, frozen=True, tag="status"):
    pass


class Acquire(Request, frozen=True, tag="acquire"):
    """Ask for the lease. `watch_pids`: processes whose death ends it at once, the caller's beside them."""

    holder: str
    ttl_s: float = 10.0
    watch_pids: tuple[int, ...] = ()


class Heartbeat(Request, frozen=True, tag="heartbeat"):
    lease_id: str


class Release(Request, frozen=True, tag="release"):
    lease_id: str


class SetPowerLimit(Request, frozen=True, tag="set_power_limit"):
    lease_id: str
    uuid: str
    watts: float


class LockClocks(Request, frozen=True, tag="lock_clocks"):
    lease_id: str
    uuid: str
    min_mhz: int
    max_mhz: int


class ResetClocks(Request, frozen=True, tag="reset_clocks"):
    lease_id: str
    uuid: str


class ResetPowerLimit(Request, frozen=True, tag="reset_power_limit"):
    lease_id: str
    uuid: str


class RestoreAll(Request, frozen=True, tag="restore_all"):
    """Driver's state as it was found, lease or not. For operators."""

    reason: str = "operator"


class Hold(Request, frozen=True, tag="hold"):
    mode: HoldMode
    seconds: float | None = None
    pin_mhz: int | None = None
    reason: str = ""


class ReleaseHold(Request, frozen=True, tag="release_hold"):
    pass


AnyRequest = (
    GetStatus
    | Acquire
    | Heartbeat
    | Release
    | SetPowerLimit
    | LockClocks
    | ResetClocks
    | ResetPowerLimit
    | RestoreAll
    | Hold
    | ReleaseHold
)


class Actuation(msgspec.Struct, frozen=True):
    """One action on one device: what was asked, what was read back, what became of it."""

    uuid: str
    action: str
    outcome: Outcome
    reason: str = ""
    asked: float | None = None
    read_back: float | None = None
    latency_s: float = 0.0


class ReadingStatus(msgspec.Struct, frozen=True):
    """The part of a reading worth showing; `None` where the device does not report it."""

    power_w: float | None = None
    energy_j: float | None = None
    sm_clock_mhz: float | None = None
    temperature_c: float | None = None
    utilisation: float | None = None
    power_limit_w: float | None = None
    clock_reasons: tuple[str, ...] = ()


class DeviceStatus(msgspec.Struct, frozen=True):
    """A device as the actuator knows it. `reading` is `None` with a `reading_error` when it cannot be read."""

    uuid: str
    name: str
    capabilities: tuple[str, ...]
    notes: tuple[str, ...]
    limit_w: float | None = None
    prior_limit_w: float | None = None
    locked_mhz: tuple[int, int] | None = None
    contested_for_s: float | None = None
    restore_pending: bool = False
    method: str = "measured"
    reading: ReadingStatus | None = None
    reading_error: str | None = None


class HoldStatus(msgspec.Struct, frozen=True):
    mode: HoldMode
    reason: str
    remaining_s: float | None
    pin_mhz: int | None = None


class LeaseStatus(msgspec.Struct, frozen=True):
    """`holder` is what the controller calls itself: its governor and policy revision."""

    holder: str
    ttl_s: float
    remaining_s: float
    watch_pids: tuple[int, ...] = ()


class Status(msgspec.Struct, frozen=True):
    """The actuator at a moment. `alarms` holds the latest, newest last."""

    devices: tuple[DeviceStatus, ...]
    lease: LeaseStatus | None
    hold: HoldStatus | None
    alarms: tuple[str, ...]
    restores: int
    pid: int


class Reply(msgspec.Struct, frozen=True, tag_field="kind"):
    """Base of all replies."""


class StatusReply(Reply, frozen=True, tag="status"):
    status: Status


class LeaseReply(Reply, frozen=True, tag="lease"):
    lease_id: str
    ttl_s: float


class ActuationReply(Reply, frozen=True, tag="actuations"):
    actuations: tuple[Actuation, ...]


class DoneReply(Reply, frozen=True, tag="done"):
    pass


class ErrorReply(Reply, frozen=True, tag="error"):
    """`lease`: the caller's lease has ended or another has it."""

    error: str
    lease: bool = False


AnyReply = StatusReply | LeaseReply | ActuationReply | DoneReply | ErrorReply

_request_decoder: msgspec.msgpack.Decoder[AnyRequest] = msgspec.msgpack.Decoder(AnyRequest)
_reply_decoder: msgspec.msgpack.Decoder[AnyReply] = msgspec.msgpack.Decoder(AnyReply)


class FrameError(Exception):
    """The peer sent something that is not a frame of ours."""


def decode_request(frame: bytes) -> AnyRequest:
    """Raises `FrameError` for anything that is not a known verb with the right types."""
    try:
        return _request_decoder.decode(frame)
    except msgspec.MsgspecError as error:
        raise FrameError(str(error)) from error


def decode_reply(frame: bytes) -> AnyReply:
    try:
        return _reply_decoder.decode(frame)
    except msgspec.MsgspecError as error:
        raise FrameError(str(error)) from error


def encode_frame(message: msgspec.Struct) -> bytes:
    body = msgspec.msgpack.encode(message)
    return _HEADER.pack(len(body)) + body


def take_frame(buffer: bytearray) -> bytes | None:
    """Remove the first whole frame from a buffer; `None` while it is incomplete."""
    if len(buffer) < _HEADER.size:
        return None
    (length,) = _HEADER.unpack_from(buffer)
    if length > MAX_FRAME_BYTES:
        raise FrameError(f"frame of {length} bytes is larger than {MAX_FRAME_BYTES}")
    if len(buffer) < _HEADER.size + length:
        return None
    frame = bytes(buffer[_HEADER.size : _HEADER.size + length])
    del buffer[: _HEADER.size + length]
    return frame


def receive_frame(connection: socket.socket) -> bytes:
    """Read one frame from a blocking socket. Raises `ConnectionError` when the peer is gone."""
    buffer = bytearray()
    while True:
        frame = take_frame(buffer)
        if frame is not None:
            return frame
        chunk = connection.recv(65536)
        if not chunk:
            raise ConnectionError("the connection was closed")
        buffer += chunk
