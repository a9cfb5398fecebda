"""Norms, activations, embedding, rotary embedding and the write into the cache, against their definitions."""

import dataclasses

import pytest
import torch

from kernels import reference
from kernels.gpu import definitions, ops
from kernels.metadata import AttentionMetadata

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "width"), [(1, 576), (5, 4096), (70, 64), (3, 100)])
def test_rms_norm(device, close, dtype, rows, width):
    x = torch.randn(rows, width, device=device).to(dtype)
    weight = torch.randn(width, device=device).to(dtype)
    close(ops.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5))


def test_rms_norm_of_heads_inside_a_fused_projection(device, close):
    qkv = torch.randn(7, 12, 64, device=device).bfloat16()
    weight = torch.rand(64, device=device).bfloat16()
    heads = qkv[:, 2:11]
    close(ops.rms_norm(heads, weight, 1e-6), reference.rms_norm(heads, weight, 1e-6))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_add_rms_norm_rounds_the_sum_before_the_norm(device, close, dtype):
    wide = torch.randn(5, 2, 576, device=device).to(dtype)
    x, residual = wide[:, 0], wide[:, 1]
    weight = torch.randn(576, device=device).to(dtype)
    normed, total = ops.add_rms_norm(x, residual, weight, 1e-5)
    expected, expected_total = reference.add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(total, expected_total)
    close(normed, expected)
    if dtype is not torch.float32:
        # Norming the sum before it was rounded would change a good part of the last bits.
        assert (normed != expected).float().mean() < 0.01


@pytest.mark.usefixtures("deterministic")
def test_a_normed_row_does_not_depend_on_its_neighbours(device):
    x = torch.randn(40, 576, device=device).bfloat16()
    weight = torch.randn(576, device=device).bfloat16()
    together = ops.rms_norm(x, weight, 1e-5)
    assert torch.equal(ops.rms_norm(x[17:18], weight, 1e-5), together[17:18])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1536, 100, 2048])
def test_silu_and_mul(device, close, dtype, width):
    gate_up = (4 * torch.randn(5, 2 * width + 3, device=device)).to(dtype)[:, : 2 * width]
    close(ops.silu_and_mul(gate_up), reference.silu_and_mul(gate_up))


def test_embedding_copies_rows(device):
    table = torch.randn(50, 576, device=device).bfloat16()
    token_ids = torch.tensor([0, 49, 7, 7], device=device)
    assert torch.equal(ops.embedding(token_ids, table), definitions.embedding(token_ids, table))


@dataclasses.dataclass
class RopeCase:
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    cache: torch.Tensor
    cos_sin: torch.Tensor
    metadata: AttentionMetadata
    scales: definitions.KVScales | None = None

    def run(self, function, **extra):
        own = dataclasses.replace(self, cache=self.cache.clone())
        if self.scales is not None:
            own.scales = extra["scales"] = definitions.KVScales(self.scales.k.clone(), self.scales.v.clone())
        caches = own.cache[:, 0], own.cache[:, 1]
        out = function(own.q, own.k, own.v, *caches, own.cos_sin, own.metadata, **extra)
        return out, own.cache, own.scales


def rope_case(device, heads=9, kv_heads=3, head_dim=64, dtype=torch.bfloat16, cache_dtype=None, page=16):
    tokens, blocks = 6, 5
    qkv = torch.randn(tokens, heads + 2 * kv_heads, head_dim, device=device).to(dtype)
    q, k, v = qkv.split([heads, kv_heads, kv_heads], dim=1)
    cache = torch.full((blocks, 2, kv_heads, page, head_dim), torch.nan, device=device)
    scales = None
    if cache_dtype is not None:
        cache = torch.zeros_like(cache)
        poison = torch.full((2, blocks, kv_heads, page), torch.nan, device=device)
        scales = definitions.KVScales(poison[0], poison[1].clone())
    positions = torch.tensor([0, 1, 17, 40, 99, 3], device=device)
    angles = torch.outer(torch.arange(100, device=device), 1e-4 ** torch.linspace(0, 1, head_dim // 2, device=device))
    empty = torch.empty(0, dtype=torch.int32, device=device)
    slots = torch.tensor([3, 4 * page + page - 1, -1, 0, page, 2 * page + 5], device=device)
    metadata = AttentionMetadata(empty, empty, empty, slots, positions, 1, 1, 0)
    cos_sin = torch.cat((angles.cos(), angles.sin()), dim=1)
    return RopeCase(q, k, v, cache.to(cache_dtype or dtype), cos_sin, metadata, scales)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(9, 3, 64), (4, 4, 128), (8, 1, 80)])
def test_rope_and_write(device, close, dtype, heads, kv_heads, head_dim):
    case = rope_case(device, heads, kv_heads, head_dim, dtype)
    q, cache, _ = case.run(ops.rope_and_write_kv)
    expected_q, expected_cache, _ = case.run(reference.rope_and_write_kv)
    close(q, expected_q)
    written = ~expected_cache.isnan()
    assert torch.equal(cache.isnan(), ~written), "a slot was written that should not, or left out"
    close(cache[written], expected_cache[written])
    # Values are copied, not computed.
    assert torch.equal(cache[:, 1].nan_to_num(9.0), expected_cache[:, 1].nan_to_num(9.0))


def test_rope_with_head_norms(device, close):
    case = rope_case(device)
    weights = {name: torch.rand(64, device=device).bfloat16() for name in ("q_norm", "k_norm")}
    q, cache, _ = case.run(ops.rope_and_write_kv, **weights)
    expected_q, expected_cache, _ = case.run(definitions.rope_and_write_kv, **weights)
    close(q, expected_q)
    close(cache.nan_to_num(0.0), expected_cache.nan_to_num(0.0))


@pytest.mark.parametrize("cache_dtype", [torch.int8, torch.float8_e4m3fn], ids=str)
def test_a_quantised_write(device, close, cache_dtype):
    case = rope_case(device, cache_dtype=cache_dtype, dtype=torch.float32)
    case.k[3] = 0.0
    q, cache, scales = case.run(ops.rope_and_write_kv)
    expected_q, expected_cache, expected_scales = case.run(definitions.rope_and_write_kv)
    close(q, expected_q)
    for own, expected in ((scales.k, expected_scales.k), (scales.v, expected_scales.v)):
        assert torch.equal(own.isnan(), expected.isnan())
        torch.testing.assert_close(own, expected, rtol=1e-6, atol=0, equal_nan=True)
    codes, expected_codes = cache.float(), expected_cache.float()
    # fp32 sums in another order can move a value across the middle between two codes, hardly ever.
    assert (codes != expected_codes).float().mean() < 0.01
    torch.testing.assert_close(codes, expected_codes, rtol=0.126, atol=1.0 if cache_dtype is torch.int8 else 2e-3)
