"""A benchmark tool from elsewhere, pointed at the live server: what it counts is what we count."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from engine.model_store import cache_folder
from tests.serving.test_live_server import Server

# Longer than the default: the tool is installed first, and tells of its own start in minutes on a busy machine.
pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(1800)]
AIPERF = "aiperf==0.13.0"
REQUESTS, OUTPUT_TOKENS = 24, 16


@pytest.fixture(scope="module")
def aiperf() -> str:
    """The tool, in an environment of its own: its pins are not ours."""
    found = shutil.which("aiperf")
    if found is not None:
        return found
    folder = cache_folder() / "aiperf"
    tool = folder / "bin" / "aiperf"
    if not tool.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [str(folder / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"]
        # The CPU build first: otherwise the tool's own range would fetch gigabytes.
        for package in ("torch==2.13.0", AIPERF):
            if subprocess.run([*pip, package], check=False).returncode:
                shutil.rmtree(folder)
                pytest.skip(f"{package} cannot be installed here")
    return str(tool)


@pytest.fixture(scope="module")
def tokenizer_folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    shutil.copy(tiny_model / "tokenizer.json", folder)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "bos_token": "<|im_start|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def counter(metrics: str, name: str) -> float:
    return sum(float(value) for value in re.findall(rf"^{name}(?:\{{[^}}]*\}})? ([0-9.e+]+)$", metrics, re.MULTILINE))


def test_aiperf_streams_chats_and_counts_the_same_tokens(
    aiperf: str, tiny_model: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    server = Server(str(tiny_model), "--max-model-len", "512", "--served-model-name", "tiny")
    try:
        before = httpx.get(f"{server.url}/metrics").text
        command = [aiperf, "profile", "--model", "tiny", "--url", server.url, "--endpoint-type", "chat", "--streaming"]
        command += ["--concurrency", "4", "--request-count", str(REQUESTS), "--tokenizer", str(tokenizer_folder)]
        command += ["--isl", "40", "--osl", str(OUTPUT_TOKENS), "--extra-inputs", "ignore_eos:true", "--ui", "none"]
        command += ["--extra-inputs", f"min_tokens:{OUTPUT_TOKENS}", "--artifact-dir", str(tmp_path / "run")]
        environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=600, env=environment, cwd=tmp_path, check=False
        )
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
        after = httpx.get(f"{server.url}/metrics").text
    finally:
        assert server.stop() == 0
    (report,) = (tmp_path / "run").rglob("profile_export_aiperf.json")
    figures = json.loads(report.read_text())
    assert figures["request_count"]["avg"] == REQUESTS
    # The tool tokenises the text again, and a random model's text does not survive that unchanged.
    assert figures["output_sequence_length"]["avg"] == pytest.approx(OUTPUT_TOKENS, rel=0.2)
    assert figures["time_to_first_token"]["avg"] > 0
    ours = counter(after, "gridserve_generation_tokens_total") - counter(before, "gridserve_generation_tokens_total")
    assert ours == REQUESTS * OUTPUT_TOKENS
