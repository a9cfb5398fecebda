"""Which implementation the tensors of a device go to.

CUDA tensors go to the Triton kernels, CPU tensors to the compiled library, everything else to the plain-torch
definitions. `GRIDSERVE_CPU_KERNELS=torch` sends CPU tensors to the definitions; `triton` sends them to the Triton
kernels, which only Triton's interpreter can run on a CPU: it is how they are tested without a card.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

CPU_MODES = ("auto", "torch", "triton")
# Device types whose tensors the Triton kernels take; the compile gate adds `meta`.
TRITON_DEVICES = {"cuda"}


@functools.cache
def cpu_mode() -> str:
    """`GRIDSERVE_CPU_KERNELS`, read once.

    Raises:
        ValueError: the variable holds another word, or asks for Triton kernels without their interpreter.
    """
    mode = os.environ.get("GRIDSERVE_CPU_KERNELS", "auto")
    if mode not in CPU_MODES:
        raise ValueError(f"GRIDSERVE_CPU_KERNELS={mode!r}: use {', '.join(CPU_MODES[:-1])} or {CPU_MODES[-1]}")
    if mode == "triton" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError("GRIDSERVE_CPU_KERNELS=triton runs Triton kernels on a CPU: set TRITON_INTERPRET=1 too")
    return mode


_definitions = False


@contextlib.contextmanager
def definitions_only() -> Iterator[None]:
    """Inside, no tensor goes to the Triton kernels: what they are compared with. Not for several threads."""
    global _definitions
    before, _definitions = _definitions, True
    try:
        yield
    finally:
        _definitions = before


def uses_triton(device: torch.device) -> bool:
    """Whether tensors of `device` go to `kernels.gpu`."""
    if _definitions:
        return False
    if device.type == "cpu":
        return cpu_mode() == "triton"
    return device.type in TRITON_DEVICES
