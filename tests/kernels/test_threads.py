"""The choice of thread numbers and of torch's wait policy."""

from __future__ import annotations

import pytest
import torch

from kernels import threads


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch):
    for name in ("GRIDSERVE_THREADS", "OMP_NUM_THREADS", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)


def test_variables_win(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")
    assert threads.usable_cores() == 3
    monkeypatch.setenv("GRIDSERVE_THREADS", "5")
    assert threads.usable_cores() == 5


@pytest.mark.parametrize("text", ["0", "-1", "many"])
def test_bad_variables_are_named(monkeypatch, text):
    monkeypatch.setenv("GRIDSERVE_THREADS", text)
    with pytest.raises(ValueError, match="GRIDSERVE_THREADS"):
        threads.usable_cores()


def test_hardware_threads_of_a_core_count_once(monkeypatch):
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr(threads, "_siblings", lambda cpu: "0,2" if cpu % 2 == 0 else "1,3")
    monkeypatch.setattr(threads, "_cgroup_quota_cpus", lambda: None)
    assert threads.usable_cores() == 2


@pytest.mark.parametrize(("quota", "cores"), [(None, 4), (2.5, 2), (0.5, 1), (9.0, 4)])
def test_the_cgroup_quota_caps(monkeypatch, quota, cores):
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr(threads, "_siblings", lambda _: None)
    monkeypatch.setattr(threads, "_cgroup_quota_cpus", lambda: quota)
    assert threads.usable_cores() == cores


def test_environment_keeps_what_the_user_set(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads.configure_environment()
    assert threads.os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
    monkeypatch.delenv("OMP_WAIT_POLICY")
    threads.configure_environment()
    assert threads.os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.delenv("OMP_WAIT_POLICY")
    threads.configure_environment(native=False)
    assert threads.os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


def test_set_threads_reaches_both_pools(native):
    before = torch.get_num_threads()
    threads.set_threads(2)
    assert (torch.get_num_threads(), native.threads()) == (2, 2)
    threads.set_threads(before)
    native.set_threads(1)
    with pytest.raises(ValueError, match="1 or more"):
        threads.set_threads(0)
