"""Fixtures every test may use."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.model_store import resolve_model


@pytest.fixture(scope="session")
def embedded_model() -> Path:
    """The built-in model's GGUF file, fetched through the model store when this machine does not have it yet."""
    return resolve_model("smollm2-135m-instruct")
