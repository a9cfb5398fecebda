"""Loading a tile of keys or values from the paged cache: shared by the attention kernels."""
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def page_numbers(table_row, keys, valid, PAGE: tl.constexpr, MASKED: tl.constexpr):
    """Block number of each key position as int64, so that page offsets beyond 2^31 elements stay exact."""
    pages = tl.load(table_row + keys // PAGE, mask=valid, other=0) if MASKED else tl.load(table_row + keys // PAGE)
    return pages.to(tl.int64)


@triton.jit
def load_tile(
    head_base,
    stride_block,
    pages,
    keys,
    valid,
    PAGE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    MASKED: tl.constexpr,
):
    """`[TILE, BLOCK_D]` of the cache; rows not `valid` and columns past HEAD_DIM read as 0, whatever lies there."""
    d = tl.arange(0, BLOCK_D)
    offsets = (pages * stride_block + (keys % PAGE) * HEAD_DIM)[:, None] + d[None, :]
    if MASKED:
        mask = valid[:, None] if BLOCK_D == HEAD_DIM else valid[:, None] & (d < HEAD_DIM)[None, :]
        tile = tl.load(head_base + offsets, mask=mask, other=0.0)
    elif BLOCK_D == HEAD_DIM:
        tile = tl.load(head_base + offsets)
    else:
        tile = tl.load(head_base + offsets, mask=(d < HEAD_DIM)[None, :], other=0.0)
    return tile


@triton.jit
def load_scales(head_base, stride_block, pages, keys, valid, PAGE: tl.constexpr, MASKED: tl.constexpr):
    """`[TILE]` fp32 scales of a quantised cache, one for each token and head."""
    offsets = pages * stride_block + keys % PAGE
    return tl.load(head_base + offsets, mask=valid, other=0.0) if MASKED else tl.load(head_base + offsets)
