"""Calibration, run on the twin, finds the twin again; and the torch load computes a decoder step."""

import pytest
import torch

from power.actuator import Actuator
from power.calibrate import BATCHES, Calibration, adapted, fit_profile
from power.calibration_load import TorchLoad, TorchModel, TwinLoad
from power.client import LocalActuator
from power.device import DeviceInfo, PowerLimits
from power.model_shape import ModelShape
from power.quantities import Method, Scope, Source
from power.simulated import SimulatedDevice
from power.twin import Twin, decode_work, prefill_work

TINY = ModelShape("tiny", 2, 32, 4, 2, 8, 64, 100)


def load_of(twin):
    return TwinLoad(lambda clock: SimulatedDevice(twin, clock=clock, exact_sensor=True))


def test_a_read_only_sweep_finds_power_at_the_default_clock(twin):
    load = load_of(twin)
    points = Calibration(load.device, load, 2.0).sweep(None)
    assert [point.kind for point in points] == ["active_idle", "prefill"] + ["decode"] * len(BATCHES)
    profile, engine, error_w = fit_profile(twin.gpu, twin.shape, points, 72.0, "found", "the twin")
    assert error_w < 15.0
    assert "not swept" in profile.provisional
    found = Twin(profile, engine, twin.shape)
    for point in points[1:]:
        assert found.predict(point.work(), point.clock_mhz).power_w == pytest.approx(point.power_w, rel=0.06)


def test_a_sweep_of_clocks_finds_the_frequency_response(twin):
    load = load_of(twin)
    actuator = LocalActuator(Actuator([load.device], None, clock=load.now))
    points = Calibration(load.device, load, 2.0).sweep(actuator)
    assert load.device.board.state.lock_max_mhz is None, "the lease is given back"
    profile, engine, _ = fit_profile(twin.gpu, twin.shape, points, 72.0, "found", "the twin")
    assert not profile.provisional
    found = Twin(profile, engine, twin.shape)
    for work in (decode_work(16, 512), decode_work(64, 512), prefill_work(2048)):
        for clock in (795, 1200, 1605):
            truth = twin.predict(work, clock)
            assert found.predict(work, clock).duration_s == pytest.approx(truth.duration_s, rel=0.05)
            assert found.predict(work, clock).power_w == pytest.approx(truth.power_w, rel=0.12)


def test_windows_must_be_long_enough_and_sound(twin):
    load = load_of(twin)
    with pytest.raises(ValueError, match="say little"):
        Calibration(load.device, load, 0.2)
    with pytest.raises(ValueError, match="fewer than three"):
        fit_profile(twin.gpu, twin.shape, [], None, "none", "nowhere")


def test_the_device_own_clocks_and_limits_are_taken(twin):
    info = DeviceInfo(
        "GPU-x",
        "NVIDIA X",
        "nvml",
        Method.MEASURED,
        Source.NVML_COUNTER,
        Scope.GPU,
        frozenset(),
        PowerLimits(100.0, 300.0, 250.0),
        (300, 600, 900),
    )
    profile = adapted(twin.gpu, info)
    assert (profile.product, profile.clock_max_mhz, profile.limit_default_w) == ("NVIDIA X", 900, 250.0)


def test_the_torch_model_runs_prefill_and_decode():
    model = TorchModel(TINY, "cpu")
    with torch.inference_mode():
        assert model.prefill(model.random(7, 32)).shape == (1, 100)
        assert model.decode(model.random(3, 32), model.random(2, 3, 2, 5, 8)).shape == (3, 100)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing without CUDA")
def test_without_cuda_the_load_says_so():
    with pytest.raises(ValueError, match="CUDA"):
        TorchLoad(TINY)
