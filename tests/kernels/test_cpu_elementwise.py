"""Norms, SiLU, rotation and cache writes of the compiled library against their definitions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kernels import ops, reference
from kernels.cpu import ops as cpu

DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 576), (7, 64), (90, 576), (5, 3, 128)])
def test_rms_norm(any_library, relative_error, gates, dtype, shape):
    x, weight = torch.randn(shape).to(dtype), torch.randn(shape[-1]).to(dtype)
    out = cpu.norm(x, None, weight, 1e-5)[0]
    assert relative_error(out, reference.rms_norm(x.double(), weight.double(), 1e-5)) < gates[dtype]


def test_rms_norm_of_heads_inside_a_wider_row(native):
    qkv, weight = torch.randn(6, 5 * 64).bfloat16(), torch.randn(64).bfloat16()
    heads = qkv.view(6, 5, 64)[:, 1:3]
    assert torch.equal(ops.rms_norm(heads, weight, 1e-6), ops.rms_norm(heads.contiguous(), weight, 1e-6))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 90])
def test_add_rms_norm(any_library, relative_error, gates, dtype, tokens):
    x, residual = (torch.randn(tokens, 576).to(dtype) for _ in range(2))
    weight = torch.randn(576).to(dtype)
    normed, total = cpu.norm(x, residual, weight, 1e-5)
    assert torch.equal(total, x + residual)
    assert relative_error(normed, reference.rms_norm(total.double(), weight.double(), 1e-5)) < gates[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 50])
def test_silu_and_mul(any_library, relative_error, gates, dtype, tokens):
    gate_up = (torch.randn(tokens, 2 * 1536) * 4).to(dtype)
    out = cpu.silu_and_mul(gate_up)
    assert relative_error(out, reference.silu_and_mul(gate_up.double())) < gates[dtype]


def test_silu_of_extremes(native):
    gate = torch.tensor([-1e4, -200.0, -90.0, 0.0, 90.0, 200.0, 1e4, torch.nan] * 2)
    out = ops.silu_and_mul(torch.cat((gate, torch.ones(16))).unsqueeze(0))
    expected = torch.nn.functional.silu(gate).unsqueeze(0)
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-30, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [64, 96, 128])
def test_rope_and_write_kv(any_library, paged_batch, relative_error, gates, dtype, head_dim):
    batch = paged_batch([1, 1, 40], [17, 33, 50], head_dim=head_dim, dtype=dtype)
    tokens = batch.q.shape[0]
    slots = batch.metadata.slot_mapping.clone()
    slots[5] = -1
    metadata = replace(batch.metadata, slot_mapping=slots)
    qkv = torch.randn(tokens, 15, head_dim).to(dtype)
    q, k, v = qkv.split([9, 3, 3], dim=1)
    angles = torch.rand(64, head_dim // 2) * 6
    cos_sin = torch.cat((angles.cos(), angles.sin()), dim=1)
    wanted = [cache.clone() for cache in (batch.k_cache, batch.v_cache)]
    before = batch.k_cache.clone()
    wanted_q = reference.rope_and_write_kv(q, k, v, *wanted, cos_sin, metadata)
    got_q = cpu.rope_and_write_kv(q, k, v, batch.k_cache, batch.v_cache, cos_sin, metadata)
    assert relative_error(got_q, wanted_q) < gates[dtype]
    assert torch.equal(batch.v_cache.nan_to_num(99), wanted[1].nan_to_num(99))
    assert torch.equal(batch.k_cache.isnan(), wanted[0].isnan())
    assert relative_error(batch.k_cache.nan_to_num(0), wanted[0].nan_to_num(0)) < gates[dtype]
    written = torch.zeros(before.shape[0], before.shape[2], dtype=torch.bool)
    kept = slots[slots >= 0]
    written[kept // 16, kept % 16] = True
    same = (batch.k_cache == before) | (batch.k_cache.isnan() & before.isnan())
    assert same.transpose(1, 2)[~written].all()
    assert not same.transpose(1, 2)[written].all(dim=(1, 2)).any()


def test_ops_match_the_definitions_without_the_library(monkeypatch, paged_batch, relative_error):
    monkeypatch.setattr("kernels.cpu.library._load", lambda: (None, "test"))
    batch = paged_batch([1, 9], [50, 40])
    out = ops.paged_attention(batch.q, batch.k_cache, batch.v_cache, batch.metadata, 0.125)
    assert torch.equal(out, reference.paged_attention(batch.q, batch.k_cache, batch.v_cache, batch.metadata, 0.125))
    x = torch.randn(3, 64)
    assert torch.equal(ops.silu_and_mul(x), reference.silu_and_mul(x))


@pytest.mark.parametrize("dtype", DTYPES)
def test_greedy_argmax_takes_the_first_of_equals(dtype):
    logits = torch.randn(6, 500).to(dtype)
    logits[0, [7, 400]] = logits[1, [499, 3]] = 9
    logits[2, 5] = torch.nan
    found = ops.greedy_argmax(logits)
    assert found[:3].tolist() == [7, 3, -1]
    assert torch.equal(found[3:], logits[3:].argmax(dim=-1))
    assert ops.greedy_argmax(logits[:0]).shape == (0,)
