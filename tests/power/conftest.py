"""Helpers of the power tests: a virtual clock, a twin, and the fake NVML."""

from __future__ import annotations

import pytest

from power.model_shape import model_shape
from power.profile import load_engine, load_profile
from power.simulated import SimulatedDevice
from power.twin import Twin


class VirtualClock:
    """Monotonic seconds that move only when told."""

    def __init__(self, start_s: float = 1000.0) -> None:
        self.now_s = start_s

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def clock():
    return VirtualClock()


@pytest.fixture(scope="session")
def twin():
    return Twin(load_profile("h100-sxm"), load_engine("vllm-0.11"), model_shape("llama-3.1-8b"))


@pytest.fixture
def simulated(twin, clock):
    return SimulatedDevice(twin, clock=clock, exact_sensor=True)


@pytest.fixture
def fake(twin, tmp_path):
    """A fake NVML with two GPUs, installed under nvidia-ml-py for the length of the test."""
    from power.fake_nvml import FakeNvml

    library = FakeNvml(twin, tmp_path / "gpus", count=2)
    with library.installed():
        yield library
