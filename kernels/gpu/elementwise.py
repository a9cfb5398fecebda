"""SiLU times up, and the rows of the embedding: plain streams, one program a tile of one row."""
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.gpu import checks

_BLOCK = 1024


@triton.jit
def silu_and_mul_kernel(out, gate_up, stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < WIDTH
    gate = tl.load(gate_up + row * stride + columns, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * stride + WIDTH + columns, mask=mask, other=0.0).to(tl.float32)
    # silu is rounded before the product, as in the definition.
    activated = (gate * tl.sigmoid(gate)).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + row * WIDTH + columns, (activated * up).to(out.dtype.element_ty), mask=mask)


@triton.jit
def embedding_kernel(out, token_ids, table, stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < WIDTH
    token = tl.load(token_ids + row)
    tl.store(out + row * WIDTH + columns, tl.load(table + token * stride + columns, mask=mask), mask=mask)


def silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """`silu(gate) * up` for `gate_up` `[T, 2 * I]` with the gate in the first half; returns `[T, I]`."""
    checks.shape("gate_up", gate_up, None, None)
    checks.dtype("gate_up", gate_up, *checks.FLOATS)
    checks.dense_tail("gate_up", gate_up)
    checks.require(gate_up.shape[1] % 2 == 0, f"gate_up must have an even width, got {gate_up.shape[1]}")
    tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((tokens, width), dtype=gate_up.dtype, device=gate_up.device)
    if tokens > 0:
        silu_and_mul_kernel[(tokens, triton.cdiv(width, _BLOCK))](
            out, gate_up, gate_up.stride(0), WIDTH=width, BLOCK=_BLOCK, num_warps=4
        )
    return out


def embedding(token_ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Rows of `table` `[V, H]` at `token_ids` `[T]` int64: `[T, H]`. Ids outside `[0, V)` read what they should not."""
    checks.shape("token_ids", token_ids, None)
    checks.shape("table", table, None, None)
    checks.dtype("token_ids", token_ids, torch.int64)
    checks.dense_tail("table", table)
    checks.same_device(token_ids=token_ids, table=table)
    tokens, width = token_ids.shape[0], table.shape[1]
    out = torch.empty((tokens, width), dtype=table.dtype, device=table.device)
    if tokens > 0:
        embedding_kernel[(tokens, triton.cdiv(width, _BLOCK))](
            out, token_ids, table, table.stride(0), WIDTH=width, BLOCK=_BLOCK, num_warps=4
        )
    return out
