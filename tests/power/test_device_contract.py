"""One contract for every power device: the real NVML code on the fake library, the simulated device and, where
`GRIDSERVE_TEST_GPU=1`, the card in this machine (read-only unless `GRIDSERVE_TEST_GPU_CONTROL=1`)."""

import os

import pytest

from power.device import Capability
from power.nvml import NvmlDevice, visible_uuids
from power.quantities import Method
from power.simulated import SimulatedDevice
from power.twin import decode_work


@pytest.fixture(params=["nvml-on-fake", "simulated", pytest.param("hardware", marks=pytest.mark.hardware)])
def device(request, twin):
    if request.param == "nvml-on-fake":
        fake = request.getfixturevalue("fake")
        found = NvmlDevice(fake.uuids[0], control=True)
    elif request.param == "simulated":
        found = SimulatedDevice(twin)
    else:
        found = NvmlDevice(visible_uuids()[0], control=os.environ.get("GRIDSERVE_TEST_GPU_CONTROL") == "1")
    yield found
    if found.info.can(Capability.CLOCKS):
        found.reset_clocks()
    if found.info.can(Capability.CAP):
        found.set_power_limit(found.info.limits.default_w)
    found.close()


def needs(device, capability):
    if not device.info.can(capability):
        pytest.skip(f"{device.info.name}: {'; '.join(device.info.notes)}")


def test_identity_and_limits_are_told(device):
    info = device.info
    assert info.uuid
    assert info.can(Capability.READ)
    assert info.limits.min_w <= info.limits.default_w <= info.limits.max_w
    assert list(info.clocks_mhz) == sorted(set(info.clocks_mhz))
    assert info.method in (Method.MEASURED, Method.SIMULATED)


def test_readings_are_in_si_units_and_plausible(device):
    reading = device.read()
    assert 10 < reading.power_w < 2000
    assert 10 < reading.power_average_w < 2000
    assert reading.energy_j >= 0
    assert 100 < reading.sm_clock_mhz < 4000
    assert 0 < reading.temperature_c < 110
    assert 0 <= reading.utilisation <= 1
    assert 50 <= reading.power_limit_w <= 2000
    assert reading.clock_reasons is not None


def test_the_energy_counter_does_not_go_back(device):
    samples = [device.sample().energy_j for _ in range(5)]
    assert samples == sorted(samples)


def test_a_power_limit_is_read_back_and_can_be_undone(device):
    needs(device, Capability.CAP)
    limits = device.info.limits
    wanted = (limits.min_w + limits.max_w) / 2
    assert device.set_power_limit(wanted) == wanted
    assert device.read().power_limit_w == wanted
    assert device.set_power_limit(limits.default_w) == limits.default_w


def test_limits_and_clocks_outside_the_constraints_are_refused(device):
    needs(device, Capability.CAP)
    with pytest.raises(ValueError, match="outside"):
        device.set_power_limit(device.info.limits.max_w + 1)
    with pytest.raises(ValueError, match="supported clocks"):
        device.lock_clocks(1, 2)
    assert device.read().power_limit_w == device.info.limits.default_w


def test_clocks_lock_and_reset(device):
    needs(device, Capability.CLOCKS)
    low = device.info.clocks_mhz[len(device.info.clocks_mhz) // 2]
    after = device.lock_clocks(low, low)
    assert after is None or after <= low + 1
    device.reset_clocks()


def test_a_lower_clock_draws_less_under_load(twin, clock):
    device = SimulatedDevice(twin, clock=clock)
    work = decode_work(64, 500)

    def mean_power():
        before = device.board.state.energy_j
        for _ in range(50):
            start = clock()
            clock.sleep(0.02)
            device.on_step(work, start, clock())
        return (device.board.state.energy_j - before) / 1.0

    fast = mean_power()
    device.lock_clocks(1005, 1005)
    slow = mean_power()
    assert slow < 0.7 * fast
    assert device.stretch_factor(work) > 1.1
