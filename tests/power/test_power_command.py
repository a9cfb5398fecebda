"""`gridserve power` as a person uses it."""

import json
import threading

import pytest

from power.actuator import Actuator
from power.nvml import NvmlDevice
from power.plane import PowerPlane
from power.powerd import Peers, PowerDaemon
from power.simulated import SimulatedDevice
from power.state_file import StateFile
from serving.cli import main


@pytest.fixture
def daemon(fake, tmp_path):
    device = NvmlDevice(fake.uuids[0], control=True)
    actuator = Actuator([device], StateFile(tmp_path / "state"))
    served = PowerDaemon(actuator, tmp_path / "powerd.sock", peers=Peers(frozenset(), frozenset()))
    thread = threading.Thread(target=served.serve)
    thread.start()
    yield tmp_path / "powerd.sock"
    served.stop()
    thread.join(10)
    device.close()


def power(*arguments):
    return main(["power", *map(str, arguments)])


def test_status_of_a_daemon(daemon, fake, capsys):
    assert power("status", "--socket", daemon) == 0
    shown = capsys.readouterr().out
    for word in ("lease: none", "hold: none", fake.uuids[0], "clocks", "345 MHz", "700 W limit"):
        assert word in shown
    assert power("status", "--socket", daemon, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["powerd"]["devices"][0]["reading"]["power_limit_w"] == 700.0


def test_status_without_a_daemon_looks_itself_and_says_so(tmp_path, capsys):
    assert power("status", "--socket", tmp_path / "absent", "--device", "simulated:h100-sxm") == 0
    shown = capsys.readouterr().out
    assert "no powerd at" in shown
    assert "(simulated)" in shown


def test_status_shows_the_governor_that_holds_the_lease(twin, tmp_path, capsys):
    from power.controller import Mode
    from power.governors import StaticGovernor

    path = tmp_path / "plane.sock"
    plane = PowerPlane(
        [SimulatedDevice(twin)],
        shape=twin.shape,
        governor=StaticGovernor(1005),
        mode=Mode.ENFORCE,
        policy_revision="3f9c0a",
        socket_path=path,
    )
    plane.start()
    plane.controller.tick()
    try:
        assert power("status", "--socket", path) == 0
        shown = capsys.readouterr().out
        assert "lease: governor static 3f9c0a" in shown
        assert "locked: 345-1005 MHz" in shown
        assert power("hold", "--socket", path, "--reason", "test") == 0
        assert power("status", "--socket", path) == 0
        assert "defaults, until released: test" in capsys.readouterr().out
    finally:
        plane.stop()
    assert not path.exists()


def test_hold_release_and_restore(daemon, fake, capsys):
    assert power("hold", "--pin", 1200, "--minutes", 5, "--socket", daemon) == 0
    assert fake.left_behind() == ["clocks locked to 1200-1200 MHz"]
    assert power("release", "--socket", daemon) == 0
    assert fake.left_behind() == []
    assert power("hold", "--pin", 1200, "--minutes", 5, "--socket", daemon, "--json") == 0
    assert power("restore", "--socket", daemon) == 0
    assert fake.left_behind() == []
    capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("hold", "--pin", 1200), "expiry"),
        (("hold", "--pin", 1200, "--freeze", "--minutes", 1), "one of"),
        (("hold", "--freeze"), "expiry"),
    ],
)
def test_mistakes_are_one_line(daemon, capsys, arguments, word):
    assert power(*arguments, "--socket", daemon) == 1
    assert word in capsys.readouterr().err


def test_no_daemon_is_one_line(tmp_path, capsys):
    assert power("release", "--socket", tmp_path / "absent") == 1
    assert "systemctl start" in capsys.readouterr().err


def test_restore_without_a_daemon_uses_its_state_file(fake, tmp_path, capsys):
    device = NvmlDevice(fake.uuids[0], control=True)
    actuator = Actuator([device], StateFile(tmp_path / "state"))
    lease, _ = actuator.acquire("crashed")
    actuator.lock_clocks(lease, device.info.uuid, 1005, 1005)
    assert fake.left_behind()
    options = ("--socket", tmp_path / "absent", "--state-dir", tmp_path / "state")
    assert power("restore", *options, "--json") == 0
    assert json.loads(capsys.readouterr().out)["actions"][0]["action"] == "reset_clocks"
    assert fake.left_behind() == []
    fake.other_tool_sets(lock_mhz=900, index=1)
    assert power("restore", *options, "--force") == 0
    assert fake.left_behind(1) == []
    device.close()


def test_calibrate_writes_a_profile_that_can_be_used(tmp_path, capsys):
    out = tmp_path / "mine.json"
    assert power("calibrate", "--device", "simulated:h100-sxm", "--out", out, "--seconds", "1", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["points"]) == 6
    assert power("status", "--socket", tmp_path / "absent", "--device", f"simulated:{out}") == 0
    assert "SIM-mine" in capsys.readouterr().out
    assert power("calibrate", "--device", "abacus", "--out", out) == 1
