"""Large CPU buffers on transparent huge pages: fewer TLB misses for weights and scattered KV blocks."""

from __future__ import annotations

import mmap

import torch

HUGE_PAGE_BYTES = 2 << 20


def empty_huge(num_bytes: int) -> torch.Tensor:
    """Zeroed uint8 buffer `[num_bytes]`, page-aligned; the kernel is asked for huge pages where it has them."""
    if num_bytes < HUGE_PAGE_BYTES:
        return torch.zeros(num_bytes, dtype=torch.uint8)
    mapping = mmap.mmap(-1, -(-num_bytes // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        mapping.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(mapping, dtype=torch.uint8)[:num_bytes]
