"""The cache's shapes, sizes and layout."""

from __future__ import annotations

import itertools

import pytest
import torch

from kernels.cpu.memory import empty_huge
from kernels.kv_cache import allocate_kv_caches, kv_bytes_per_block


def test_bytes_of_smollm2():
    """30 layers x 3 heads x 64 dimensions x 2 (K, V) x 2 bytes = 23,040 bytes per token."""
    assert kv_bytes_per_block(30, 3, 16, 64, torch.bfloat16) == 16 * 23_040


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_layout(dtype):
    caches = allocate_kv_caches(4, 10, 3, 16, 64, dtype, "cpu")
    assert len(caches) == 4
    storage = caches[0][0].untyped_storage()
    assert storage.nbytes() >= 10 * kv_bytes_per_block(4, 3, 16, 64, dtype)
    for k_cache, v_cache in caches:
        assert k_cache.shape == v_cache.shape == (10, 3, 16, 64)
        assert k_cache.stride()[1:] == (16 * 64, 64, 1)
        assert v_cache.data_ptr() - k_cache.data_ptr() == 3 * 16 * 64 * dtype.itemsize
        assert not k_cache.any()
    for index, pair in enumerate(caches):
        for offset, cache in enumerate(pair):
            cache.fill_(2 * index + offset)
    assert [float(cache.float().mean()) for pair in caches for cache in pair] == list(range(8))


def test_a_large_cache_outlives_its_allocation():
    (k_cache, v_cache), *_ = allocate_kv_caches(2, 64, 8, 16, 128, torch.bfloat16, "cpu")
    v_cache[63] = 7
    assert float(v_cache[63].float().min()) == 7
    assert k_cache.data_ptr() % 64 == 0


def test_sizes_must_be_positive():
    with pytest.raises(ValueError, match="positive"):
        allocate_kv_caches(2, 0, 3, 16, 64, torch.bfloat16, "cpu")


def test_huge_buffers_are_zeroed_aligned_and_apart():
    sizes = [1, 100, 64, 5 << 20, 31 << 20, 40 << 20, 7]
    buffers = [empty_huge(size) for size in sizes]
    spans = sorted((buffer.data_ptr(), buffer.data_ptr() + buffer.numel()) for buffer in buffers)
    assert [buffer.numel() for buffer in buffers] == sizes
    assert all(begin % 64 == 0 for begin, _ in spans)
    assert all(end <= following for (_, end), (following, _) in itertools.pairwise(spans))
    assert not any(buffer.any() for buffer in buffers)
