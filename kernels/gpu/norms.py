"""Root-mean-square norms: a row is read once, kept in registers, summed in fp32 and written once.

A tile holds as many rows as fill it; how many depends on the width alone, so a row's sum never depends on the batch.
"""
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.gpu import checks

_TILE_ELEMENTS = 2048


@triton.jit(do_not_specialize=["num_rows"])
def rms_norm_kernel(
    out,
    total_out,
    x,
    residual,
    weight,
    num_rows,
    inner,
    x_stride_outer,
    x_stride_inner,
    residual_stride,
    eps,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    ADD: tl.constexpr,
):
    """Row r of x begins at `(r // inner) * x_stride_outer + (r % inner) * x_stride_inner`; outputs are dense."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    mask = (rows < num_rows)[:, None] & (columns < WIDTH)[None, :]
    wide_rows = rows.to(tl.int64)
    begin = wide_rows // inner * x_stride_outer + wide_rows % inner * x_stride_inner
    values = tl.load(x + begin[:, None] + columns[None, :], mask=mask, other=0.0).to(tl.float32)
    dense = wide_rows[:, None] * WIDTH + columns[None, :]
    if ADD:
        at = wide_rows[:, None] * residual_stride + columns[None, :]
        values += tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
        # The sum is rounded to the dtype of x before it is normed, as in the definition.
        rounded = values.to(total_out.dtype.element_ty)
        tl.store(total_out + dense, rounded, mask=mask)
        values = rounded.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(values * values, 1) / WIDTH + eps)
    normed = (values * inverse[:, None]).to(out.dtype.element_ty).to(tl.float32)
    factor = tl.load(weight + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
    tl.store(out + dense, (normed * factor[None, :]).to(out.dtype.element_ty), mask=mask)


def _launch(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    width = x.shape[-1]
    checks.shape("weight", weight, width)
    checks.dtype("x", x, *checks.FLOATS)
    checks.dense_tail("x", x)
    checks.dense_tail("weight", weight)
    checks.require(width <= 65536, f"a norm over {width} elements does not fit one program; at most 65536")
    checks.same_device(x=x, residual=residual, weight=weight)
    rows = x if x.dim() == 3 else x.reshape(-1, 1, width)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = torch.empty_like(out) if residual is not None else out
    num_rows = rows.shape[0] * rows.shape[1]
    block = triton.next_power_of_2(width)
    per_program = max(1, _TILE_ELEMENTS // block)
    if num_rows > 0:
        rms_norm_kernel[(triton.cdiv(num_rows, per_program),)](
            out,
            total,
            rows,
            residual,
            weight,
            num_rows,
            rows.shape[1],
            rows.stride(0),
            rows.stride(1),
            residual.stride(0) if residual is not None else 0,
            eps,
            WIDTH=width,
            BLOCK=block,
            ROWS=per_program,
            ADD=residual is not None,
            num_warps=min(16, max(4, block // 512)),
        )
    return out, total


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Root-mean-square norm over the last dimension. Shapes: x `[..., H]`, weight `[H]`; x may be strided outside."""
    return _launch(x, None, weight, eps)[0]


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns `(rms_norm(x + residual), x + residual)`, both `[T, H]` in the dtype of `x`."""
    checks.shape("x", x, None, None)
    checks.shape("residual", residual, *x.shape)
    checks.dtype("residual", residual, x.dtype)
    checks.dense_tail("residual", residual)
    return _launch(x, residual, weight, eps)
