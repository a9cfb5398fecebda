"""CPU energy from a powercap tree made for the test."""

import pytest

from power.quantities import Method
from power.rapl import open_rapl


def make_zone(root, path, name, energy_uj, wrap_uj=262_143_328_850):
    zone = root / path
    zone.mkdir()
    (zone / "name").write_text(f"{name}\n")
    (zone / "energy_uj").write_text(f"{energy_uj}\n")
    (zone / "max_energy_range_uj").write_text(f"{wrap_uj}\n")
    return zone


def test_packages_and_dram_are_added_and_psys_and_core_are_not(tmp_path, clock):
    package = make_zone(tmp_path, "intel-rapl:0", "package-0", 1_000_000)
    core = make_zone(tmp_path, "intel-rapl:0:0", "core", 1_000_000)
    dram = make_zone(tmp_path, "intel-rapl:0:1", "dram", 1_000_000)
    psys = make_zone(tmp_path, "intel-rapl:1", "psys", 1_000_000)
    device, why = open_rapl(tmp_path, clock=clock)
    assert why is None
    clock.sleep(1.0)
    for zone in (package, core, dram, psys):
        (zone / "energy_uj").write_text("51000000\n")
    reading = device.sample()
    assert reading.energy_j == pytest.approx(100.0)
    assert device.by_zone() == {"package-0": pytest.approx(50.0), "dram-0": pytest.approx(50.0)}
    assert device.info.method == Method.MEASURED


def test_wrap_around_is_modular(tmp_path, clock):
    wrap = 65_536_000_000
    zone = make_zone(tmp_path, "intel-rapl:0", "package-0", wrap - 10_000_000, wrap)
    device, _ = open_rapl(tmp_path, clock=clock)
    for turn in range(3):
        clock.sleep(1.0)
        (zone / "energy_uj").write_text(f"{(turn * 40_000_000 + 30_000_000) % wrap}\n")
        device.sample()
    assert device.sample().energy_j == pytest.approx(40.0 * 3)
    assert device.dropped_samples == 0


def test_an_implausible_jump_is_dropped_and_counted(tmp_path, clock):
    zone = make_zone(tmp_path, "intel-rapl:0", "package-0", 50_000_000)
    device, _ = open_rapl(tmp_path, clock=clock)
    clock.sleep(1.0)
    (zone / "energy_uj").write_text("0\n")
    assert device.sample().energy_j == 0.0
    assert device.dropped_samples == 1
    clock.sleep(1.0)
    (zone / "energy_uj").write_text("90000000\n")
    assert device.sample().energy_j == pytest.approx(90.0)


def test_nothing_readable_is_none_with_a_reason(tmp_path, clock):
    assert open_rapl(tmp_path / "absent", clock=clock)[0] is None
    device, why = open_rapl(tmp_path, clock=clock)
    assert device is None
    assert "no package" in why
    zone = make_zone(tmp_path, "intel-rapl:0", "package-0", 1)
    (zone / "energy_uj").unlink()
    device, why = open_rapl(tmp_path, clock=clock)
    assert device is None
    assert "CAP_DAC_READ_SEARCH" in why
