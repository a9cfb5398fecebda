"""GGUF's block formats as torch tensors: to dense weights, or to 4-bit blocks where the format has them.

Formats: ggml-org/ggml `src/ggml-common.h` (block layouts) and `src/ggml-quants.c` (`dequantize_row_*`). Each
function takes the raw bytes of some blocks, uint8 `[blocks, bytes of a block]`, and gives fp32 `[blocks, weights]`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from kernels.linear import Int4Blocks, Int8Blocks

CHUNK_WEIGHTS = 1 << 22  # bounds the fp32 temporaries of one conversion to some tens of MB


def _f16(raw: torch.Tensor) -> torch.Tensor:
    """Bytes `[blocks, 2 * n]` as `n` half-precision numbers, in fp32."""
    return raw.contiguous().view(torch.float16).float()


def _nibbles(raw: torch.Tensor) -> torch.Tensor:
    """`[..., n]` bytes to `[..., 2 * n]` codes: all low nibbles, then all high nibbles."""
    return torch.cat((raw & 15, raw >> 4), dim=-1)


def _bit_fields(raw: torch.Tensor, width: int, dim: int) -> torch.Tensor:
    """Each byte's fields of `width` bits, least significant first, along a new dimension."""
    mask = (1 << width) - 1
    return torch.stack([(raw >> shift) & mask for shift in range(0, 8, width)], dim)


def _fifth_bits(raw: torch.Tensor) -> torch.Tensor:
    """Four bytes to 32 bits, least significant first."""
    return _bit_fields(raw, 1, -1).flatten(-2)


def _q4_0(raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    scale = _f16(raw[:, :2])
    return _nibbles(raw[:, 2:]), scale, scale * -8


def _q4_1(raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return _nibbles(raw[:, 4:]), _f16(raw[:, :2]), _f16(raw[:, 2:4])


def _k_scales(raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Twelve bytes to eight 6-bit scales and eight 6-bit minimums (`get_scale_min_k4`)."""
    first, second, third = raw[:, :4], raw[:, 4:8], raw[:, 8:12]
    scales = torch.cat((first & 63, (third & 15) | ((first >> 6) << 4)), dim=-1)
    minimums = torch.cat((second & 63, (third >> 4) | ((second >> 6) << 4)), dim=-1)
    return scales.float(), minimums.float()


def _q4_k(raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A superblock of 256 weights is eight blocks of 32: 32 bytes hold two of them, low nibbles first."""
    scales, minimums = _k_scales(raw[:, 4:16])
    codes = _nibbles(raw[:, 16:].view(-1, 4, 32)).view(-1, 256)
    return codes, _f16(raw[:, :2]) * scales, -_f16(raw[:, 2:4]) * minimums


def _dequantize_q4(
    unpack: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
) -> Callable[[torch.Tensor], torch.Tensor]:
    def dequantize(raw: torch.Tensor) -> torch.Tensor:
        codes, scales, minimums = unpack(raw)
        blocks = codes.view(*scales.shape, 32).float()
        return blocks.mul_(scales.unsqueeze(-1)).add_(minimums.unsqueeze(-1)).flatten(1)

    return dequantize


def _q5_0(raw: torch.Tensor) -> torch.Tensor:
    codes = _nibbles(raw[:, 6:]) | (_fifth_bits(raw[:, 2:6]) << 4)
    return (codes.float() - 16) * _f16(raw[:, :2])


def _q5_1(raw: torch.Tensor) -> torch.Tensor:
    codes = _nibbles(raw[:, 8:]) | (_fifth_bits(raw[:, 4:8]) << 4)
    return codes.float() * _f16(raw[:, :2]) + _f16(raw[:, 2:4])


def _q8_0(raw: torch.Tensor) -> torch.Tensor:
    return raw[:, 2:].contiguous().view(torch.int8).float() * _f16(raw[:, :2])


def _q5_k(raw: torch.Tensor) -> torch.Tensor:
    scales, minimums = _k_scales(raw[:, 4:16])
    codes = _nibbles(raw[:, 48:].view(-1, 4, 32)).view(-1, 8, 32) | (_bit_fields(raw[:, 16:48], 1, 1) << 4)
    scales, minimums = _f16(raw[:, :2]) * scales, _f16(raw[:, 2:4]) * minimums
    return codes.float().mul_(scales.unsqueeze(-1)).sub_(minimums.unsqueeze(-1)).flatten(1)


def _q6_k(raw: torch.Tensor) -> torch.Tensor:
    """Two halves of 128 weights; low four bits in nibbles of 64 bytes, high two bits in 32 bytes, int8 scales of 16."""
    low = _nibbles(raw[:, :128].view(-1, 2, 64)).view(-1, 2, 4, 32)
    codes = (low | (_bit_fields(raw[:, 128:192].view(-1, 2, 32), 2, 2) << 4)).float().sub_(32)
    scales = raw[:, 192:208].contiguous().view(torch.int8).float() * _f16(raw[:, 208:210])
    return codes.view(-1, 16, 16).mul_(scales.unsqueeze(-1)).flatten(1)


_UNPACK_INT4 = {
    GGMLQuantizationType.Q4_0: _q4_0,
    GGMLQuantizationType.Q4_1: _q4_1,
    GGMLQuantizationType.Q4_K: _q4_k,
}
_FLOATS = {
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
}
_DEQUANTIZE: dict[GGMLQuantizationType, Callable[[torch.Tensor], torch.Tensor]] = {
    **{kind: _dequantize_q4(unpack) for kind, unpack in _UNPACK_INT4.items()},
    GGMLQuantizationType.Q5_0: _q5_0,
    GGMLQuantizationType.Q5_1: _q5_1,
    GGMLQuantizationType.Q8_0: _q8_0,
    GGMLQuantizationType.Q5_K: _q5_k,
    GGMLQuantizationType.Q6_K: _q6_k,
}


def dequantize(raw: torch.Tensor, kind: GGMLQuantizationType, dtype: torch.dtype) -> torch.Tensor:
    """Raw rows `[N, bytes of a row]` to a dense weight `[N, K]` of `dtype`, a new tensor."""
    if kind in _FLOATS:
        return raw.contiguous().view(_FLOATS[kind]).to(dtype, copy=True)
    block, block_bytes = GGML_QUANT_SIZES[kind]
    rows, columns = raw.shape[0], raw.shape[1] // block_bytes * block
    out = torch.empty(rows, columns, dtype=dtype)
    step = max(1, CHUNK_WEIGHTS // columns)
    for start in range(0, rows, step):
        blocks = raw[start : start + step].reshape(-1, block_bytes)
        out[start : start + step] = _DEQUANTIZE[kind](blocks).view(-1, columns)
    return out


def quantized_blocks(raw: torch.Tensor, kind: GGMLQuantizationType) -> Int4Blocks | Int8Blocks | None:
    """Raw rows `[N, bytes of a row]` as 4-bit or 8-bit blocks of 32 columns, exactly; None when the format has none."""
    return int8_blocks(raw) if kind is GGMLQuantizationType.Q8_0 else int4_blocks(raw, kind)


def int8_blocks(raw: torch.Tensor) -> Int8Blocks:
    """Rows of Q8_0, `[N, bytes of a row]`: a half-precision scale, then 32 signed codes."""
    blocks = raw.reshape(raw.shape[0], -1, GGML_QUANT_SIZES[GGMLQuantizationType.Q8_0][1])
    scales = blocks[..., :2].contiguous().view(torch.float16).squeeze(-1).float()
    return Int8Blocks(blocks[..., 2:].contiguous().view(torch.int8).view(raw.shape[0], -1), scales)


def int4_blocks(raw: torch.Tensor, kind: GGMLQuantizationType) -> Int4Blocks | None:
    """Raw rows `[N, bytes of a row]` as 4-bit blocks of 32 columns, exactly; None when the format has none."""
    unpack = _UNPACK_INT4.get(kind)
    if unpack is None:
        return None
    rows = raw.shape[0]
    codes, scales, minimums = unpack(raw.reshape(-1, GGML_QUANT_SIZES[kind][1]))
    return Int4Blocks(codes.view(rows, -1), scales.view(rows, -1), minimums.view(rows, -1))
