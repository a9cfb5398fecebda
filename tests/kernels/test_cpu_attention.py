"""Compiled paged attention against its definition in fp64, and the independence of its rows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kernels import reference
from kernels.cpu import ops as cpu

# Lengths around a page of 16, the 64 keys transposed at once and the chunk of 128.
EDGES = (1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 300)


def expected(batch, scale, window=None):
    """The definition on fp32 copies (it computes in fp32), in which NaN marks what must not be read."""
    return reference.paged_attention(
        batch.q.float(), batch.k_cache.float(), batch.v_cache.float(), batch.metadata, scale, window
    )


def run(batch, window=None, scale=0.125):
    out = cpu.paged_attention(batch.q, batch.k_cache, batch.v_cache, batch.metadata, scale, window)
    assert out is not None
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 1, 40])
def test_decodes_of_ragged_lengths(any_library, paged_batch, relative_error, gates, dtype, window):
    batch = paged_batch([1] * len(EDGES), EDGES, dtype=dtype)
    assert relative_error(run(batch, window), expected(batch, 0.125, window)) < gates[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 20, 200])
def test_decodes_and_chunks_in_one_call(any_library, paged_batch, relative_error, gates, dtype, window):
    batch = paged_batch([1, 1, 5, 16, 40, 130, 129], [7, 290, 5, 16, 200, 130, 257], dtype=dtype)
    assert relative_error(run(batch, window), expected(batch, 0.125, window)) < gates[dtype]


@pytest.mark.parametrize("heads", [(3, 3), (9, 3), (8, 2), (8, 1), (14, 2), (48, 1)])
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
def test_groups_and_head_dims(native, paged_batch, relative_error, gates, heads, head_dim):
    for dtype in (torch.float32, torch.bfloat16):
        batch = paged_batch([1, 1, 20], [17, 140, 33], heads=heads, head_dim=head_dim, dtype=dtype)
        scale = head_dim**-0.5
        assert relative_error(run(batch, scale=scale), expected(batch, scale)) < gates[dtype]


@pytest.mark.parametrize("block_size", [1, 8, 12, 16, 32, 64, 256])
def test_block_sizes(native, paged_batch, relative_error, gates, block_size):
    batch = paged_batch([1, 1, 30], [5, 150, 100], block_size=block_size)
    assert relative_error(run(batch), expected(batch, 0.125)) < gates[torch.bfloat16]


def test_interleaved_cache_strides(native, paged_batch):
    batch = paged_batch([1, 9], [50, 40])
    plain = run(batch)
    together = torch.stack((batch.k_cache, batch.v_cache), dim=1)
    batch.k_cache, batch.v_cache = together[:, 0], together[:, 1]
    assert torch.equal(run(batch), plain)


def test_strided_queries(native, paged_batch):
    batch = paged_batch([1, 9], [50, 40])
    plain = run(batch)
    wide = torch.full((10, 20, 64), torch.nan, dtype=torch.bfloat16)
    wide[:, 3:12] = batch.q
    batch.q = wide[:, 3:12]
    assert torch.equal(run(batch), plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 70])
def test_a_row_has_the_same_bits_alone_in_a_chunk_and_beside_others(any_library, paged_batch, dtype, window):
    """Every position of a 300-token request: computed as one prefill, in chunks of 7, and as lone decodes."""
    whole = paged_batch([300, 1, 40], [300, 90, 170], dtype=dtype)
    together = run(whole, window)[:300]
    table = whole.metadata.block_tables[:1]
    for size in (7, 1):
        for begin in range(0, 300, size * (1 if size > 1 else 13)):
            end = min(300, begin + size)
            alone = replace(
                whole.metadata,
                query_start=torch.tensor([0, end - begin], dtype=torch.int32),
                context_lens=torch.tensor([end], dtype=torch.int32),
                block_tables=table,
                slot_mapping=whole.metadata.slot_mapping[begin:end],
                positions=whole.metadata.positions[begin:end],
            )
            out = cpu.paged_attention(whole.q[begin:end], whole.k_cache, whole.v_cache, alone, 0.125, window)
            assert torch.equal(out, together[begin:end])


def test_thread_count_does_not_change_bits(native, paged_batch):
    batch = paged_batch([1, 1, 1, 60], [500, 3, 129, 200])
    outputs = []
    for threads in (1, 2, 3):
        native.set_threads(threads)
        outputs.append(run(batch))
    native.set_threads(1)
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_nan_in_a_query_stays_in_its_row(native, paged_batch):
    batch = paged_batch([1, 6], [40, 30])
    clean = run(batch)
    batch.q[3, 4] = torch.nan
    out = run(batch)
    assert out[3, 4].isnan().all()
    out[3, 4] = clean[3, 4]
    assert torch.equal(out, clean)


def test_extreme_scores_do_not_overflow(native, paged_batch, relative_error, gates):
    batch = paged_batch([1, 30], [200, 150])
    batch.q *= 300
    assert relative_error(run(batch, scale=1.0), expected(batch, 1.0)) < gates[torch.bfloat16]


def test_not_covered_falls_back(native, paged_batch, relative_error):
    batch = paged_batch([1], [20], head_dim=24)
    assert cpu.paged_attention(batch.q, batch.k_cache, batch.v_cache, batch.metadata, 0.2) is None


@pytest.mark.parametrize("name", ["query_start", "context_lens", "slot_mapping", "positions", "block_tables"])
def test_metadata_of_another_dtype_or_shape_is_refused(native, paged_batch, name):
    batch = paged_batch([1, 9], [50, 40])
    value = getattr(batch.metadata, name)
    for wrong in (value.float(), value.unsqueeze(0)):
        batch.metadata = replace(batch.metadata, **{name: wrong})
        with pytest.raises(ValueError, match=r"metadata\."):
            run(batch)


def test_heads_that_do_not_fit_are_refused(native, paged_batch):
    batch = paged_batch([1], [20])
    batch.q = batch.q[:, :8]
    with pytest.raises(ValueError, match="do not fit"):
        run(batch)
