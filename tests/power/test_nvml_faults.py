"""The NVML device on a library that misbehaves: what is missing degrades with a reason, what fails is not hidden."""

import os
import time

import pynvml
import pytest

from power.device import Capability, DeviceError, DeviceLostError, PermissionRefusedError
from power.fake_nvml import Faults
from power.nvml import NvmlDevice, visible_uuids
from power.nvml_library import NvmlUnavailableError, close_nvml, open_nvml
from power.quantities import Method, Source
from power.twin import decode_work


def opened(fake, **options):
    return NvmlDevice(fake.uuids[0], control=True, **options)


def test_without_permission_it_observes_and_says_how_to_grant(fake):
    fake.set_faults(Faults(no_permission=True))
    device = opened(fake)
    assert device.info.capabilities == {Capability.READ}
    assert any("CAP_SYS_ADMIN" in note for note in device.info.notes)
    assert device.read().power_w is not None
    with pytest.raises(PermissionRefusedError, match="powerd"):
        device.set_power_limit(400.0)
    device.close()


def test_unsupported_fields_are_none(fake):
    fake.set_faults(
        Faults(
            not_supported=[
                "nvmlDeviceGetTotalEnergyConsumption",
                "nvmlDeviceGetFieldValues",
                "nvmlDeviceGetUtilizationRates",
                "nvmlDeviceGetSupportedGraphicsClocks",
            ]
        )
    )
    device = opened(fake)
    reading = device.read()
    assert reading.energy_j is None
    assert reading.utilisation is None
    assert reading.power_w is not None
    assert device.info.source == Source.NVML_POWER
    assert device.info.method == Method.ESTIMATED
    assert device.info.capabilities == {Capability.READ, Capability.CAP}
    device.close()


@pytest.mark.parametrize(("fault", "word"), [(Faults(mig=True), "MIG"), (Faults(vgpu=True), "vGPU")])
def test_shared_gpus_are_not_controlled(fake, fault, word):
    fake.set_faults(fault)
    device = opened(fake)
    assert device.info.capabilities == {Capability.READ}
    assert any(word in note for note in device.info.notes)
    device.close()


def test_a_lost_gpu_raises_and_is_not_zero_watts(fake):
    device = opened(fake)
    fake.set_faults(Faults(lost=True))
    with pytest.raises(DeviceLostError, match="XID"):
        device.sample()
    with pytest.raises(DeviceLostError):
        device.read()
    device.close()


def test_an_ignored_set_shows_in_the_read_back(fake):
    device = opened(fake)
    fake.set_faults(Faults(ignore_sets=True))
    assert device.set_power_limit(400.0) == 700.0
    fake.set_load(fake.twin.demand(decode_work(64, 500)))
    assert device.lock_clocks(1005, 1005) == 1980.0
    device.close()


def test_a_slow_call_is_slow_but_right(fake):
    device = opened(fake)
    fake.set_faults(Faults(slow_s=0.05))
    before = time.monotonic()
    assert device.sample().energy_j is not None
    assert time.monotonic() - before >= 0.05
    device.close()


def test_foreign_processes_are_counted(fake):
    fake.set_faults(Faults(foreign_pids=[1, 2]))
    device = opened(fake)
    assert device.read().foreign_processes == 2
    device.own(frozenset({1, os.getpid()}))
    assert device.read().foreign_processes == 1
    device.own(frozenset({4242}))
    assert device.read().foreign_processes is None, "none of ours is listed: another PID namespace"
    device.close()


def test_locks_outlive_the_process_that_set_them(fake):
    device = opened(fake)
    device.lock_clocks(1005, 1005)
    device.set_power_limit(400.0)
    device.close()
    assert len(fake.left_behind()) == 2
    assert fake.left_behind(1) == []


def test_visible_devices_follow_cuda(fake):
    first, second = fake.uuids
    assert visible_uuids({}) == (first, second)
    assert visible_uuids({"CUDA_VISIBLE_DEVICES": "1"}) == (second,)
    assert visible_uuids({"CUDA_VISIBLE_DEVICES": f"{second},0"}) == (second, first)
    assert visible_uuids({"CUDA_VISIBLE_DEVICES": ""}) == ()
    assert visible_uuids({"CUDA_VISIBLE_DEVICES": "0,-1,1"}) == (first,)
    with pytest.raises(ValueError, match="names no GPU"):
        visible_uuids({"CUDA_VISIBLE_DEVICES": "GPU-absent"})


def test_an_unknown_uuid_is_an_error(fake):
    with pytest.raises(DeviceError):
        NvmlDevice("GPU-absent")


def test_no_driver_says_so(monkeypatch):
    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "CDLL", lambda name: (_ for _ in ()).throw(OSError("absent")), raising=False)
    with pytest.raises(NvmlUnavailableError, match="no NVIDIA driver"):
        open_nvml()
    close_nvml()
