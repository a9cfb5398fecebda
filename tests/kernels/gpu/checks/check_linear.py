"""Linear layers on dense, int8 and 4-bit weights, against their definitions."""

import pytest
import torch

from kernels.gpu import definitions, ops, tuning
from kernels.linear import Int4Blocks, quantize_int8


def make_weight(kind, outputs, inputs, device, dtype):
    dense = torch.randn(outputs, inputs, device=device) / inputs**0.5
    if kind == "dense":
        return dense.to(dtype)
    return quantize_int8(dense) if kind == "int8" else definitions.quantize_int4(dense)


@pytest.mark.parametrize("kind", ["dense", "int8", "int4"])
@pytest.mark.parametrize("tokens", [1, 17, 70])
def test_linear(device, close, kind, tokens):
    weight = make_weight(kind, 200, 576, device, torch.bfloat16)
    x = torch.randn(tokens, 600, device=device).bfloat16()[:, :576]
    bias = torch.randn(200, device=device).bfloat16()
    packed = ops.pack_weight(weight)
    expected = definitions.linear(x, weight)
    close(ops.linear(x, packed), expected)
    close(ops.linear(x, packed, bias), (expected.float() + bias.float()).bfloat16(), 6e-3)


@pytest.mark.parametrize("kind", ["dense", "int8", "int4"])
def test_linear_in_fp32(device, close, kind):
    weight = make_weight(kind, 40, 192, device, torch.float32)
    x = torch.randn(3, 192, device=device)
    close(
        ops.PackedLinear(weight, None)(x),
        definitions.linear(x.double(), weight) if kind == "dense" else definitions.linear(x, weight),
    )


def test_inputs_that_are_no_multiple_of_a_step(device, close):
    weight = make_weight("dense", 65, 100, device, torch.bfloat16)
    x = torch.randn(5, 100, device=device).bfloat16()
    close(ops.PackedLinear(weight, None)(x), definitions.linear(x, weight))


@pytest.mark.parametrize("splits", [1, 2, 9])
def test_split_counts_agree(device, close, monkeypatch, splits):
    monkeypatch.setattr(tuning, "linear_splits", lambda *_: splits)
    weight = make_weight("int4", 130, 576, device, torch.float32)
    x = torch.randn(4, 576, device=device)
    bias = torch.randn(130, device=device)
    close(ops.linear(x, ops.pack_weight(weight), bias), definitions.linear(x, weight) + bias)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("kind", ["dense", "int8", "int4"])
def test_a_row_does_not_depend_on_its_neighbours(device, kind):
    weight = ops.pack_weight(make_weight(kind, 64, 512, device, torch.bfloat16))
    x = torch.randn(70, 512, device=device).bfloat16()
    together = ops.linear(x, weight)
    for row in (0, 69):
        assert torch.equal(ops.linear(x[row : row + 1], weight)[0], together[row])


def test_packing_keeps_scales_of_gguf_files_in_half_precision(device):
    dense = torch.randn(8, 128, device=device)
    exact = definitions.quantize_int4(dense)
    assert ops.pack_weight(exact).scales.dtype == torch.float32
    rounded = Int4Blocks(exact.codes, exact.scales.half().float(), exact.minimums.half().float())
    assert ops.pack_weight(rounded).scales.dtype == torch.float16
    x = torch.randn(2, 128, device=device)
    torch.testing.assert_close(ops.PackedLinear(rounded, None)(x), definitions.linear(x, rounded), rtol=1e-5, atol=1e-5)


def test_bad_weights_are_refused(device):
    weight = definitions.quantize_int4(torch.randn(8, 96, device=device))
    with pytest.raises(ValueError, match="multiple of 64"):
        ops.pack_weight(weight)
    packed = ops.pack_weight(torch.randn(8, 64, device=device))
    with pytest.raises(ValueError, match="weight must be bfloat16"):
        ops.linear(torch.randn(2, 64, device=device).bfloat16(), packed)
