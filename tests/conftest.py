"""Fixtures every test may use."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernels.threads import configure_environment

# Before torch is imported: its OpenMP threads would otherwise spin against whatever else the machine runs.
configure_environment()

from engine.model_store import resolve_model  # noqa: E402


@pytest.fixture(scope="session")
def embedded_model() -> Path:
    """The built-in model's GGUF file, fetched through the model store when this machine does not have it yet."""
    return resolve_model("smollm2-135m-instruct")
