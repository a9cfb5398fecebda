"""Machine code for the arithmetic that the simulator does millions of times, by numba, kept on disk between runs.

Compiled code calls the C library's `pow` and `expm1` as Python does and neither reorders nor fuses operations, so
that the same expressions give the same bits as in `power`; tests hold the two together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

from engine.model_store import cache_folder

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compiled at the first call. Give each argument always as the same type: another one compiles anew."""
    try:
        return cast("Function", numba.njit(cache=True)(function))
    except RuntimeError:
        # Nothing can be kept on disk: every process compiles for itself.
        return cast("Function", numba.njit(function))


def _stamp() -> str:
    """Changes with any compiled source: numba itself looks only at the file of a function, not at what it calls."""
    sources = sorted((*Path(__file__).parent.glob("*_arithmetic.py"), Path(__file__).with_name("step_log.py")))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]


numba.config.CACHE_DIR = str(cache_folder() / "compiled" / _stamp())
