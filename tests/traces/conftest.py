"""Shared data of the traces tests: the public files, where present."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


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
