"""Large CPU buffers on transparent huge pages: fewer TLB misses for weights and scattered KV blocks."""

from __future__ import annotations

import mmap
import threading

import torch

HUGE_PAGE_BYTES = 2 << 20
REGION_BYTES = 32 << 20  # smaller buffers share regions of this size
ALIGNMENT_BYTES = 64

_lock = threading.Lock()
_shared_region = torch.empty(0, dtype=torch.uint8)  # what is left of the region being handed out


def empty_huge(num_bytes: int) -> torch.Tensor:
    """Zeroed uint8 buffer `[num_bytes]`, 64-byte aligned; the kernel is asked for huge pages where it has them.

    Buffers below `REGION_BYTES` share regions, whose memory returns when all of a region's buffers are gone: made for
    weights and caches, which live as long as the model.
    """
    global _shared_region
    if num_bytes >= REGION_BYTES:
        return _map(num_bytes)
    wanted = -(-num_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    with _lock:
        if _shared_region.numel() < wanted:
            _shared_region = _map(REGION_BYTES)
        buffer, _shared_region = _shared_region[:num_bytes], _shared_region[wanted:]
    return buffer


def _map(num_bytes: int) -> torch.Tensor:
    size = -(-num_bytes // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
    mapping = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        mapping.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(mapping, dtype=torch.uint8)[:num_bytes]
