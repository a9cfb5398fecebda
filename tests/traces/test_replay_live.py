"""`gridserve replay` against `gridserve serve`: two real processes, a real model, a twin's joules."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx
import pytest

from serving.cli import main
from tests.serving.test_live_server import Server
from traces.results_io import read_run

pytestmark = [pytest.mark.slow, pytest.mark.e2e]
TRACE = Path(__file__).parents[2] / "traces" / "data" / "chat_hour.jsonl"
REQUESTS = 20


def test_a_replay_gets_every_answer_at_its_exact_length_with_its_energy(tiny_model: Path, tmp_path: Path) -> None:
    server = Server(
        str(tiny_model), "--max-model-len", "512", "--served-model-name", "tiny", "--device", "simulated:h100-sxm"
    )
    arguments = [
        "replay", str(TRACE), "--url", server.url, "--out", str(tmp_path / "out"), "--limit", str(REQUESTS),
        "--window", "512", "--over-window", "clip", "--scale-time", "0.1", "--share-prefixes", "none",
    ]  # fmt: skip
    try:
        assert main(arguments) == 0
        metrics = httpx.get(f"{server.url}/metrics").text
    finally:
        server.stop()
    run = read_run(tmp_path / "out")
    assert [record.outcome for record in run.records] == ["completed"] * REQUESTS
    assert all(record.output_tokens == record.requested_output_tokens for record in run.records)
    assert all(record.input_tokens == record.requested_input_tokens for record in run.records)
    assert all((record.energy_j or 0.0) > 0.0 and record.energy_method == "simulated" for record in run.records)
    figures = json.loads((tmp_path / "out" / "result.json").read_text())
    assert figures["completed"] == REQUESTS
    assert figures["total_output_tokens"] == sum(record.output_tokens or 0 for record in run.records)
    counted = sum(float(n) for n in re.findall(r"^gridserve_generation_tokens_total(?:\{.*\})? (\S+)$", metrics, re.M))
    asked_at_start = 1  # `find_target` draws a token to learn whether the server takes token ids
    assert counted == figures["total_output_tokens"] + asked_at_start
