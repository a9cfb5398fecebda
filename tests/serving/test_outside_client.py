"""A benchmark tool from elsewhere, pointed at the live server: what it counts, tokens and joules, is what we count."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from engine.model_store import cache_folder
from serving.ledger.engine import Location
from serving.ledger.reader import LedgerReader
from tests.serving.test_live_server import Server

# Longer than the default: the tool is installed first, and tells of its own start in minutes on a busy machine.
pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(1800)]
AIPERF = "aiperf==0.13.0"
REQUESTS, LONG_REQUESTS, OUTPUT_TOKENS = 24, 300, 16
# By default it reads three times a second and counts up to 0.67 s after the last answer.
SHARP = {"AIPERF_GPU_COLLECTION_INTERVAL": "0.1", "AIPERF_GPU_FINAL_SCRAPE_GRACE_NS": "100000000"}


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


class Meter:
    """Our own counter of joules over time, read ten times a second."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._points: list[tuple[float, float]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while not self._ended.wait(0.1):
            asked_s = time.time()
            joules = counter(httpx.get(f"{self._url}/metrics", timeout=30).text, "gridserve_gpu_energy_joules_total")
            self._points.append(((asked_s + time.time()) / 2, joules))

    def stop(self) -> None:
        self._ended.set()
        self._thread.join(30.0)

    def between(self, since_s: float, until_s: float) -> float:
        times, joules = zip(*self._points)
        return float(np.interp(until_s, times, joules) - np.interp(since_s, times, joules))


def profile(
    aiperf: str, server: Server, tokenizer: Path, out: Path, *more: str, variables: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The tool's own figures of a run against the server."""
    command = [aiperf, "profile", "--model", "tiny", "--url", server.url, "--endpoint-type", "chat", "--streaming"]
    command += ["--concurrency", "4", "--tokenizer", str(tokenizer), "--ui", "none", "--artifact-dir", str(out)]
    command += ["--isl", "40", "--osl", str(OUTPUT_TOKENS), "--extra-inputs", "ignore_eos:true"]
    command += ["--extra-inputs", f"min_tokens:{OUTPUT_TOKENS}", *more]
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=600,
        env=environment | dict(variables or {}),
        cwd=out.parent,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    (report,) = out.rglob("profile_export_aiperf.json")
    figures: dict[str, Any] = json.loads(report.read_text())
    return figures


def test_aiperf_streams_chats_and_counts_the_same_tokens(
    aiperf: str, tiny_model: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    server = Server(str(tiny_model), "--max-model-len", "512", "--served-model-name", "tiny")
    try:
        before = httpx.get(f"{server.url}/metrics").text
        figures = profile(aiperf, server, tokenizer_folder, tmp_path / "run", "--request-count", str(REQUESTS))
        after = httpx.get(f"{server.url}/metrics").text
    finally:
        assert server.stop() == 0
    assert figures["request_count"]["avg"] == REQUESTS
    # The tool tokenises the text again, and a random model's text does not survive that unchanged.
    assert figures["output_sequence_length"]["avg"] == pytest.approx(OUTPUT_TOKENS, rel=0.2)
    assert figures["time_to_first_token"]["avg"] > 0
    ours = counter(after, "gridserve_generation_tokens_total") - counter(before, "gridserve_generation_tokens_total")
    assert ours == REQUESTS * OUTPUT_TOKENS


def test_aiperfs_joules_per_token_are_ours(
    aiperf: str, tiny_model: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    """Its figure comes from the DCGM series of `/metrics` alone; ours twice: from the joule counter over the tool's
    window, and from what the ledger charges to each request."""
    options = ["--max-model-len", "512", "--served-model-name", "tiny", "--device", "simulated:h100-sxm"]
    server = Server(str(tiny_model), *options, "--ledger", str(tmp_path / "ledger"))
    meter = Meter(server.url)
    try:
        asked = ["--request-count", str(LONG_REQUESTS), "--gpu-telemetry", f"{server.url}/metrics"]
        figures = profile(
            aiperf, server, tokenizer_folder, tmp_path / "run", *asked, "--use-server-token-count", variables=SHARP
        )
    finally:
        meter.stop()
        assert server.stop() == 0
    tokens = LONG_REQUESTS * OUTPUT_TOKENS
    assert figures["total_osl"]["avg"] == tokens
    since_s, until_s = (datetime.fromisoformat(figures[name]).timestamp() for name in ("start_time", "end_time"))
    theirs_j = figures["nvidia_energy_per_output_token"]["avg"] / 1e3
    counted_j = meter.between(since_s, until_s) / tokens
    reader = LedgerReader(Location(tmp_path / "ledger"))
    rows = reader.requests(limit=2 * LONG_REQUESTS)
    reader.close()
    charged = [row["energy_j"] for row in rows if row["arrived_us"] >= since_s * 1e6]
    assert len(charged) == LONG_REQUESTS
    charged_j = sum(charged) / tokens
    print(
        f"joules per output token over {until_s - since_s:.1f} s (simulated board): aiperf {theirs_j:.4f}, "
        f"our counter {counted_j:.4f}, charged to requests {charged_j:.4f}"
    )
    assert counted_j == pytest.approx(theirs_j, rel=0.02)
    assert charged_j == pytest.approx(theirs_j, rel=0.02)
