"""The rules of the tuning table, the common signatures, and the benchmark where there is no card."""

import dataclasses
import inspect
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from triton.runtime.errors import OutOfResources

from bench import _kernel_sweep
from bench import kernels as benchmark
from kernels import ops as common
from kernels.gpu import ops, tuning

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", common.__all__)
def test_every_common_operation_can_be_called_the_same_way(name):
    wanted = inspect.signature(getattr(common, name)).parameters
    found = inspect.signature(getattr(ops, name)).parameters
    assert list(found)[: len(wanted)] == list(wanted)
    assert [found[each].default for each in wanted] == [wanted[each].default for each in wanted]
    added = [found[each] for each in list(found)[len(wanted) :]]
    assert all(each.kind is inspect.Parameter.KEYWORD_ONLY for each in added)


@given(programs=st.integers(1, 5000), reach=st.integers(1, 1 << 20))
def test_splits_stay_within_their_bounds(programs, reach):
    config = tuning.decode_config(CPU, 2, 128)
    splits = tuning.num_splits(CPU, config, programs, reach)
    assert 1 <= splits <= tuning.MAX_SPLITS
    assert splits == 1 or (splits - 1) * config.min_split < reach
    slots = tuning.traits(CPU).num_sms * config.programs_per_sm
    assert splits == 1 or (splits - 1) * programs < slots, "fewer splits would have filled the card"


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 100, 120])
@pytest.mark.parametrize("element_bytes", [1, 2, 4])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_the_tables_cover_every_card(monkeypatch, capability, element_bytes, head_dim):
    monkeypatch.setattr(tuning, "assumed_traits", tuning.DeviceTraits(capability, 100))
    assert tuning.decode_config(CPU, element_bytes, head_dim).tile >= 16
    prefill = tuning.prefill_config(CPU, element_bytes, head_dim, group=8)
    assert prefill.block_m >= 16
    assert tuning.SEGMENT % prefill.tile == 0


def test_shapes_without_a_configuration_are_refused():
    with pytest.raises(ValueError, match="head_dim=512"):
        tuning.decode_config(CPU, 2, 512)
    with pytest.raises(ValueError, match="200 query heads"):
        tuning.prefill_config(CPU, 2, 128, group=200)


def test_one_linear_configuration_serves_all_in_deterministic_mode():
    tuning.set_deterministic(True)
    try:
        found = {tuning.linear_config(tuning.PackedFormat.INT4, 2, tokens) for tokens in (1, 16, 64, 5000)}
    finally:
        tuning.set_deterministic(False)
    assert len(found) == 1


def test_a_measured_table_replaces_entries(tmp_path, monkeypatch):
    for name in ("DECODE", "PREFILL", "LINEAR"):
        monkeypatch.setattr(tuning, name, dict(getattr(tuning, name)))
    monkeypatch.setattr(tuning, "measured_on", None)
    config = {"tile": 128, "num_warps": 8, "num_stages": 3, "programs_per_sm": 1, "min_split": 512}
    linear = {"block_m": 16, "block_n": 32, "block_k": 64, "num_warps": 4, "num_stages": 3, "programs_per_sm": 4}
    entries = [
        {"table": "decode", "key": [90, 2, 128], "config": config, "us": 1.0},
        {"table": "linear", "key": [2, 2, 16], "config": linear, "us": 1.0},
    ]
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"measured_on": "some card", "entries": entries}))
    tuning.load_table(path)
    assert tuning.measured_on == "some card"
    assert tuning.decode_config(CPU, 2, 128) == tuning.DecodeConfig(**config)
    assert tuning.linear_config(tuning.PackedFormat.INT4, 2, 1) == tuning.LinearConfig(**linear)
    path.write_text("{}")
    with pytest.raises(ValueError, match="no table"):
        tuning.load_table(path)


def test_a_sweep_keeps_the_fastest_candidate_that_runs(monkeypatch):
    """With made-up times: a candidate over the limits is left out, and a table none of whose candidates run stays."""
    configs = [tuning.DecodeConfig(tile, 4, 3, 2) for tile in (16, 32, 64, 128)]
    times = dict(zip(configs[:3], (5.0, 2.0, 3.0)))
    table = dict(tuning.DECODE)
    monkeypatch.setattr(tuning, "DECODE", table)
    case = dataclasses.replace(benchmark.all_cases()[0], build=lambda *_: None, ours=lambda _: None)

    def median_us(calls):
        if table[key] not in times:
            raise OutOfResources(300_000, 232_448, "shared memory")
        return times[table[key]]

    monkeypatch.setattr(_kernel_sweep._kernel_timing, "median_us", median_us)
    monkeypatch.setattr(_kernel_sweep._kernel_timing, "copies_for_cold_l2", lambda _: 2)
    key = (90, 2, 128)
    entry = _kernel_sweep.decide(_kernel_sweep.Sweep("decode", key, (case.name,), tuple(configs)), [case])
    assert entry == {"table": "decode", "key": list(key), "config": dataclasses.asdict(configs[1]), "us": 2.0}
    assert table[key] == configs[1]
    for key in ((90, 2, 128), (77, 2, 128)):
        before = dict(table)
        sweep = _kernel_sweep.Sweep("decode", key, (case.name,), (configs[3],))
        assert _kernel_sweep.decide(sweep, [case]) is None
        assert table == before


@pytest.mark.parametrize("capability", [80, 90])
def test_every_sweep_has_cases_and_candidates(capability):
    cases = [case.name for case in benchmark.all_cases()]
    for sweep in _kernel_sweep.sweeps(capability):
        assert all(any(case.startswith(name) for case in cases) for name in sweep.cases)
        assert len(set(sweep.candidates)) > 10


@pytest.mark.skipif(torch.cuda.is_available(), reason="measures where there is a card")
def test_the_benchmark_says_that_nothing_was_measured(tmp_path, capsys):
    path = tmp_path / "report.json"
    assert benchmark.main(["--json", str(path), "--only", "8192"]) == 0
    report = json.loads(path.read_text())
    assert report["measured"] is False
    assert report["ceilings"] is None
    assert report["cases"]
    assert all("us" not in row and row["missing"] == benchmark.NO_GPU for row in report["cases"])
    assert "nothing was measured" in capsys.readouterr().out
    assert benchmark.main(["--sweep", str(tmp_path / "table.json")]) == 1
    assert "a sweep needs one" in capsys.readouterr().err
    assert not (tmp_path / "table.json").exists()


def test_the_report_of_a_measurement(capsys):
    """The table of a run on a card, from made-up times: ratios and reasons stand where they should."""
    row = {
        "case": "decode",
        "family": "decode",
        "bytes": 4_000_000,
        "flops": 0,
        "us": 2.0,
        "gbps": 2000.0,
        "tflops": 0.0,
        "of_copy": 0.5,
        "of_gemm": 0.0,
        "peers": {
            "A": {"us": 3.0, "speed_of_ours": 1.5, "relative_difference": 0.0},
            "B": {"missing": "not installed"},
        },
    }
    report = {
        "measured": True,
        "method": "m",
        "environment": {"device": "card", "torch": "t", "triton": "x", "tuned_on": None},
        "ceilings": {"copy_gbps": 4000.0, "gemm_bf16_tflops": 700.0},
        "cases": [row],
    }
    text = benchmark.to_markdown(report)
    for expected in ("2000 (50%)", "A 3.0, 1.50x", "B: not measured", "B not measured: not installed", "no card"):
        assert expected in text


def test_the_bytes_of_a_case_follow_from_its_shape():
    case = next(case for case in benchmark.all_cases() if case.name == "decode 32 x 2048 bf16")
    keys_and_values = 2 * 32 * 2048 * 8 * 128 * 2
    queries_and_results = 2 * 32 * 32 * 128 * 2
    assert case.bytes_moved == keys_and_values + queries_and_results
