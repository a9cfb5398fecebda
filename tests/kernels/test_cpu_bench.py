"""The benchmark runs and writes what it measured."""

from __future__ import annotations

import json

import pytest

from bench import cpu_kernels


@pytest.mark.usefixtures("native")
def test_a_part_runs_and_writes_json(tmp_path, capsys):
    target = tmp_path / "result.json"
    assert cpu_kernels.main(["--only", "elementwise", "--rounds", "1", "--threads", "1", "--json", str(target)]) == 0
    result = json.loads(target.read_text())
    assert result["method"] == "measured"
    assert result["ceilings"]["copy_gb_per_s"] > 0
    assert {row["variant"] for row in result["rows"]} == {"kernels.ops", "definition in torch"}
    assert all(row["time_us"] > 0 for row in result["rows"])
    assert "add_rms_norm" in capsys.readouterr().out


def test_best_times_is_the_minimum_over_turns():
    calls = []
    best = cpu_kernels.best_times({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert calls == ["a", "b", *["a", "b"] * 3]
    assert set(best) == {"a", "b"}
    assert all(seconds >= 0 for seconds in best.values())
