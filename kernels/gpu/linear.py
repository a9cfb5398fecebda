"""Linear layers for small batches on dense, int8 or 4-bit weights: the weights are read once, decoded in registers.

The product is computed transposed, outputs x tokens, so that the long side of the matrix instruction lies along the
outputs and few tokens waste little of it. Inputs are shared out among a fixed number of splits chosen from the shape
of the weight alone; a second kernel adds the partial sums in order. No atomics: the result is a function of the row.
"""
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch.nn import functional as F

from kernels.gpu import checks, tuning
from kernels.gpu.tuning import PackedFormat
from kernels.linear import Int4Blocks, Int8Channels

_INT4_BLOCK = 32
VENDOR_TOKENS = 64
_DENSE = tl.constexpr(PackedFormat.DENSE.value)
_INT8 = tl.constexpr(PackedFormat.INT8.value)
_INT4 = tl.constexpr(PackedFormat.INT4.value)


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A weight `[N, K]` as the kernel reads it.

    Attributes:
        data: dense `[N, K]`; int8 codes `[N, K]`; or uint8 `[K / 64, N, 32]`, where byte `[g, n, j]` holds the code of
            column `64 g + j` in its low half and of column `64 g + 32 + j` in its high half: each half is one block
            of 32, and the tile of one step lies in one piece.
        scales: int8: `[N]` fp32; 4-bit: `[K / 32, N]`, fp16 where that is exact, else fp32.
        minimums: 4-bit: as scales.
    """

    kind: PackedFormat
    data: torch.Tensor
    scales: torch.Tensor | None
    minimums: torch.Tensor | None
    out_features: int
    in_features: int


def pack_weight(weight: torch.Tensor | Int8Channels | Int4Blocks) -> PackedWeight:
    """Lay a weight out for `linear`; 4-bit weights must have blocks of 32 and `K` a multiple of 64."""
    if isinstance(weight, torch.Tensor):
        return PackedWeight(PackedFormat.DENSE, weight.contiguous(), None, None, *weight.shape)
    outputs, inputs = weight.codes.shape
    if isinstance(weight, Int8Channels):
        codes = weight.codes.contiguous()
        return PackedWeight(PackedFormat.INT8, codes, weight.scales.float().contiguous(), None, outputs, inputs)
    checks.require(weight.block == _INT4_BLOCK, f"4-bit weights need blocks of {_INT4_BLOCK}, got {weight.block}")
    checks.require(inputs % 64 == 0, f"4-bit weights need a multiple of 64 inputs, got {inputs}")
    checks.require(
        weight.codes.numel() < 2**32, "4-bit weights past 2^32 elements overflow the kernel's offsets; split them"
    )
    low, high = weight.codes.reshape(outputs, inputs // 64, 2, 32).unbind(2)
    data = (low | (high << 4)).transpose(0, 1).contiguous()
    scales, minimums = weight.scales, weight.minimums
    if torch.equal(scales.half().float(), scales) and torch.equal(minimums.half().float(), minimums):
        scales, minimums = scales.half(), minimums.half()
    return PackedWeight(PackedFormat.INT4, data, scales.t().contiguous(), minimums.t().contiguous(), outputs, inputs)


@triton.jit(do_not_specialize=["num_tokens", "steps_per_split"])
def linear_kernel(
    out,
    x,
    weight,
    scales,
    minimums,
    bias,
    num_tokens,
    outputs,
    inputs,
    x_stride,
    steps_per_split,
    FORMAT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BIAS: tl.constexpr,
):
    """Partial sums of outputs x tokens over one split of the inputs; with one split, the finished result."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    begin = tl.program_id(2) * steps_per_split * BLOCK_K
    end = tl.minimum(begin + steps_per_split * BLOCK_K, inputs)
    n_mask = n < outputs
    m_mask = m < num_tokens
    x_rows = x + m.to(tl.int64)[:, None] * x_stride
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    if FORMAT == _INT4:
        tl.static_assert(BLOCK_K == 64, "one step of 4-bit weights is a pair of blocks")
        column = tl.arange(0, 32)
        rows = weight + n[:, None] * 32 + column[None, :]
        for start in range(begin, end, BLOCK_K):
            codes = tl.load(rows + (start // 64) * outputs * 32, mask=n_mask[:, None], other=0)
            at = (start // 32) * outputs + n
            scale = tl.load(scales + at, mask=n_mask, other=0.0).to(tl.float32)
            minimum = tl.load(minimums + at, mask=n_mask, other=0.0).to(tl.float32)
            low = (codes & 0xF).to(tl.float32) * scale[:, None] + minimum[:, None]
            scale = tl.load(scales + at + outputs, mask=n_mask, other=0.0).to(tl.float32)
            minimum = tl.load(minimums + at + outputs, mask=n_mask, other=0.0).to(tl.float32)
            high = (codes >> 4).to(tl.float32) * scale[:, None] + minimum[:, None]
            x_low = tl.load(x_rows + start + column[None, :], mask=m_mask[:, None], other=0.0)
            x_high = tl.load(x_rows + start + 32 + column[None, :], mask=m_mask[:, None], other=0.0)
            acc = tl.dot(low.to(x_low.dtype), tl.trans(x_low), acc, input_precision="ieee")
            acc = tl.dot(high.to(x_low.dtype), tl.trans(x_high), acc, input_precision="ieee")
    else:
        column = tl.arange(0, BLOCK_K)
        rows = weight + n.to(tl.int64)[:, None] * inputs + column[None, :]
        for start in range(begin, end, BLOCK_K):
            inside = (start + column < end)[None, :]
            values = tl.load(rows + start, mask=n_mask[:, None] & inside, other=0)
            tokens = tl.load(x_rows + start + column[None, :], mask=m_mask[:, None] & inside, other=0.0)
            acc = tl.dot(values.to(tokens.dtype), tl.trans(tokens), acc, input_precision="ieee")
        if FORMAT == _INT8:
            acc *= tl.load(scales + n, mask=n_mask, other=0.0)[:, None]
    if BIAS:
        acc += tl.load(bias + n, mask=n_mask, other=0.0).to(tl.float32)[:, None]
    first_row = tl.program_id(2).to(tl.int64) * num_tokens
    target = out + (first_row + m)[:, None] * outputs + n[None, :]
    tl.store(target, tl.trans(acc).to(out.dtype.element_ty), mask=m_mask[:, None] & n_mask[None, :])


@triton.jit(do_not_specialize=["size"])
def add_splits_kernel(out, partial, bias, size, outputs, SPLITS: tl.constexpr, BLOCK: tl.constexpr, BIAS: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < size
    total = tl.zeros([BLOCK], tl.float32)
    for split in tl.static_range(SPLITS):
        total += tl.load(partial + split * size + at, mask=mask, other=0.0)
    if BIAS:
        total += tl.load(bias + at % outputs, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=mask)


def linear(
    x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None = None, out_dtype: torch.dtype | None = None
) -> torch.Tensor:
    """`x @ w.T + bias` for x `[M, K]`: `[M, N]` in `out_dtype`, that of x by default; see `definitions.linear`.

    Sums are fp32 and rounded once, at the end.

    4-bit weights are rounded to the dtype of x before the product; int8 codes are exact in it, and their scale
    multiplies the sum.
    """
    checks.shape("x", x, None, weight.in_features)
    checks.dtype("x", x, *checks.FLOATS)
    checks.dense_tail("x", x)
    checks.same_device(x=x, weight=weight.data, bias=bias)
    if weight.kind is PackedFormat.DENSE:
        checks.dtype("weight", weight.data, x.dtype)
    if bias is not None:
        checks.shape("bias", bias, weight.out_features)
        checks.dense_tail("bias", bias)
    tokens, outputs = x.shape[0], weight.out_features
    out = torch.empty((tokens, outputs), dtype=out_dtype or x.dtype, device=x.device)
    if tokens == 0:
        return out
    config = tuning.linear_config(weight.kind, x.element_size(), tokens)
    steps = triton.cdiv(weight.in_features, config.block_k)
    n_blocks = triton.cdiv(outputs, config.block_n)
    per_split = triton.cdiv(steps, tuning.linear_splits(x.device, config, n_blocks, steps, tokens))
    splits = triton.cdiv(steps, per_split)
    partial = out
    if splits > 1:
        partial = torch.empty((splits, tokens, outputs), dtype=torch.float32, device=x.device)
    linear_kernel[(n_blocks, triton.cdiv(tokens, config.block_m), splits)](
        partial,
        x,
        weight.data,
        weight.scales,
        weight.minimums,
        bias,
        tokens,
        outputs,
        weight.in_features,
        x.stride(0),
        per_split,
        FORMAT=weight.kind.value,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        BIAS=bias is not None and splits == 1,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    if splits > 1:
        size = tokens * outputs
        add_splits_kernel[(triton.cdiv(size, 1024),)](
            out, partial, bias, size, outputs, SPLITS=splits, BLOCK=1024, BIAS=bias is not None, num_warps=4
        )
    return out


class PackedLinear:
    """A linear layer of the engine (`kernels.linear.Linear`) over `linear`.

    Dense weights for more than `VENDOR_TOKENS` tokens go to the vendor's GEMM, whose tiles suit long prefills, unless
    the mode is deterministic.
    """

    def __init__(self, weight: torch.Tensor | Int8Channels | Int4Blocks, bias: torch.Tensor | None) -> None:
        self._weight = pack_weight(weight)
        self._bias = bias
        self.out_features = self._weight.out_features
        self.in_features = self._weight.in_features

    @property
    def batch_invariant(self) -> bool:
        return tuning.deterministic()

    def __call__(self, x: torch.Tensor, out_dtype: torch.dtype | None = None) -> torch.Tensor:
        vendor = self._weight.kind is PackedFormat.DENSE and x.shape[0] > VENDOR_TOKENS and not tuning.deterministic()
        if vendor and out_dtype in (None, x.dtype):
            return F.linear(x, self._weight.data, self._bias)
        return linear(x, self._weight, self._bias, out_dtype)
