"""On the twin, `slo_slack` earns what it promises. The documented figures come from `gridserve bench power`."""

import json

from bench import power as bench_power
from bench._power_driver import Load, Server
from power.governors import DefaultGovernor, PhaseAwareGovernor, SloSlackGovernor, StaticGovernor

THIRD = 10.0


def run(twin, governor, rate, seconds):
    return Server(twin, governor, bench_power.SLO, Load(rate, seconds)).run()


def test_a_third_of_the_peak_costs_at_least_thirty_percent_less(twin):
    rate = bench_power.constant(THIRD)
    default = run(twin, DefaultGovernor(), rate, 60.0)
    for governor in (SloSlackGovernor(twin), PhaseAwareGovernor(twin)):
        found = run(twin, governor, rate, 60.0)
        assert found.slo_share >= 0.99
        assert found.joules_per_token <= 0.7 * default.joules_per_token


def test_over_a_day_it_beats_every_static_clock_that_keeps_the_slo(twin):
    rate = bench_power.day(THIRD)
    slack = run(twin, SloSlackGovernor(twin), rate, 240.0)
    assert slack.slo_share >= 0.99
    beaten = 0
    for mhz in (1200, 1410):
        found = run(twin, StaticGovernor(mhz), rate, 240.0)
        if found.slo_share >= 0.99:
            assert slack.joules_per_token < found.joules_per_token
            beaten += 1
    assert beaten >= 1


def test_the_benchmark_writes_its_results(tmp_path):
    path = tmp_path / "power.json"
    assert bench_power.main(["--seconds", "0.3", "--skip-governors", "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    assert found["attribution"]["mean_us"] > 0
    assert found["plane_observe"]["method"] == "simulated"
    assert abs(found["plane_observe"]["closure_error_j"]) < 1e-6


def test_the_benchmark_says_what_is_wrong(capsys):
    assert bench_power.main(["--device", "abacus"]) == 1
    assert "unknown power device" in capsys.readouterr().err
