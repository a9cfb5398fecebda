"""`powerd`: the only process with privileges. Serves the actuator's verbs on a Unix socket and restores on its way out.

    python -m power.powerd --socket /run/gridserve/powerd.sock --state-dir /var/lib/gridserve

One thread, one loop: requests, deaths of those who hold the lease (pidfd), signals, and a tick for expiry and
verification. Without privileges it serves status only and says how to grant them.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import grp
import os
import selectors
import signal
import socket
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from power.actuator import Actuator, LeaseError
from power.device import DeviceError, PowerDevice
from power.messages import (
    Acquire,
    ActuationReply,
    AnyReply,
    AnyRequest,
    DoneReply,
    ErrorReply,
    FrameError,
    GetStatus,
    Heartbeat,
    Hold,
    LeaseReply,
    LockClocks,
    Release,
    ReleaseHold,
    ResetClocks,
    ResetPowerLimit,
    RestoreAll,
    SetPowerLimit,
    StatusReply,
    decode_request,
    encode_frame,
    take_frame,
)
from power.state_file import StateFile

DEFAULT_SOCKET = Path("/run/gridserve/powerd.sock")
DEFAULT_STATE_DIR = Path("/var/lib/gridserve")
TICK_S = 0.1
MAX_CLIENTS = 32
_PEER = struct.Struct("3i")
_PR_SET_PDEATHSIG = 1
_SO_PEERGROUPS = 59
_MAX_GROUPS = 1024


class Peers:
    """Who may talk to the daemon: root, its own user, and members of the named users and groups."""

    def __init__(self, uids: frozenset[int], gids: frozenset[int]) -> None:
        self._uids = uids | {0, os.geteuid()}
        self._gids = gids

    def credentials(self, connection: socket.socket) -> tuple[int, int, frozenset[int]]:
        """`(pid, uid, groups)` of the peer, from the kernel; supplementary groups included."""
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        pid, uid, gid = _PEER.unpack(raw)
        try:
            groups = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * _MAX_GROUPS)
        except OSError:
            groups = b""
        return pid, uid, frozenset({gid, *struct.unpack(f"{len(groups) // 4}I", groups)})

    def allowed(self, uid: int, groups: frozenset[int]) -> bool:
        return uid in self._uids or bool(groups & self._gids)


class Client:
    """One connection."""

    def __init__(self, connection: socket.socket, pid: int, uid: int) -> None:
        self.connection = connection
        self.pid = pid
        self.uid = uid
        self.buffer = bytearray()


class PowerDaemon:
    """The loop. `serve` returns after SIGTERM, SIGINT or `stop`, with everything restored."""

    def __init__(self, actuator: Actuator, socket_path: Path, *, peers: Peers, group: str | None = None) -> None:
        self._actuator = actuator
        self._peers = peers
        self._path = socket_path
        self._selector = selectors.DefaultSelector()
        self._watched: dict[int, int] = {}
        self._clients = 0
        self._stopping = False
        self._listener = self._listen(group)
        self._wake_in, self._wake_out = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector.register(self._listener, selectors.EVENT_READ, "accept")
        self._selector.register(self._wake_in, selectors.EVENT_READ, "wake")

    def handle_signals(self) -> None:
        """SIGTERM and SIGINT end the loop (main thread only)."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.stop())

    def stop(self) -> None:
        """Ask the loop to end; safe from signal handlers and other threads."""
        self._stopping = True
        os.write(self._wake_out, b"x")

    def serve(self) -> None:
        notify("READY=1")
        try:
            while not self._stopping:
                for key, _ in self._selector.select(TICK_S):
                    self._dispatch(key)
                self._actuator.tick()
                self._follow_lease()
                notify("WATCHDOG=1")
        finally:
            notify("STOPPING=1")
            self._actuator.close()
            self._close()

    def _listen(self, group: str | None) -> socket.socket:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o117)
        try:
            listener.bind(str(self._path))
        finally:
            os.umask(before)
        os.chmod(self._path, 0o660)
        if group is not None:
            os.chown(self._path, -1, grp.getgrnam(group).gr_gid)
        listener.listen(8)
        listener.setblocking(False)
        return listener

    def _dispatch(self, key: selectors.SelectorKey) -> None:
        if key.data == "accept":
            self._accept()
        elif key.data == "wake":
            os.read(self._wake_in, 64)
        elif isinstance(key.data, Client):
            self._receive(key.data)
        else:
            self._actuator.end_lease(f"process {key.data} of the lease has ended")
            self._unwatch(key.fd)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        pid, uid, groups = self._peers.credentials(connection)
        if not self._peers.allowed(uid, groups) or self._clients >= MAX_CLIENTS:
            why = "too many clients" if self._peers.allowed(uid, groups) else f"user {uid} may not control power here"
            connection.sendall(encode_frame(ErrorReply(why)))
            connection.close()
            return
        connection.setblocking(False)
        self._clients += 1
        self._selector.register(connection, selectors.EVENT_READ, Client(connection, pid, uid))

    def _receive(self, client: Client) -> None:
        try:
            chunk = client.connection.recv(65536)
            if not chunk:
                raise ConnectionError
            client.buffer += chunk
            while (frame := take_frame(client.buffer)) is not None:
                client.connection.sendall(encode_frame(self._answer(client, frame)))
        except BlockingIOError:
            self._drop(client)
        except FrameError as error:
            self._say(client, ErrorReply(f"not understood: {error}"))
            self._drop(client)
        except OSError:
            self._drop(client)

    def _say(self, client: Client, reply: AnyReply) -> None:
        try:
            client.connection.sendall(encode_frame(reply))
        except OSError:
            return

    def _answer(self, client: Client, frame: bytes) -> AnyReply:
        try:
            return self._perform(client, decode_request(frame))
        except LeaseError as error:
            return ErrorReply(str(error), lease=True)
        except (ValueError, DeviceError) as error:
            return ErrorReply(str(error))

    def _perform(self, client: Client, request: AnyRequest) -> AnyReply:
        actuator = self._actuator
        match request:
            case GetStatus():
                return StatusReply(actuator.status())
            case Acquire(holder, ttl_s, watch_pids):
                own = (client.pid,) if client.pid > 0 else ()  # 0: the caller lives in another PID namespace
                watched = (*own, *self._checked_pids(client, watch_pids))
                lease_id, granted_s = actuator.acquire(holder, ttl_s, watched)
                self._follow_lease()
                return LeaseReply(lease_id, granted_s)
            case Heartbeat(lease_id):
                actuator.heartbeat(lease_id)
                return DoneReply()
            case Release(lease_id):
                actuator.release(lease_id)
                return DoneReply()
            case SetPowerLimit(lease_id, uuid, watts):
                return ActuationReply((actuator.set_power_limit(lease_id, uuid, watts),))
            case LockClocks(lease_id, uuid, min_mhz, max_mhz):
                return ActuationReply((actuator.lock_clocks(lease_id, uuid, min_mhz, max_mhz),))
            case ResetClocks(lease_id, uuid):
                return ActuationReply((actuator.reset_clocks(lease_id, uuid),))
            case ResetPowerLimit(lease_id, uuid):
                return ActuationReply((actuator.reset_power_limit(lease_id, uuid),))
            case RestoreAll(reason):
                return ActuationReply(tuple(actuator.restore_all(f"{reason} (user {client.uid})")))
            case Hold(mode, seconds, pin_mhz, reason):
                return ActuationReply(tuple(actuator.hold(mode, seconds, pin_mhz, reason)))
            case ReleaseHold():
                actuator.release_hold()
                return DoneReply()

    def _checked_pids(self, client: Client, pids: tuple[int, ...]) -> tuple[int, ...]:
        """A caller may tie its lease to processes of its own user only."""
        for pid in pids:
            try:
                owner = os.stat(f"/proc/{pid}").st_uid
            except OSError as error:
                raise ValueError(f"process {pid} does not exist") from error
            if client.uid not in (0, owner):
                raise ValueError(f"process {pid} belongs to another user")
        return pids

    def _follow_lease(self) -> None:
        """Watch the processes of the present lease and nobody else."""
        wanted = set(self._actuator.watched_pids)
        for handle, pid in list(self._watched.items()):
            if pid not in wanted:
                self._unwatch(handle)
        for pid in wanted - set(self._watched.values()):
            try:
                handle = os.pidfd_open(pid)
            except OSError:
                self._actuator.end_lease(f"process {pid} of the lease has ended")
                return
            self._watched[handle] = pid
            self._selector.register(handle, selectors.EVENT_READ, pid)

    def _unwatch(self, handle: int) -> None:
        if self._watched.pop(handle, None) is not None:
            self._selector.unregister(handle)
            os.close(handle)

    def _drop(self, client: Client) -> None:
        self._selector.unregister(client.connection)
        client.connection.close()
        self._clients -= 1

    def _close(self) -> None:
        for handle in list(self._watched):
            self._unwatch(handle)
        for key in list(self._selector.get_map().values()):
            if isinstance(key.data, Client):
                key.data.connection.close()
        self._selector.close()
        self._listener.close()
        os.close(self._wake_in)
        os.close(self._wake_out)
        self._path.unlink(missing_ok=True)


def notify(message: str) -> None:
    """Tell systemd, where it listens (sd_notify)."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        try:
            channel.sendto(message.encode(), socket.MSG_DONTWAIT, address)
        except OSError:
            return


def claim(state_dir: Path) -> IO[str]:
    """Make sure that only one daemon works on a state directory. Raises `ValueError` naming the other."""
    state_dir.mkdir(parents=True, exist_ok=True)
    file = (state_dir / "powerd.lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        other = file.read().strip() or "unknown"
        file.close()
        raise ValueError(f"another powerd (process {other}) works on {state_dir}; stop it or use another") from error
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def open_devices(simulate: str | None = None) -> list[PowerDevice]:
    """Every NVIDIA GPU of the machine, probed for control. A GPU that cannot be opened is told and left out.

    `simulate`: `PROFILE@FOLDER`, a simulated GPU instead; no real one is then looked at. Raises `ValueError`.
    """
    if simulate is not None:
        from power.model_shape import model_shape
        from power.open import open_devices as open_named

        # Nothing runs in this process: the model's shape does not matter, only the settings are shared.
        return open_named(f"simulated:{simulate}", model_shape("llama-3.1-8b"))
    from power.nvml import NvmlDevice, visible_uuids

    devices: list[PowerDevice] = []
    for uuid in visible_uuids({}):
        try:
            devices.append(NvmlDevice(uuid, control=True))
        except DeviceError as error:
            log(f"{uuid}: {error}")
    return devices


def log(text: str) -> None:
    print(f"powerd: {text}", file=sys.stderr, flush=True)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="powerd", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--socket", type=Path, default=DEFAULT_SOCKET)
    parser.add_argument("--state-dir", type=Path, default=DEFAULT_STATE_DIR)
    parser.add_argument("--group", help="group that owns the socket")
    parser.add_argument("--allow-uid", type=int, action="append", default=[], help="user that may connect")
    parser.add_argument("--allow-gid", type=int, action="append", default=[], help="group that may connect")
    parser.add_argument("--max-sets-per-s", type=int, default=10, help="changes per second and device")
    parser.add_argument("--die-with-parent", action="store_true", help="restore and end when the parent dies")
    parser.add_argument("--simulate", metavar="PROFILE@FOLDER", help="serve a simulated GPU; real ones stay untouched")
    parser.add_argument("--restore-only", action="store_true", help="undo what the state file tells, then end")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    arguments = build_parser().parse_args(argv)
    try:
        lock = claim(arguments.state_dir)
        devices = open_devices(arguments.simulate)
    except (ValueError, DeviceError, OSError) as error:
        log(str(error))
        return 1
    actuator = Actuator(devices, StateFile(arguments.state_dir), max_sets_per_s=arguments.max_sets_per_s, on_alarm=log)
    if arguments.die_with_parent:
        die_with_parent()
    try:
        actuator.start()
        if arguments.restore_only:
            return int(actuator.owed)
        gids = frozenset(arguments.allow_gid)
        if arguments.group is not None:
            gids |= {grp.getgrnam(arguments.group).gr_gid}
        peers = Peers(frozenset(arguments.allow_uid), gids)
        daemon = PowerDaemon(actuator, arguments.socket, peers=peers, group=arguments.group)
        daemon.handle_signals()
        for device in devices:
            log(f"{device.info.name}: {', '.join(sorted(device.info.capabilities))} {'; '.join(device.info.notes)}")
        daemon.serve()
    finally:
        for device in devices:
            device.close()
        lock.close()
    return 0


def die_with_parent() -> None:
    """SIGTERM when the parent ends, also if it ended just now."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
