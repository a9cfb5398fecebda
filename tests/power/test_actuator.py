"""The actuator: leases, clamps, rate limit, holds, contests, and that everything is always undone."""

import os
import time

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from power.actuator import Actuator, LeaseError
from power.controlled import CONTESTED_S
from power.fake_nvml import FakeNvml, Faults
from power.messages import HoldMode, Outcome
from power.nvml import NvmlDevice
from power.simulated import SimulatedDevice
from power.state_file import State, StateFile, boot_id
from power.twin import decode_work


@pytest.fixture
def state_file(tmp_path):
    return StateFile(tmp_path / "state")


@pytest.fixture
def rig(simulated, state_file, clock):
    """An actuator over a simulated device on a virtual clock."""
    actuator = Actuator([simulated], state_file, clock=clock)
    actuator.start()
    return actuator


def at_defaults(device):
    state = device.board.state
    return state.lock_max_mhz is None and state.limit_w == device.info.limits.default_w


def test_settings_end_with_the_lease(rig, simulated, clock, state_file):
    uuid = simulated.info.uuid
    lease, ttl = rig.acquire("test", 10.0)
    assert rig.lock_clocks(lease, uuid, 1005, 1005).outcome is Outcome.APPLIED
    assert rig.set_power_limit(lease, uuid, 400.0).outcome is Outcome.APPLIED
    clock.sleep(ttl - 0.1)
    rig.heartbeat(lease)
    clock.sleep(ttl - 0.1)
    rig.tick()
    assert not at_defaults(simulated)
    clock.sleep(0.2)
    rig.tick()
    assert at_defaults(simulated)
    assert not state_file.path.exists()
    with pytest.raises(LeaseError):
        rig.heartbeat(lease)


def test_one_lease_at_a_time(rig):
    rig.acquire("first")
    with pytest.raises(LeaseError, match="first holds"):
        rig.acquire("second")


def test_values_are_clamped_and_snapped(rig, simulated):
    uuid = simulated.info.uuid
    lease, _ = rig.acquire("test")
    low = rig.set_power_limit(lease, uuid, 10.0)
    assert (low.outcome, low.read_back) == (Outcome.CLAMPED, 200.0)
    high = rig.set_power_limit(lease, uuid, 9000.0)
    assert (high.outcome, high.read_back) == (Outcome.CLAMPED, 700.0)
    assert rig.set_power_limit(lease, uuid, float("nan")).outcome is Outcome.REFUSED
    assert rig.lock_clocks(lease, uuid, 1, 10_000).outcome is Outcome.CLAMPED
    assert simulated.board.state.lock_max_mhz == 1980
    with pytest.raises(ValueError, match="no device"):
        rig.lock_clocks(lease, "GPU-absent", 1005, 1005)


def test_changes_are_rate_limited_and_resets_are_not(rig, simulated, clock):
    uuid = simulated.info.uuid
    lease, _ = rig.acquire("test")
    outcomes = [rig.lock_clocks(lease, uuid, 1005, 1005).outcome for _ in range(15)]
    assert outcomes.count(Outcome.RATE_LIMITED) == 5
    assert rig.reset_clocks(lease, uuid).outcome is Outcome.APPLIED
    clock.sleep(1.01)
    assert rig.lock_clocks(lease, uuid, 1005, 1005).outcome is Outcome.APPLIED


def test_the_state_is_on_disk_before_the_first_set(rig, simulated, state_file, monkeypatch):
    lease, _ = rig.acquire("test")
    seen = []
    original = simulated.lock_clocks

    def watched(low, high):
        seen.append(msgspec.json.decode(state_file.path.read_bytes(), type=State))
        return original(low, high)

    monkeypatch.setattr(simulated, "lock_clocks", watched)
    rig.lock_clocks(lease, simulated.info.uuid, 1005, 1005)
    assert seen[0].touched[0].clocks_locked


def test_a_stale_state_file_is_restored_at_start(simulated, state_file, clock):
    first = Actuator([simulated], state_file, clock=clock)
    first.start()
    simulated.board.set_limit(650.0)
    lease, _ = first.acquire("test")
    first.lock_clocks(lease, simulated.info.uuid, 1005, 1005)
    first.set_power_limit(lease, simulated.info.uuid, 300.0)
    second = Actuator([simulated], state_file, clock=clock)
    second.start()
    assert simulated.board.state.lock_max_mhz is None
    assert simulated.board.state.limit_w == 650.0, "the limit as it was found, not the default"
    assert not state_file.path.exists()


def test_a_device_that_is_away_is_restored_when_it_is_back(simulated, state_file, clock):
    first = Actuator([simulated], state_file, clock=clock)
    lease, _ = first.acquire("test")
    first.lock_clocks(lease, simulated.info.uuid, 1005, 1005)
    without = Actuator([], state_file, clock=clock)
    without.start()
    without.close()
    assert any("not here" in alarm for alarm in without.status().alarms)
    assert state_file.path.exists()
    Actuator([simulated], state_file, clock=clock).start()
    assert at_defaults(simulated)
    assert not state_file.path.exists()


def test_all_devices_are_restored_before_the_disk_is_waited_for(twin, state_file, clock, monkeypatch):
    devices = [SimulatedDevice(twin, ordinal=ordinal, clock=clock) for ordinal in range(2)]
    actuator = Actuator(devices, state_file, clock=clock)
    lease, _ = actuator.acquire("test")
    for device in devices:
        actuator.lock_clocks(lease, device.info.uuid, 1005, 1005)
        actuator.set_power_limit(lease, device.info.uuid, 400.0)
    seen = []
    monkeypatch.setattr(state_file, "remove", lambda: seen.append([at_defaults(device) for device in devices]))
    monkeypatch.setattr(state_file, "save", lambda state: seen.append([at_defaults(device) for device in devices]))
    actuator.release(lease)
    assert seen == [[True, True]]


def test_after_a_reboot_nothing_is_set(simulated, state_file, clock):
    first = Actuator([simulated], state_file, clock=clock)
    first.start()
    lease, _ = first.acquire("test")
    first.set_power_limit(lease, simulated.info.uuid, 300.0)
    saved = msgspec.json.decode(state_file.path.read_bytes(), type=State)
    assert saved.boot_id == boot_id()
    saved.boot_id = "another"
    state_file.save(saved)
    simulated.board.set_limit(555.0)
    Actuator([simulated], state_file, clock=clock).start()
    assert simulated.board.state.limit_w == 555.0


def test_an_unreadable_state_file_is_kept_aside(simulated, state_file, clock):
    state_file.directory.mkdir(parents=True)
    state_file.path.write_text("{torn")
    actuator = Actuator([simulated], state_file, clock=clock)
    actuator.start()
    assert any("unreadable" in alarm for alarm in actuator.status().alarms)
    assert len(list(state_file.directory.glob("*.unreadable-*"))) == 1


def test_panic_restores_and_refuses_until_released(rig, simulated, clock):
    uuid = simulated.info.uuid
    lease, _ = rig.acquire("test")
    rig.lock_clocks(lease, uuid, 1005, 1005)
    rig.hold(HoldMode.DEFAULTS, None, reason="panic")
    assert at_defaults(simulated)
    assert rig.lock_clocks(lease, uuid, 1005, 1005).outcome is Outcome.HELD
    rig.release_hold()
    assert rig.lock_clocks(lease, uuid, 1005, 1005).outcome is Outcome.APPLIED


def test_a_pin_outlives_the_lease_and_expires(rig, simulated, clock):
    lease, _ = rig.acquire("test")
    rig.set_power_limit(lease, simulated.info.uuid, 300.0)
    rig.hold(HoldMode.PIN, 60.0, 1200)
    rig.release(lease)
    state = simulated.board.state
    assert (state.lock_max_mhz, state.limit_w) == (1200, 700.0)
    clock.sleep(61.0)
    rig.tick()
    assert at_defaults(simulated)


def test_a_freeze_keeps_what_is_set_but_not_beyond_the_lease(rig, simulated, clock):
    lease, _ = rig.acquire("test", 5.0)
    rig.lock_clocks(lease, simulated.info.uuid, 1005, 1005)
    rig.hold(HoldMode.FREEZE, 100.0)
    assert rig.reset_clocks(lease, simulated.info.uuid).outcome is Outcome.HELD
    assert simulated.board.state.lock_max_mhz == 1005
    clock.sleep(6.0)
    rig.tick()
    assert at_defaults(simulated)


def test_holds_need_an_expiry_and_survive_a_restart_as_defaults(rig, simulated, state_file, clock):
    with pytest.raises(ValueError, match="expiry"):
        rig.hold(HoldMode.FREEZE, None)
    with pytest.raises(ValueError, match="pin_mhz"):
        rig.hold(HoldMode.PIN, 60.0)
    with pytest.raises(ValueError, match="at most"):
        rig.hold(HoldMode.FREEZE, 1e9)
    rig.hold(HoldMode.PIN, 60.0, 1200)
    second = Actuator([simulated], state_file, clock=clock)
    second.start()
    assert at_defaults(simulated)
    assert second.status().hold.mode is HoldMode.DEFAULTS


def test_a_restore_that_fails_is_retried_and_alarmed(fake, state_file, clock):
    device = NvmlDevice(fake.uuids[0], control=True)
    actuator = Actuator([device], state_file, clock=clock)
    actuator.start()
    lease, _ = actuator.acquire("test")
    actuator.lock_clocks(lease, device.info.uuid, 1005, 1005)
    fake.set_faults(Faults(no_permission=True))
    actuator.release(lease)
    assert actuator.status().devices[0].restore_pending
    assert state_file.path.exists()
    fake.set_faults(Faults())
    clock.sleep(2.0)
    actuator.tick()
    assert fake.left_behind() == []
    assert not state_file.path.exists()
    device.close()


def test_another_tool_is_not_fought(fake, state_file, clock):
    device = NvmlDevice(fake.uuids[0], control=True)
    actuator = Actuator([device], state_file, clock=clock)
    actuator.start()
    uuid = device.info.uuid
    lease, _ = actuator.acquire("test", 60.0)
    actuator.set_power_limit(lease, uuid, 400.0)
    for _ in range(2):
        fake.other_tool_sets(limit_w=600.0)
        clock.sleep(1.1)
        actuator.tick()
    assert actuator.set_power_limit(lease, uuid, 400.0).outcome is Outcome.CONTESTED
    assert any("another tool" in alarm for alarm in actuator.status().alarms)
    actuator.release(lease)
    assert device.read().power_limit_w == 600.0, "the other tool's limit stays"
    clock.sleep(CONTESTED_S)
    again, _ = actuator.acquire("test")
    assert actuator.set_power_limit(again, uuid, 400.0).outcome is Outcome.APPLIED
    actuator.close()
    device.close()


def test_one_surprise_is_corrected(fake, state_file, clock):
    device = NvmlDevice(fake.uuids[0], control=True)
    actuator = Actuator([device], state_file, clock=clock)
    lease, _ = actuator.acquire("test", 60.0)
    actuator.set_power_limit(lease, device.info.uuid, 400.0)
    fake.other_tool_sets(limit_w=600.0)
    for _ in range(3):
        clock.sleep(1.1)
        actuator.tick()
    assert device.read().power_limit_w == 400.0
    actuator.close()
    device.close()


def test_an_ignored_set_is_told(fake, state_file):
    device = NvmlDevice(fake.uuids[0], control=True)
    actuator = Actuator([device], state_file)
    lease, _ = actuator.acquire("test")
    fake.set_faults(Faults(ignore_sets=True))
    fake.set_load(fake.twin.demand(decode_work(64, 500)))
    assert actuator.set_power_limit(lease, device.info.uuid, 400.0).outcome is Outcome.IGNORED
    assert actuator.lock_clocks(lease, device.info.uuid, 1005, 1005).outcome is Outcome.IGNORED
    device.close()


def test_without_permission_it_only_observes(fake, state_file):
    fake.set_faults(Faults(no_permission=True))
    device = NvmlDevice(fake.uuids[0], control=True)
    actuator = Actuator([device], state_file)
    lease, _ = actuator.acquire("test")
    answer = actuator.lock_clocks(lease, device.info.uuid, 1005, 1005)
    assert answer.outcome is Outcome.REFUSED
    assert "CAP_SYS_ADMIN" in answer.reason
    device.close()


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "acquire",
                "lock",
                "limit",
                "reset",
                "release",
                "beat",
                "hold",
                "pin",
                "unhold",
                "restart",
                "other",
                "tick",
            ]
        ),
        st.floats(0.0, 4.0),
        st.floats(-100.0, 3000.0),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(ACTIONS)
def test_always_restored_in_the_end(twin, tmp_path_factory, actions):
    directory = tmp_path_factory.mktemp("walk")
    now = [0.0]
    device = SimulatedDevice(twin, clock=lambda: now[0])
    limits, uuid = device.info.limits, device.info.uuid

    def fresh():
        actuator = Actuator([device], StateFile(directory), clock=lambda: now[0])
        actuator.start()
        return actuator

    actuator, lease = fresh(), ""
    for action, seconds, value in actions:
        now[0] += seconds
        try:
            if action == "acquire":
                lease, _ = actuator.acquire("walk", 3.0)
            elif action == "lock":
                actuator.lock_clocks(lease, uuid, round(value), round(value))
            elif action == "limit":
                actuator.set_power_limit(lease, uuid, value)
            elif action == "reset":
                actuator.reset_clocks(lease, uuid)
            elif action == "release":
                actuator.release(lease)
            elif action == "beat":
                actuator.heartbeat(lease)
            elif action == "hold":
                actuator.hold(HoldMode.DEFAULTS, 5.0)
            elif action == "pin":
                actuator.hold(HoldMode.PIN, 5.0, 1200)
            elif action == "unhold":
                actuator.release_hold()
            elif action == "restart":
                actuator = fresh()
            elif action == "other":
                device.board.set_lock(900, 900)
            else:
                actuator.tick()
        except LeaseError:
            continue
        state = device.board.state
        assert limits.min_w <= state.limit_w <= limits.max_w
        assert state.lock_max_mhz is None or state.lock_max_mhz in device.info.clocks_mhz
    now[0] += 4.0
    actuator.tick()
    now[0] += 4.0
    actuator.tick()
    assert device.board.state.limit_w == limits.default_w
    if not any(action == "other" for action, _, _ in actions):
        assert device.board.state.lock_max_mhz is None


def test_a_slow_device_delays_and_does_not_break(twin, tmp_path):
    fake = FakeNvml(twin, tmp_path / "slow")
    with fake.installed():
        device = NvmlDevice(fake.uuids[0], control=True)
        actuator = Actuator([device], StateFile(tmp_path / "state"))
        lease, _ = actuator.acquire("test")
        fake.set_faults(Faults(slow_s=0.05))
        before = time.monotonic()
        assert actuator.set_power_limit(lease, device.info.uuid, 400.0).latency_s >= 0.05
        assert time.monotonic() - before >= 0.05
        fake.set_faults(Faults())
        actuator.close()
        assert fake.left_behind() == []
        device.close()


def test_status_tells_lease_devices_and_pid(rig, simulated):
    rig.acquire("test", 10.0, (1,))
    status = rig.status()
    assert status.lease.holder == "test"
    assert 0 < status.lease.remaining_s <= 10.0
    assert status.devices[0].uuid == simulated.info.uuid
    assert status.pid == os.getpid()
