"""The scheduler benchmark runs and reports what it says it does."""

from __future__ import annotations

import json
from pathlib import Path

import bench.scheduler


def test_the_benchmark_prints_a_table_and_writes_json(tmp_path: Path, capsys) -> None:
    report_path = tmp_path / "scheduler.json"
    assert bench.scheduler.main(["--steps", "100", "--json", str(report_path)]) == 0
    report = json.loads(report_path.read_text())
    assert [(row["load"], row["running"]) for row in report["rows"]] == [
        (load, running) for load in ("decode", "churn") for running in bench.scheduler.RUNNING
    ]
    assert report["method"] == "measured"
    for row in report["rows"]:
        assert 0 < row["p50_us"] <= row["p99_us"]
        assert row["preemptions"] == 0
        assert (row["finished_requests"] > 0) == (row["load"] == "churn")
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(report["rows"])
