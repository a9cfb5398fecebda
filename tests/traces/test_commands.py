"""`gridserve traces ...` and `gridserve replay ...` as a user runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serving.cli import main
from traces.reader import TraceFile
from traces.results_io import read_run

ROOT = Path(__file__).parents[2]
Write = Callable[..., Path]
VIDUR = "arrived_at,num_prefill_tokens,num_decode_tokens\n0,30,3\n0.05,40,4\n0.1,x,5\n0.15,50,0\n0.2,9000,6\n"


def test_inspect_prints_a_table_and_json(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(VIDUR)
    options = [str(path), "--skip-bad", "--window", "4096", "--over-window", "clip"]
    assert main(["traces", "inspect", *options]) == 0
    table = capsys.readouterr().out
    assert "requests                     4" in table
    assert "bad rows skipped             1" in table
    assert "requests clipped to the window 1" in table
    assert main(["traces", "inspect", *options, "--json", "--prefix-reuse"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["requests"], found["counts"]["bad"], found["counts"]["zero_outputs"]) == (4, 1, 1)
    assert found["prefix_blocks_reused"] is None


def test_a_bad_row_is_one_line_with_its_place(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(VIDUR)
    assert main(["traces", "inspect", str(path)]) == 1
    assert capsys.readouterr().err == (
        f"gridserve: {path}:4:5: column 'num_prefill_tokens': 'x' is not a whole number of at least 1\n"
    )


def test_convert_shapes_and_tells_how_to_use_it(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    shaping = ["--start", "0.05", "--loop", "2", "--period", "10", "--scale-time", "2"]
    assert (
        main(["traces", "convert", str(write(VIDUR)), "--to", "aiperf", "--out", str(out), "--skip-bad", *shaping]) == 0
    )
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["timestamp"] for row in rows] == [0, 300, 10_000, 10_300]
    messages = capsys.readouterr().err
    assert "4 requests written" in messages
    assert "2 left out" in messages
    assert "--fixed-schedule" in messages


def test_synthesize_from_each_source(write: Write, tmp_path: Path) -> None:
    lengths = write("num_prefill_tokens,num_decode_tokens\n100,7\n", "lengths.csv")
    spec = ROOT / "traces/data/code_bursts.spec.yaml"
    out = tmp_path / "out.jsonl"
    drawn = ["--lengths", str(lengths), "--rate", "5", "--duration", "60"]
    assert main(["traces", "synthesize", *drawn, "--out", str(out)]) == 0
    assert {request.input_tokens for request in TraceFile(out)} == {100}
    assert main(["traces", "synthesize", str(spec), "--seed", "9", "--out", str(out)]) == 0
    assert main(["traces", "synthesize", "--out", str(out)]) == 1
    assert main(["traces", "synthesize", *drawn[:2], "--out", str(out)]) == 1


def test_shipped_traces_are_what_the_script_makes() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/make_bundled_traces.py", "--check"],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_shipped_traces_are_labelled_synthetic() -> None:
    shipped = sorted((ROOT / "traces/data").glob("*.jsonl"))
    assert len(shipped) == 3
    for path in shipped:
        trace = TraceFile(path)
        assert trace.header is not None
        assert trace.header.obtained == "synthetic"
        assert "synthetic" in trace.header.name
        assert sum(1 for _ in trace) > 500


def test_replay_writes_results_and_reports(
    stub_server: Any, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    options = ["--url", stub_server.url, "--out", str(out), "--skip-bad", "--window", "4096", "--over-window", "clip"]
    assert main(["replay", str(write(VIDUR)), *options, "--goodput", "chat", "--policy", "default"]) == 0
    captured = capsys.readouterr()
    assert "Successful requests:                     3" in captured.out
    assert "Dropped requests (not sent):             1" in captured.out
    result = read_run(out)
    assert result.info.counts["bad"] == 1
    assert result.info.counts["clipped_over_window"] == 1
    assert result.info.policy == "default"
    assert result.info.prompts == "token ids, exact"
    assert "no saving by directives can show" in result.info.notes[0]
    assert result.slo_ms == {"ttft": 200.0, "tpot": 50.0}
    assert "\r" not in captured.err


def test_a_bad_row_on_the_way_leaves_partial_results(
    stub_server: Any, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(["replay", str(write(VIDUR)), "--url", stub_server.url, "--out", str(out)]) == 1
    assert "trace.csv:4:5: column 'num_prefill_tokens'" in capsys.readouterr().err
    result = read_run(out)
    assert result.aborted
    assert sum(record.completed for record in result.records) == 2
    assert "could not be read to its end" in result.info.notes[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--goodput", "fast"], "--goodput takes METRIC:MS"),
        (["--goodput", "ttfb:3"], "METRIC one of ttft, tpot"),
        (["--warmup", "-1"], "--warmup takes seconds of at least 0"),
        (["--body", "[1]"], "must be a JSON object"),
        (["--header", "x"], "NAME=VALUE"),
        (["--percentiles", "50,200"], "from 0 to 100"),
        (["--thin", "2"], "share to keep"),
        (["--timeout", "0"], "request_timeout_s must be above 0"),
        (["--endpoint", "chat", "--prompts", "token-ids"], "need /tokenize and /v1/completions"),
    ],
)
def test_wrong_options_are_one_line(
    stub_server: Any, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    path = write("arrived_at,num_prefill_tokens,num_decode_tokens\n0,30,3\n")
    assert main(["replay", str(path), "--url", stub_server.url, "--out", str(tmp_path / "o"), *options]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_interrupting_a_replay_leaves_partial_results(stub_server: Any, write: Write, tmp_path: Path) -> None:
    import signal
    import time

    rows = "".join(f"{index * 0.05},30,5\n" for index in range(1000))
    path = write("arrived_at,num_prefill_tokens,num_decode_tokens\n" + rows)
    command = [sys.executable, "-m", "serving.cli", "replay", str(path), "--url", stub_server.url, "--out", "run"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    running = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        deadline_s = time.monotonic() + 30.0
        while len(stub_server.stub.received) < 8 and time.monotonic() < deadline_s:
            time.sleep(0.02)
        running.send_signal(signal.SIGINT)
        out, _ = running.communicate(timeout=30)
    finally:
        running.kill()
        running.wait()
    assert running.returncode == 130
    assert b"stopped before its end" in out
    result = read_run(tmp_path / "run")
    assert result.aborted
    assert 5 <= sum(record.completed for record in result.records) < 1000
