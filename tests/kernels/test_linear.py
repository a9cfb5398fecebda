"""Packed linears: accuracy, the 4-bit form's exactness, and rows that do not depend on the batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels.cpu.abi import Packing
from kernels.cpu.packing import PackedLinear
from kernels.gpu import definitions
from kernels.linear import Int4Blocks, Int8Blocks, Int8Linear, OneDnnLinear, compute_logits, make_linear, quantize_int8
from kernels.weight_format import WeightFormat

ROOT = Path(__file__).parents[2]
SHAPES = [(960, 576), (576, 576), (3072, 576), (576, 1536), (1000, 64), (50, 32)]
BATCHES = (1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 127, 300)


def int4_blocks(n, k, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Int4Blocks(
        codes=torch.randint(0, 16, (n, k), dtype=torch.uint8, generator=generator),
        scales=(torch.rand(n, k // 32, generator=generator) * 0.01).half().float(),
        minimums=(-torch.rand(n, k // 32, generator=generator) * 0.08).half().float(),
    )


def int8_blocks(n, k, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Int8Blocks(
        codes=torch.randint(-128, 128, (n, k), dtype=torch.int8, generator=generator),
        scales=(torch.randn(n, k // 32, generator=generator) * 0.01).half().float(),
    )


@pytest.mark.parametrize("shape", [*SHAPES, (100, 70), (50, 6)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_bf16_against_fp64(any_library, relative_error, shape, with_bias):
    weight, x = torch.randn(shape).bfloat16(), torch.randn(11, shape[1]).bfloat16()
    bias = torch.randn(shape[0]) if with_bias else None
    linear = make_linear(weight, bias, WeightFormat.BF16)
    assert isinstance(linear, PackedLinear)
    expected = torch.nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    assert relative_error(linear(x), expected) < 4e-3
    assert relative_error(linear(x, torch.float32), expected) < 1e-6


@pytest.mark.parametrize("shape", SHAPES)
def test_a_row_has_the_same_bits_at_every_batch_size_and_thread_count(any_library, shape):
    x = torch.randn(max(BATCHES), shape[1]).bfloat16()
    for linear in (
        make_linear(torch.randn(shape), None, WeightFormat.BF16),
        make_linear(int4_blocks(*shape), None, WeightFormat.INT4),
        make_linear(int8_blocks(*shape), None, WeightFormat.INT4),
    ):
        assert linear.batch_invariant
        any_library.set_threads(1)
        alone = torch.cat([linear(row.unsqueeze(0)) for row in x])
        for threads in (1, 2):
            any_library.set_threads(threads)
            for tokens in BATCHES:
                assert torch.equal(linear(x[:tokens]), alone[:tokens])
                assert torch.equal(linear(x[-tokens:]), alone[-tokens:])
    any_library.set_threads(1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("blocks_of", "packing", "bits"), [(int4_blocks, Packing.INT4, 5), (int8_blocks, Packing.INT8, 8.5)]
)
def test_blocks_give_the_dequantised_weight(any_library, relative_error, shape, blocks_of, packing, bits):
    """The very bits of the bf16 form where weights are rounded to bf16, else the weights unrounded."""
    blocks, bias, x = blocks_of(*shape), torch.randn(shape[0]), torch.randn(33, shape[1]).bfloat16()
    packed = make_linear(blocks, bias, WeightFormat.INT4)
    assert isinstance(packed, PackedLinear)
    assert packed.packing is packing
    dense = make_linear(blocks.dequantize(), bias, WeightFormat.BF16)
    exact = x.double() @ blocks.dequantize().double().T + bias.double()
    for tokens in (1, 2, 3, 4, 5, 8, 33):
        if any_library.rounds_blocks:
            assert torch.equal(packed(x[:tokens]), dense(x[:tokens]))
        else:
            assert relative_error(packed(x[:tokens], torch.float32), exact[:tokens]) < 1e-6
    if shape[0] % 48 == 0:
        assert packed.weight_bytes == shape[0] * shape[1] * bits / 8


PRODUCTS = """
import sys, torch
from tests.kernels.test_linear import int4_blocks, int8_blocks
from kernels.linear import make_linear
from kernels.weight_format import WeightFormat
torch.manual_seed(0)
found = []
for n, k in ((100, 576), (60, 70)):
    x, bias = torch.randn(75, k).bfloat16(), torch.randn(n)
    made = [make_linear(torch.randn(n, k), bias, WeightFormat.BF16)]
    if k % 32 == 0:
        made += [make_linear(each(n, k), bias, WeightFormat.INT4) for each in (int4_blocks, int8_blocks)]
    found += [linear(x[:rows], torch.float32) for linear in made for rows in (1, 2, 4, 5, 16, 19, 32, 33, 75)]
torch.save(found, sys.argv[1])
"""


def test_tiles_and_the_vectors_that_stand_in_for_them_give_the_same_bits(tmp_path):
    """A system may deny a process the registers of tiles: other machines must not give other answers for it."""
    with open("/proc/cpuinfo", encoding="utf-8") as cpuinfo:
        if "amx_bf16" not in cpuinfo.read().split():
            pytest.skip("this CPU multiplies no tiles of bf16 (amx_bf16)")
    found = []
    for tiles in ("1", "0"):
        path = tmp_path / tiles
        environment = {**os.environ, "GRIDSERVE_CPU_TILES": tiles}
        subprocess.run([sys.executable, "-c", PRODUCTS, str(path)], env=environment, check=True, cwd=ROOT, timeout=120)
        found.append(torch.load(path))
    assert len(found[0]) == 36
    assert all(torch.equal(tile, vector) for tile, vector in zip(*found))


def test_int4_with_scales_beyond_half_precision_is_kept_in_bf16(native):
    blocks = int4_blocks(64, 64)
    finer = Int4Blocks(blocks.codes, blocks.scales + 1e-9, blocks.minimums)
    linear = make_linear(finer, None, WeightFormat.INT4)
    assert isinstance(linear, PackedLinear)
    assert linear.packing is Packing.BF16


def test_dequantize():
    blocks = Int4Blocks(
        codes=torch.arange(64, dtype=torch.uint8).view(1, 64) % 16,
        scales=torch.tensor([[2.0, 3.0]]),
        minimums=torch.tensor([[-1.0, 5.0]]),
    )
    expected = torch.arange(64) % 16 * torch.tensor([2.0, 3.0]).repeat_interleave(32)
    expected += torch.tensor([-1.0, 5.0]).repeat_interleave(32)
    assert torch.equal(blocks.dequantize(), expected.unsqueeze(0))


def test_int4_falls_back_to_the_same_values(any_library, relative_error):
    blocks, x = int4_blocks(96, 64), torch.randn(3, 64).bfloat16()
    linear = make_linear(blocks, None, WeightFormat.INT4)
    expected = x.double() @ blocks.dequantize().bfloat16().double().T
    assert relative_error(linear(x), expected) < 4e-3


def test_fp32_and_torch_fallbacks(monkeypatch, relative_error):
    monkeypatch.setattr("kernels.cpu.library._load", lambda: (None, "test"))
    weight, bias, x = torch.randn(80, 64), torch.randn(80), torch.randn(5, 64)
    expected = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
    full = make_linear(weight, bias, WeightFormat.FP32)
    assert not full.batch_invariant
    assert relative_error(full(x), expected) < 1e-6
    half = make_linear(weight, bias, WeightFormat.BF16)
    assert isinstance(half, OneDnnLinear)
    assert relative_error(half(x.bfloat16()), expected) < 1e-2
    blocks = int4_blocks(80, 64)
    expected = x.double() @ blocks.dequantize().double().T
    assert relative_error(make_linear(blocks, None, WeightFormat.INT4)(x.bfloat16()), expected) < 1e-2


def test_wrong_input_is_refused(native):
    linear = make_linear(torch.randn(16, 32), None, WeightFormat.BF16)
    with pytest.raises(ValueError, match="bf16"):
        linear(torch.randn(2, 32))
    with pytest.raises(ValueError, match=r"\[T, 32\]"):
        linear(torch.randn(2, 30).bfloat16())


def test_odd_inputs_use_torch(native, relative_error):
    weight, x = torch.randn(20, 33), torch.randn(4, 33).bfloat16()
    linear = make_linear(weight, None, WeightFormat.BF16)
    assert not isinstance(linear, PackedLinear)
    assert relative_error(linear(x), x.double() @ weight.double().T) < 1e-2


@pytest.mark.parametrize("shape", SHAPES)
def test_int8_channels_are_the_nearest_of_255_codes(shape):
    weight = torch.randn(shape)
    weight[3] = 0.0
    weight[4] = 1e-9
    rounded = quantize_int8(weight)
    scales = rounded.scales[:, None]
    assert ((rounded.dequantize() - weight).abs() <= 0.5001 * scales + 127 * 2**-11 * scales).all()
    assert torch.equal(rounded.codes[3], torch.zeros_like(rounded.codes[3]))
    assert (rounded.codes[4] == 127).all(), "a scale below a half's normal range is kept as it is"
    ordinary = torch.arange(shape[0]) != 4
    assert torch.equal(rounded.scales.half().float()[ordinary], rounded.scales[ordinary])


def test_rounding_in_parts_changes_nothing(monkeypatch):
    weight = torch.randn(100, 64)
    whole = quantize_int8(weight)
    monkeypatch.setattr("kernels.linear._QUANTIZE_ELEMENTS", 640)
    parts = quantize_int8(weight)
    assert torch.equal(parts.codes, whole.codes)
    assert torch.equal(parts.scales, whole.scales)


@pytest.mark.parametrize("shape", SHAPES)
def test_int8_channels_on_a_cpu(any_library, relative_error, shape):
    """Packed where the library can, and within bf16 of the definition; without it the definition itself."""
    weight, bias, x = quantize_int8(torch.randn(shape)), torch.randn(shape[0]), torch.randn(9, shape[1]).bfloat16()
    packed = make_linear(weight, bias, WeightFormat.INT8)
    assert isinstance(packed, PackedLinear)
    assert packed.packing is Packing.INT8
    exact = x.double() @ weight.dequantize().double().T + bias.double()
    assert relative_error(packed(x), exact) < 6e-3
    assert relative_error(compute_logits(packed, x), exact) < (4e-3 if any_library.rounds_blocks else 1e-6)
    plain = Int8Linear(weight, bias)
    assert relative_error(compute_logits(plain, x), exact) < 1e-6
    assert torch.equal(Int8Linear(weight, None)(x), definitions.linear(x, weight))


def test_int8_channels_that_cannot_be_packed_follow_the_definition():
    weight = quantize_int8(torch.randn(20, 40))
    linear = make_linear(weight, None, WeightFormat.INT8)
    assert isinstance(linear, Int8Linear)
    assert not linear.batch_invariant
