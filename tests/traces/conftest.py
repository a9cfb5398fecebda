"""Shared data of the traces tests: the public files, where present."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

ROOT = Path(__file__).parents[2]


def load_stub() -> Any:
    """The stub's module, which is also a script."""
    spec = importlib.util.spec_from_file_location("stub_server", Path(__file__).with_name("stub_server.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class StubServer:
    """`stub` holds behaviour and what was received; `url` is where it listens."""

    def __init__(self) -> None:
        self.stub = load_stub().Stub()
        config = uvicorn.Config(self.stub, host="127.0.0.1", port=0, log_level="critical", lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._ready = threading.Event()
        self.url = ""

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        serving = asyncio.ensure_future(self._server.serve())
        while not self._server.started and not serving.done():
            await asyncio.sleep(0.005)
        if self._server.started:
            port = self._server.servers[0].sockets[0].getsockname()[1]
            self.url = f"http://127.0.0.1:{port}"
        self._ready.set()
        await serving

    def start(self) -> None:
        self._thread.start()
        self._ready.wait(10)
        assert self.url, "the stub did not start"

    def stop(self) -> None:
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join(10)


@pytest.fixture(scope="session")
def shared_traces() -> Path:
    given = os.environ.get("GRIDSERVE_SHARED_DATA")
    candidates = [Path(given)] if given else [ROOT.parent / "shared/data", ROOT.parent.parent / "shared/data"]
    for candidate in candidates:
        if (candidate / "traces").is_dir():
            return candidate / "traces"
    pytest.skip("the public traces are not here; set GRIDSERVE_SHARED_DATA to their folder")


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write bytes or text to a file of the test's own folder, line ends as given."""

    def write_file(content: str | bytes, name: str = "trace.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_file


@pytest.fixture
def stub_server() -> Iterator[StubServer]:
    """The stub on a free port of the loopback, in a thread with an event loop of its own."""
    server = StubServer()
    server.start()
    yield server
    server.stop()
