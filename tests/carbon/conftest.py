"""Shared fixtures: the folder of recorded data, read by path only, and a clock that stands still."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def carbon_data() -> Path:
    """Folder `carbon/` of the shared data, or a skip that says how to provide it."""
    named = os.environ.get("GRIDSERVE_SHARED_DATA")
    candidates = [Path(named)] if named else [ROOT / "../shared/data", ROOT / "../../shared/data"]
    for folder in candidates:
        if (folder / "carbon").is_dir():
            return (folder / "carbon").resolve()
    pytest.skip("no shared data: set GRIDSERVE_SHARED_DATA to the folder that holds carbon/")


@pytest.fixture
def noon() -> datetime:
    return datetime(2025, 3, 4, 12, 0, tzinfo=UTC)
