"""The operations the engine calls, for CUDA tensors: as in `kernels.ops`, and those only GPUs have."""

from __future__ import annotations

from kernels.gpu.attention import paged_attention

__all__ = ["paged_attention"]
