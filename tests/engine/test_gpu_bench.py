"""The GPU benchmarks take every step on a CPU, and say that nothing was measured."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import bench.agreement
import bench.engine
from bench._gpu_engine import GpuRow, row, table
from bench._gpu_shapes import SHAPES, RandomWeights, step_weight_bytes
from bench._gpu_systems import GpuMeasurement, GpuWorkload
from engine.model_config import ModelConfig

ROOT = Path(__file__).parents[2]


def test_a_dry_run_serves_and_measures_nothing(tmp_path, capsys):
    path = tmp_path / "engine.json"
    command = ["--device", "cuda", "--dry-run", "--shapes", "llama-3.2-1b", "--systems", "gridserve", "vllm"]
    assert bench.engine.main([*command, "--json", str(path)]) == 0
    report = json.loads(path.read_text())
    assert report["measured"] is False
    ours, absent = ([each for each in report["rows"] if each["system"] == name] for name in ("gridserve", "vllm"))
    assert [each["missing"].split(", ")[0] for each in ours] == ["dry run", "dry run"]
    assert all("not installed" in each["missing"] for each in absent)
    assert all(each["output_tok_s"] is None and each["joules_per_token"] is None for each in report["rows"])
    assert "dry run" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
@pytest.mark.parametrize("benchmark", [bench.engine, bench.agreement])
def test_without_a_card_nothing_is_measured(benchmark):
    with pytest.raises(ValueError, match="no NVIDIA GPU"):
        benchmark.main(["--device", "cuda"])


def test_a_system_of_the_other_device_is_refused():
    with pytest.raises(ValueError, match=r"llama\.cpp does not run on cuda"):
        bench.engine.main(["--device", "cuda", "--systems", "llama.cpp"])


def test_the_common_workload_is_fixed_by_its_seed():
    pairs = GpuWorkload(256, 100, 1024).pairs(151936)
    assert len(pairs) == 256
    assert all(100 <= len(prompt) <= 1024 and 100 <= tokens <= 1024 for prompt, tokens in pairs)
    assert pairs == GpuWorkload(256, 100, 1024).pairs(151936)
    assert GpuWorkload(1, 512, 512).pairs(1000)[0][1] == 512


@pytest.mark.parametrize(("shape", "gigabytes"), [("llama-3.1-8b", 15.0), ("llama-3.2-1b", 2.47), ("qwen3-0.6b", 1.19)])
def test_bytes_of_a_step_are_those_published(shape, gigabytes):
    """bf16 weights read once for each token: hazyresearch and our own arithmetic give the same."""
    assert step_weight_bytes(SHAPES[shape]) / 1e9 == pytest.approx(gigabytes, abs=0.01)


def test_rates_joules_and_the_floor():
    measured = GpuMeasurement(seconds=2.0, output_tokens=512, prompt_tokens=512, energy_j=1024.0, start_seconds=9.0)
    found = row("gridserve", "llama-3.1-8b", "single", GpuWorkload(1, 512, 512), measured, "1", 4000.0)
    assert (found.output_tok_s, found.total_tok_s, found.joules_per_token) == (256.0, 512.0, 2.0)
    step = step_weight_bytes(SHAPES["llama-3.1-8b"]) + 768 * 131_072
    assert found.of_floor == pytest.approx(256 * step / 4e12)
    eighths = row("gridserve-int8-weights", "llama-3.1-8b", "single", GpuWorkload(1, 512, 512), measured, "1", 4000.0)
    assert eighths.of_floor == pytest.approx(
        256 * (step_weight_bytes(SHAPES["llama-3.1-8b"]) / 2 + 768 * 131_072) / 4e12
    )
    rival = GpuRow("vllm", "llama-3.1-8b", "single", "2", 128.0, 256.0, None, None, 1.0)
    assert "| gridserve | 256 | n/a | 2.00 | 2.000 |" in table([found, rival])


def test_random_weights_are_the_same_whenever_they_are_read():
    config = ModelConfig("llama", 64, 32, 48, 1, 2, 1, 16, 1e-5, 1e4, 64, (None,))
    weights = RandomWeights(config, torch.device("cpu"))
    name = "model.layers.0.mlp.down_proj.weight"
    assert torch.equal(weights.dense(name, torch.float32), weights.dense(name, torch.float32))
    assert not torch.equal(
        weights.dense(name, torch.float32).T, weights.dense(name.replace("down", "up"), torch.float32)
    )
    with pytest.raises(ValueError, match="no weight"):
        weights.dense("nothing", torch.float32)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_the_day_goes_on_where_it_stopped(tmp_path):
    """Stages that are done are not run again; what does not fit the budget is left for the next call."""
    for stage in ("environment", "kernels", "engine", "formats", "planning", "ranks", "agreement"):
        (tmp_path / f"{stage}.done").touch()
    (tmp_path / "engine-x.json").write_text('{"measured": false}')
    (tmp_path / "engine-x.md").write_text("| a table |")
    command = ["bash", str(ROOT / "bench" / "gpu_day.sh"), str(tmp_path), "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "report: done" in done.stdout
    assert "engine" not in done.stdout
    assert "Dry run on a CPU: nothing was measured" in (tmp_path / "report.md").read_text()
    assert "| a table |" in (tmp_path / "report.md").read_text()
    assert json.loads((tmp_path / "report.json").read_text()) == {"engine-x": {"measured": False}}
