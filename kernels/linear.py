"""Linear layers in the weight formats the engine serves, packed once at load.

On a CPU, in order of preference:

- `BF16`: the compiled kernels (`kernels.cpu`), else oneDNN's prepacked weights, else `F.linear`;
- `INT4`: the compiled kernels, which expand the codes of 4-bit and 8-bit blocks: with avx512_bf16 to exactly the bf16
  weights of `BF16`, giving the same bits, elsewhere to unrounded fp32; a dense weight, and without the kernels any, as
  `BF16`;
- `INT8`: as blocks of 8 bits that share their row's scale, else by the definition;
- `FP32`: `F.linear`.

On a GPU the Triton kernels (`kernels.gpu.linear`): `INT4` decodes 4-bit blocks in registers, `INT8` multiplies codes
and scales the sum, anything else is dense.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch.nn import functional as F

from kernels.backend import uses_triton
from kernels.cpu.packing import PackedLinear, pack_bf16, pack_int4, pack_int8
from kernels.weight_format import WeightFormat

# Bounds the fp32 copies of a weight while it is rounded.
_QUANTIZE_ELEMENTS = 1 << 24


@dataclass(frozen=True, slots=True)
class Int4Blocks:
    """A weight `[N, K]` in blocks of `block` input columns: `w = scale * code + minimum`, code 0..15.

    Attributes:
        codes: `[N, K]` uint8.
        scales, minimums: `[N, K // block]` fp32.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    minimums: torch.Tensor
    block: int = 32

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.codes.shape[1]

    def dequantize(self) -> torch.Tensor:
        """The weight as fp32 `[N, K]`."""
        blocks = self.codes.float().view(self.shape[0], -1, self.block)
        return blocks.mul_(self.scales.unsqueeze(-1)).add_(self.minimums.unsqueeze(-1)).view(self.shape)


@dataclass(frozen=True, slots=True)
class Int8Blocks:
    """A weight `[N, K]` in blocks of `block` input columns: `w = scale * code`, code -128..127.

    Attributes:
        codes: `[N, K]` int8.
        scales: `[N, K // block]` fp32.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    block: int = 32

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.codes.shape[1]

    def dequantize(self) -> torch.Tensor:
        """The weight as fp32 `[N, K]`."""
        blocks = self.codes.float().view(self.shape[0], -1, self.block)
        return blocks.mul_(self.scales.unsqueeze(-1)).view(self.shape)


@dataclass(frozen=True, slots=True)
class Int8Channels:
    """A weight `[N, K]` with a scale for each output: `w = scale * code`, codes int8 `[N, K]`, scales fp32 `[N]`."""

    codes: torch.Tensor
    scales: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.codes.shape[1]

    def dequantize(self) -> torch.Tensor:
        """The weight as fp32 `[N, K]`."""
        return self.codes.float() * self.scales[:, None]


def quantize_int8(weight: torch.Tensor) -> Int8Channels:
    """Symmetric int8: the largest magnitude of each row maps to 127.

    Scales are IEEE halves, except where those would be subnormal: so a CPU computes the very weights of a GPU.
    """
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scales = torch.empty(weight.shape[0], dtype=torch.float32, device=weight.device)
    step = max(1, _QUANTIZE_ELEMENTS // weight.shape[1])
    for start in range(0, weight.shape[0], step):
        rows = slice(start, start + step)
        wide = weight[rows].float()
        exact = wide.abs().amax(dim=1) / 127.0
        halves = exact.half().float()
        scales[rows] = torch.where(halves >= torch.finfo(torch.float16).smallest_normal, halves, exact)
        divisors = torch.where(scales[rows] > 0, scales[rows], 1.0)
        codes[rows] = (wide / divisors[:, None]).round_().clamp_(-127, 127).to(torch.int8)
    return Int8Channels(codes, scales)


Weight = torch.Tensor | Int4Blocks | Int8Blocks | Int8Channels


class Linear(Protocol):
    """A packed linear layer: `[T, K] -> [T, N]` in the dtype of the activations it was made for.

    Attributes:
        batch_invariant: a row's result has the same bits whatever the other rows and however many.
    """

    in_features: int
    out_features: int

    @property
    def batch_invariant(self) -> bool: ...

    def __call__(self, x: torch.Tensor) -> torch.Tensor: ...


class DenseLinear:
    """`F.linear` on a dense weight `[N, K]`; the order of fp32 sums changes with the batch size."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.out_features, self.in_features = weight.shape
        self.batch_invariant = weight.dtype is torch.bfloat16 and weight.device.type == "cpu"
        self._weight = weight
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self._weight, self._bias)


class OneDnnLinear:
    """bf16 weights in oneDNN's blocked layout: twice `F.linear` at small batches, through private torch operators."""

    batch_invariant = True

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.out_features, self.in_features = weight.shape
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 1)
        self._bias = bias

    @staticmethod
    def supported() -> bool:
        return hasattr(torch.ops.mkldnn, "_reorder_linear_weight")

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, "none", [], "")
        return out


class Int8Linear:
    """The definition of a product with int8 codes: exact in fp32, the scale multiplies the sum, one rounding."""

    batch_invariant = False

    def __init__(self, weight: Int8Channels, bias: torch.Tensor | None) -> None:
        self.out_features, self.in_features = weight.shape
        self._weight = weight
        self._bias = None if bias is None else bias.float()

    def __call__(self, x: torch.Tensor, out_dtype: torch.dtype | None = None) -> torch.Tensor:
        sums = (x.float() @ self._weight.codes.float().T) * self._weight.scales
        return (sums if self._bias is None else sums + self._bias).to(out_dtype or x.dtype)


def activation_dtype(weight_format: WeightFormat) -> torch.dtype:
    return torch.float32 if weight_format is WeightFormat.FP32 else torch.bfloat16


def make_linear(weight: Weight, bias: torch.Tensor | None, weight_format: WeightFormat) -> Linear:
    """Pack `weight` (`[N, K]`, dense or blocks) for its device; activations are `activation_dtype(format)`."""
    device = weight.device if isinstance(weight, torch.Tensor) else weight.codes.device
    if uses_triton(device):
        return _triton_linear(weight, bias, weight_format)
    dtype = activation_dtype(weight_format)
    packed = _pack_blocks(weight, bias) if weight_format in (WeightFormat.INT4, WeightFormat.INT8) else None
    if packed is not None:
        return packed
    if isinstance(weight, Int8Channels):
        return Int8Linear(weight, bias)
    dense = (weight if isinstance(weight, torch.Tensor) else weight.dequantize()).to(dtype)
    if dtype is torch.bfloat16 and dense.device.type == "cpu":
        packed = pack_bf16(dense, bias)
        if packed is not None:
            return packed
    bias = None if bias is None else bias.to(dtype)
    if dtype is torch.bfloat16 and dense.device.type == "cpu" and OneDnnLinear.supported():
        try:
            return OneDnnLinear(dense, bias)
        except (RuntimeError, NotImplementedError):
            return DenseLinear(dense, bias)
    return DenseLinear(dense, bias)


def compute_logits(lm_head: Linear, hidden: torch.Tensor) -> torch.Tensor:
    """fp32 logits `[R, vocab]` of hidden states `[R, H]`; a packed head's sums stay fp32 instead of passing bf16."""
    if isinstance(lm_head, PackedLinear | Int8Linear) or uses_triton(hidden.device):
        wide: torch.Tensor = cast(Any, lm_head)(hidden, torch.float32)
        return wide
    return lm_head(hidden).float()


def _triton_linear(weight: Weight, bias: torch.Tensor | None, weight_format: WeightFormat) -> Linear:
    """Int8 channels, and 4-bit blocks where the kernel takes them, as they are; everything else dense."""
    from kernels.gpu.linear import PackedLinear as TritonLinear

    dtype = activation_dtype(weight_format)
    bias = None if bias is None else bias.to(dtype)
    if isinstance(weight, Int8Channels):
        return TritonLinear(weight, bias)
    if isinstance(weight, Int4Blocks) and weight.block == 32 and weight.shape[1] % 64 == 0:
        return TritonLinear(weight, bias)
    return TritonLinear((weight if isinstance(weight, torch.Tensor) else weight.dequantize()).to(dtype), bias)


def _pack_blocks(weight: Weight, bias: torch.Tensor | None) -> PackedLinear | None:
    match weight:
        case Int4Blocks():
            return pack_int4(weight.codes, weight.scales, weight.minimums, weight.block, bias)
        case Int8Blocks():
            return pack_int8(weight.codes, weight.scales, weight.block, bias)
        case Int8Channels() if weight.shape[1] % 32 == 0:
            scales = weight.scales.unsqueeze(1).expand(-1, weight.shape[1] // 32)
            return pack_int8(weight.codes, scales, 32, bias)
    return None
