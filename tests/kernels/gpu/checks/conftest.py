"""Fixtures of the kernel checks; under TRITON_INTERPRET=1 they run on the CPU, with narrow floats mended."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if INTERPRETED:
    sys.path.insert(0, str(Path(__file__).parent))
    import interpreter_fixes

    interpreter_fixes.install()


@pytest.fixture
def device() -> torch.device:
    return torch.device("cpu" if INTERPRETED else "cuda")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(20)


@pytest.fixture
def deterministic() -> Iterator[None]:
    from kernels.gpu import tuning

    tuning.set_deterministic(True)
    yield
    tuning.set_deterministic(False)


@pytest.fixture
def close() -> Callable[..., None]:
    """Relative error of the whole result against the definition computed in fp64 or fp32."""
    limits = {torch.float32: 1e-6 if INTERPRETED else 1e-5, torch.float16: 1e-3, torch.bfloat16: 4e-3}

    def check(actual: torch.Tensor, expected: torch.Tensor, limit: float | None = None) -> None:
        assert actual.shape == expected.shape
        assert actual.isfinite().all(), "the kernel left or computed a value that is not finite"
        error = (actual.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-12)
        allowed = limits[actual.dtype] if limit is None else limit
        assert float(error) <= allowed, f"relative error {float(error):.2e} is above {allowed:.0e}"

    return check
