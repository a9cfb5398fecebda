"""The operations the engine calls, dispatched by device: each has its definition in `kernels.reference`."""

from __future__ import annotations

from kernels.reference import add_rms_norm, paged_attention, rms_norm, rope_and_write_kv, silu_and_mul

__all__ = ["add_rms_norm", "paged_attention", "rms_norm", "rope_and_write_kv", "silu_and_mul"]
