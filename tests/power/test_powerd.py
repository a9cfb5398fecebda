"""The daemon on its socket: typed verbs only, known peers only, and restored when its clients die."""

import os
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from power.actuator import Actuator, LeaseError
from power.client import ActuatorUnavailableError, PowerdClient
from power.messages import (
    ErrorReply,
    HoldMode,
    Outcome,
    decode_reply,
    encode_frame,
    receive_frame,
)
from power.nvml import NvmlDevice
from power.powerd import Peers, PowerDaemon, claim
from power.state_file import StateFile

ROOT = Path(__file__).resolve().parents[2]


def eventually(condition, patience_s=10.0):
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@pytest.fixture
def daemon(fake, tmp_path):
    """A daemon in a thread, over the first fake GPU."""
    device = NvmlDevice(fake.uuids[0], control=True)
    actuator = Actuator([device], StateFile(tmp_path / "state"))
    actuator.start()
    path = tmp_path / "powerd.sock"
    served = PowerDaemon(actuator, path, peers=Peers(frozenset(), frozenset()))
    thread = threading.Thread(target=served.serve)
    thread.start()
    yield path
    served.stop()
    thread.join(10)
    device.close()


def test_a_client_sets_reads_back_and_releases(daemon, fake):
    client = PowerdClient(daemon)
    client.acquire()
    uuid = fake.uuids[0]
    assert client.lock_clocks(uuid, 1005, 1005).outcome in (Outcome.APPLIED, Outcome.UNCONFIRMED)
    assert client.set_power_limit(uuid, 400.0).read_back == 400.0
    client.heartbeat()
    assert client.status().lease.holder == "controller"
    assert len(fake.left_behind()) == 2
    client.release()
    assert fake.left_behind() == []
    client.close()


def test_the_socket_is_for_owner_and_group_only(daemon):
    assert stat.S_IMODE(os.stat(daemon).st_mode) == 0o660


def test_strangers_are_refused(daemon, monkeypatch):
    monkeypatch.setattr(Peers, "credentials", lambda self, connection: (1, 4242, frozenset({4242})))
    with pytest.raises(ValueError, match="user 4242 may not"):
        PowerdClient(daemon).status()


def test_members_of_the_group_are_let_in(daemon):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(daemon))
        pid, uid, groups = Peers(frozenset(), frozenset()).credentials(connection)
    assert (pid, uid) == (os.getpid(), os.getuid())
    assert set(os.getgroups()) <= groups
    peers = Peers(frozenset(), frozenset({77}))
    assert peers.allowed(4242, frozenset({4242, 77}))
    assert not peers.allowed(4242, frozenset({4242}))


def test_anything_but_a_known_verb_is_refused(daemon, fake):
    for nonsense in (b"\x80\x04\x95", b"\x81\xa4verb\xa6reboot", b"{}"):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(daemon))
            connection.sendall(len(nonsense).to_bytes(4, "big") + nonsense)
            assert "not" in decode_reply(receive_frame(connection)).error
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(daemon))
        connection.sendall((1 << 30).to_bytes(4, "big"))
        assert isinstance(decode_reply(receive_frame(connection)), ErrorReply)
    with pytest.raises(LeaseError):
        PowerdClient(daemon).lock_clocks(fake.uuids[0], 1005, 1005)


def test_a_frame_may_come_in_pieces(daemon):
    from power.messages import GetStatus, StatusReply

    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(daemon))
        for byte in encode_frame(GetStatus()):
            connection.sendall(bytes([byte]))
        assert isinstance(decode_reply(receive_frame(connection)), StatusReply)


def test_a_lease_may_not_be_tied_to_a_foreign_or_absent_process(daemon):
    client = PowerdClient(daemon, watch_pids=(2**22 - 1,))
    with pytest.raises(ValueError, match="does not exist"):
        client.acquire()


def test_the_lease_ends_with_the_process_it_is_tied_to(daemon, fake):
    engine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    client = PowerdClient(daemon, ttl_s=60.0, watch_pids=(engine.pid,))
    client.acquire()
    client.lock_clocks(fake.uuids[0], 1005, 1005)
    assert fake.left_behind()
    engine.kill()
    engine.wait()
    eventually(lambda: not fake.left_behind())
    with pytest.raises(LeaseError):
        client.heartbeat()
    client.close()


def test_operator_verbs(daemon, fake):
    client, operator = PowerdClient(daemon), PowerdClient(daemon)
    client.acquire()
    client.lock_clocks(fake.uuids[0], 1005, 1005)
    operator.hold(HoldMode.DEFAULTS, None, reason="panic")
    assert fake.left_behind() == []
    assert client.lock_clocks(fake.uuids[0], 1005, 1005).outcome is Outcome.HELD
    operator.release_hold()
    client.lock_clocks(fake.uuids[0], 1005, 1005)
    assert operator.restore_all("test")[0].action == "reset_clocks"
    assert fake.left_behind() == []
    operator.close()
    client.close()


def test_no_daemon_says_what_to_do(tmp_path):
    with pytest.raises(ActuatorUnavailableError, match="start it"):
        PowerdClient(tmp_path / "absent.sock").status()


def test_only_one_daemon_for_a_state_directory(tmp_path):
    held = claim(tmp_path)
    with pytest.raises(ValueError, match="another powerd"):
        claim(tmp_path)
    held.close()


def spawn(fake, tmp_path, *more):
    command = [sys.executable, str(ROOT / "scripts" / "power_fake_powerd.py"), str(fake.directory)]
    command += ["--gpus", "2", "--socket", str(tmp_path / "p.sock"), "--state-dir", str(tmp_path / "s"), *more]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def connected(tmp_path):
    client = PowerdClient(tmp_path / "p.sock", ttl_s=30.0)

    def up():
        try:
            client.status()
        except ActuatorUnavailableError:
            return False
        return True

    eventually(up)
    return client


def test_sigterm_restores_and_sigkill_leaves_it_to_restore_only(fake, tmp_path):
    process = spawn(fake, tmp_path)
    client = connected(tmp_path)
    client.acquire()
    client.lock_clocks(fake.uuids[1], 1005, 1005)
    client.set_power_limit(fake.uuids[0], 300.0)
    assert fake.left_behind(0)
    assert fake.left_behind(1)
    process.terminate()
    process.communicate(timeout=20)
    assert process.returncode == 0
    assert fake.left_behind(0) + fake.left_behind(1) == []
    assert not (tmp_path / "p.sock").exists()

    process = spawn(fake, tmp_path)
    client = connected(tmp_path)
    client.acquire()
    client.lock_clocks(fake.uuids[1], 1005, 1005)
    process.kill()
    process.communicate(timeout=20)
    assert fake.left_behind(1)
    once = spawn(fake, tmp_path, "--restore-only")
    once.communicate(timeout=20)
    assert once.returncode == 0
    assert fake.left_behind(1) == []
    client.close()


def test_it_restores_when_its_parent_dies(fake, tmp_path):
    command = [sys.executable, str(ROOT / "scripts" / "power_fake_powerd.py"), str(fake.directory), "--gpus", "2"]
    command += ["--socket", str(tmp_path / "p.sock"), "--state-dir", str(tmp_path / "s"), "--die-with-parent"]
    parent = subprocess.Popen([sys.executable, "-c", f"import subprocess; subprocess.run({command!r})"])
    client = connected(tmp_path)
    client.acquire()
    client.lock_clocks(fake.uuids[0], 1005, 1005)
    assert fake.left_behind()
    parent.kill()
    parent.wait()
    eventually(lambda: not fake.left_behind())
    eventually(lambda: not (tmp_path / "p.sock").exists())
    client.close()
