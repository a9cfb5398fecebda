"""A `gridserve` process as users start it, with its admin API: for tests of the whole service and for measurements."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import httpx

SIMULATED = "simulated:h100-sxm"


class LiveServer:
    """`gridserve COMMAND ...`, started; returns when it has said `ready`. Ports are its own choice.

    Raises `RuntimeError` with what it said when it ends before that.
    """

    def __init__(self, *command: str, ready: str, token: str) -> None:
        self._headers = {"Authorization": f"Bearer {token}"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "serving.cli", *command, "--port", "0", "--admin-port", "0"],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"GRIDSERVE_ADMIN_TOKEN": token},
        )
        self.said = ""
        assert self.process.stdout is not None
        while ready not in self.said and (line := self.process.stdout.readline()):
            self.said += line
        if ready not in self.said:
            self.stop()
            raise RuntimeError(f"gridserve {command[0]} never said {ready!r}: {self.said}")
        self.url = self.found(r"at (http://\S+)/v1")
        self.admin = self.found(r"admin API at (http://[^\s,]+)")

    def found(self, pattern: str) -> str:
        """The first group of `pattern` in what it said. Raises `RuntimeError` without a match."""
        match = re.search(pattern, self.said)
        if match is None:
            raise RuntimeError(f"{pattern} is not in: {self.said}")
        return match[1]

    def get(self, path: str, **parameters: Any) -> Any:
        """The answer to `GET /api/v1/{path}`, which must be 200."""
        answer = httpx.get(f"{self.admin}/api/v1/{path}", params=parameters, headers=self._headers, timeout=30)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, **body: Any) -> Any:
        answer = httpx.post(f"{self.admin}/api/v1/{path}", json=body, headers=self._headers, timeout=30)
        assert answer.is_success, answer.text
        return answer.json()

    def ask(self, **body: Any) -> httpx.Response:
        """One chat completion of the model served as `tiny`, of 8 tokens unless `body` says otherwise."""
        request = {"model": "tiny", "max_tokens": 8, "messages": [{"role": "user", "content": "Hello"}]}
        return httpx.post(f"{self.url}/v1/chat/completions", json=request | body, timeout=60)

    def audit(self, kind: str) -> list[dict[str, Any]]:
        """Rows, newest first."""
        rows: list[dict[str, Any]] = self.get("audit", kind=kind)["rows"]
        return rows

    def stop(self) -> int:
        """Its exit status after SIGTERM."""
        if self.process.poll() is None:
            self.process.terminate()
        status = self.process.wait(timeout=60)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return status


def small(model: object) -> list[str]:
    """Options of a server for tests: one thread, little memory, a simulated device, served as `tiny`."""
    words = ["--model", str(model), "--threads", "1", "--max-model-len", "512", "--kv-cache-memory", "4M"]
    return [*words, "--served-model-name", "tiny", "--device", SIMULATED]


def until(condition: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
    """The first true answer of `condition`, asked ten times a second."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.1)
    return found
