"""Where compiled Triton kernels are kept, so that only the first start on a machine compiles them."""

from __future__ import annotations

import os
from pathlib import Path

from kernels.cpu.build import cache_folder


def use_kernel_cache() -> Path:
    """Point Triton at the user's cache unless `TRITON_CACHE_DIR` says otherwise; call before kernels are launched.

    Triton keys entries by source, meta-parameters, target and version: nothing there is ever wrong, only unused.
    """
    folder = Path(os.environ.setdefault("TRITON_CACHE_DIR", str(cache_folder() / "triton")))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
