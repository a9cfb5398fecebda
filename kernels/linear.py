"""Linear layers in the weight formats the engine serves, packed once at load."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional as F


class WeightFormat(enum.StrEnum):
    """How weights are held: `FP32` is the reference; `BF16` the default; `INT4` keeps 4-bit blocks where it can."""

    FP32 = "fp32"
    BF16 = "bf16"
    INT4 = "int4"


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
        scales = self.scales.repeat_interleave(self.block, dim=1)
        return self.codes.float() * scales + self.minimums.repeat_interleave(self.block, dim=1)


Weight = torch.Tensor | Int4Blocks


class Linear(Protocol):
    """A packed linear layer: `[T, K] -> [T, N]` in the dtype of the activations it was made for."""

    in_features: int
    out_features: int

    def __call__(self, x: torch.Tensor) -> torch.Tensor: ...


class DenseLinear:
    """`F.linear` on a dense weight `[N, K]`."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.out_features, self.in_features = weight.shape
        self._weight = weight
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self._weight, self._bias)


def activation_dtype(weight_format: WeightFormat) -> torch.dtype:
    return torch.float32 if weight_format is WeightFormat.FP32 else torch.bfloat16


def make_linear(weight: Weight, bias: torch.Tensor | None, weight_format: WeightFormat) -> Linear:
    """Pack `weight` (`[N, K]`, dense or 4-bit blocks) for its device; activations are `activation_dtype(format)`."""
    dtype = activation_dtype(weight_format)
    dense = weight.dequantize() if isinstance(weight, Int4Blocks) else weight
    return DenseLinear(dense.to(dtype), None if bias is None else bias.to(dtype))
