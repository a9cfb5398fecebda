"""Linear layers over weights packed for the compiled library."""

from __future__ import annotations

import ctypes

import torch

from kernels.cpu.abi import LinearABI, Packing
from kernels.cpu.library import Library, native_library
from kernels.cpu.memory import empty_huge

PANEL = 48  # outputs of one panel, as in linear.h
BLOCK = 32


class PackedLinear:
    """`[T, K] -> [T, N]` over packed panels: a row has the same bits at every batch size and thread count.

    Attributes:
        abi: the structure the library reads; valid while this object lives.
    """

    batch_invariant = True

    def __init__(
        self,
        library: Library,
        panels: torch.Tensor,
        bias: torch.Tensor | None,
        shape: tuple[int, int],
        packing: Packing,
    ) -> None:
        self.out_features, self.in_features = shape
        self.packing = packing
        self._library = library
        self._panels = panels
        self._bias = None
        if bias is not None:
            self._bias = torch.zeros(-(-self.out_features // PANEL) * PANEL)
            self._bias[: self.out_features] = bias
        self.abi = LinearABI(panels.data_ptr(), None if self._bias is None else self._bias.data_ptr(), *shape, packing)
        self._reference = ctypes.byref(self.abi)

    @property
    def weight_bytes(self) -> int:
        return self._panels.numel()

    def __call__(self, x: torch.Tensor, out_dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        """`x`: bf16 `[T, K]`; `out_dtype` bf16 or fp32 (the sums are fp32 either way)."""
        if x.dtype is not torch.bfloat16 or x.dim() != 2 or x.shape[1] != self.in_features:
            raise ValueError(f"a packed linear takes bf16 [T, {self.in_features}], not {x.dtype} {tuple(x.shape)}")
        if x.stride(1) != 1:
            x = x.contiguous()
        tokens = x.shape[0]
        out = torch.empty((tokens, self.out_features), dtype=out_dtype)
        is_float = out_dtype is torch.float32
        self._library.linear(self._reference, x.data_ptr(), x.stride(0), tokens, out.data_ptr(), is_float)
        return out


def pack_bf16(weight: torch.Tensor, bias: torch.Tensor | None) -> PackedLinear | None:
    """Pack a bf16 weight `[N, K]` on the CPU; None without the library or for an odd `K`."""
    library = native_library()
    n, k = weight.shape
    if library is None or k % 2:
        return None
    weight = weight.contiguous()
    panels = empty_huge(library.packed_bytes(n, k, Packing.BF16))
    library.pack_bf16(weight.data_ptr(), n, k, panels.data_ptr())
    return PackedLinear(library, panels, bias, (n, k), Packing.BF16)


def pack_int4(
    codes: torch.Tensor, scales: torch.Tensor, minimums: torch.Tensor, block: int, bias: torch.Tensor | None
) -> PackedLinear | None:
    """Pack 4-bit blocks of 32 inputs (fields as in `Int4Blocks`).

    None where the library or the CPU cannot, for other block sizes, and where a scale or minimum is not exactly an
    IEEE half (GGUF's are): the packed form must expand to the same weights as `Int4Blocks.dequantize`.
    """
    library = _library_for_blocks(codes, block)
    half_scales, half_minimums = _exact_halves(scales), _exact_halves(minimums)
    if library is None or half_scales is None or half_minimums is None:
        return None
    n, k = codes.shape
    codes = codes.contiguous()
    panels = empty_huge(library.packed_bytes(n, k, Packing.INT4))
    library.pack_int4(codes.data_ptr(), half_scales.data_ptr(), half_minimums.data_ptr(), n, k, panels.data_ptr())
    return PackedLinear(library, panels, bias, (n, k), Packing.INT4)


def pack_int8(codes: torch.Tensor, scales: torch.Tensor, block: int, bias: torch.Tensor | None) -> PackedLinear | None:
    """Pack 8-bit blocks of 32 inputs (fields as in `Int8Blocks`); None in the cases of `pack_int4`."""
    library = _library_for_blocks(codes, block)
    half_scales = _exact_halves(scales)
    if library is None or half_scales is None:
        return None
    n, k = codes.shape
    codes = codes.contiguous()
    panels = empty_huge(library.packed_bytes(n, k, Packing.INT8))
    library.pack_int8(codes.data_ptr(), half_scales.data_ptr(), n, k, panels.data_ptr())
    return PackedLinear(library, panels, bias, (n, k), Packing.INT8)


def _library_for_blocks(codes: torch.Tensor, block: int) -> Library | None:
    library = native_library()
    covered = block == BLOCK and codes.shape[1] % block == 0 and codes.device.type == "cpu"
    return library if library is not None and covered else None


def _exact_halves(values: torch.Tensor) -> torch.Tensor | None:
    halves = values.half().contiguous()
    return halves if torch.equal(halves.float(), values) else None
