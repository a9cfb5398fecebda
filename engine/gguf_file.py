"""Reading GGUF files: header, metadata and tensors, every length checked against the file before it is used.

Layout: the GGUF specification, ggml-org/ggml `docs/gguf.md`, versions 2 and 3, little endian.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

if TYPE_CHECKING:
    import torch

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_DIMENSIONS = 4
ARRAY_TYPE = 9
STRING_TYPE = 8
SCALARS: dict[int, np.dtype[Any]] = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
# What `engine.gguf_quants` reads.
SUPPORTED_TYPES = (
    GGMLQuantizationType.F32,
    GGMLQuantizationType.F16,
    GGMLQuantizationType.BF16,
    GGMLQuantizationType.Q4_0,
    GGMLQuantizationType.Q4_1,
    GGMLQuantizationType.Q4_K,
    GGMLQuantizationType.Q5_0,
    GGMLQuantizationType.Q5_1,
    GGMLQuantizationType.Q8_0,
    GGMLQuantizationType.Q5_K,
    GGMLQuantizationType.Q6_K,
)
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where a tensor lies. `shape` has rows first (GGUF's own order is reversed); `offset`, `nbytes` in bytes."""

    name: str
    type: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class GgufFile:
    """An open GGUF file: `metadata` by key, `tensors` by name. Raises `ValueError` for anything malformed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # Copy-on-write: torch wants writable memory, the file stays as it is.
            self._bytes = np.memmap(path, dtype=np.uint8, mode="c")
        except ValueError as error:
            raise ValueError(f"{path} is not a GGUF file: {error}") from None
        try:
            header = _Header(self._bytes.data)
            self.metadata: dict[str, Any] = header.metadata
            self.tensors: dict[str, GgufTensor] = header.tensors
        except ValueError as error:
            raise ValueError(f"{path} is not a valid GGUF file: {error}") from None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    def raw(self, tensor: GgufTensor) -> torch.Tensor:
        """The tensor's bytes as stored, uint8 `[rows, bytes of a row]`; a view of the mapped file."""
        # Not above: who reads headers and tokenizers alone, as the front end does, needs no torch.
        import torch

        flat = torch.from_numpy(self._bytes[tensor.offset : tensor.offset + tensor.nbytes])
        return flat.view(math.prod(tensor.shape[:-1]), -1)


class _Header:
    """Cursor over the bytes before the tensor data."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._end = len(data)
        self._at = 0
        if bytes(data[:4]) != MAGIC:
            raise ValueError("it does not begin with GGUF")
        self._at = 4
        version = self._u32()
        if version not in VERSIONS:
            raise ValueError(f"version {version} is not supported; supported: little-endian versions 2 and 3")
        num_tensors, num_keys = self._u64(), self._u64()
        self._check_count(num_tensors, 24, "tensors")
        self._check_count(num_keys, 13, "metadata keys")
        self.metadata: dict[str, Any] = {}
        for _ in range(num_keys):
            key = self._string("a metadata key")
            if key in self.metadata:
                raise ValueError(f"metadata key {key!r} occurs twice")
            self.metadata[key] = self._value(self._u32(), key)
        self.tensors = self._tensors(num_tensors)

    def _check_count(self, count: int, smallest_bytes: int, what: str) -> None:
        if count * smallest_bytes > self._end - self._at:
            raise ValueError(f"it claims {count} {what}, more than fit in the file")

    def _skip(self, size: int, what: str) -> int:
        """Move past `size` bytes; returns where they begin."""
        start = self._at
        if size > self._end - start:
            raise ValueError(f"it ends in the middle of {what}")
        self._at = start + size
        return start

    def _u32(self) -> int:
        return int(_U32.unpack_from(self._data, self._skip(4, "the header"))[0])

    def _u64(self) -> int:
        return int(_U64.unpack_from(self._data, self._skip(8, "the header"))[0])

    def _string(self, what: str) -> str:
        size = self._u64()
        start = self._skip(size, what)
        try:
            return str(self._data[start : start + size], "utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"{what} is not UTF-8") from None

    def _value(self, kind: int, key: str) -> Any:
        if kind == STRING_TYPE:
            return self._string(key)
        if kind == ARRAY_TYPE:
            return self._array(key)
        return self._scalars(kind, 1, key)[0]

    def _array(self, key: str) -> list[Any]:
        kind, count = self._u32(), self._u64()
        if kind == STRING_TYPE:
            self._check_count(count, 8, f"strings in {key}")
            return [self._string(key) for _ in range(count)]
        return self._scalars(kind, count, key)

    def _scalars(self, kind: int, count: int, key: str) -> list[Any]:
        dtype = SCALARS.get(kind)
        if dtype is None:
            raise ValueError(f"metadata key {key!r} has the unknown value type {kind}")
        start = self._skip(dtype.itemsize * count, key)
        return list(np.frombuffer(self._data, dtype, count, start).tolist())

    def _tensors(self, count: int) -> dict[str, GgufTensor]:
        infos = [self._tensor_info() for _ in range(count)]
        alignment = self.metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise ValueError(f"general.alignment must be a power of two, got {alignment!r}")
        base = -(-self._at // alignment) * alignment
        tensors: dict[str, GgufTensor] = {}
        for name, kind, shape, offset in infos:
            block, block_bytes = GGML_QUANT_SIZES[kind]
            if shape[-1] % block:
                raise ValueError(
                    f"rows of tensor {name!r} ({shape[-1]}) are no multiple of {kind.name}'s block {block}"
                )
            nbytes = math.prod(shape) // block * block_bytes
            if base + offset + nbytes > self._end:
                raise ValueError(f"tensor {name!r} reaches beyond the end of the file; download it again")
            if name in tensors:
                raise ValueError(f"tensor {name!r} occurs twice")
            tensors[name] = GgufTensor(name, kind, shape, base + offset, nbytes)
        return tensors

    def _tensor_info(self) -> tuple[str, GGMLQuantizationType, tuple[int, ...], int]:
        name = self._string("a tensor's name")
        num_dimensions = self._u32()
        if not 1 <= num_dimensions <= MAX_DIMENSIONS:
            raise ValueError(f"tensor {name!r} has {num_dimensions} dimensions; 1 to {MAX_DIMENSIONS} are allowed")
        shape = tuple(self._u64() for _ in range(num_dimensions))[::-1]
        if 0 in shape:
            raise ValueError(f"tensor {name!r} is empty: {shape}")
        number = self._u32()
        kind = GGMLQuantizationType(number) if number in set(GGMLQuantizationType) else None
        if kind not in SUPPORTED_TYPES:
            raise ValueError(
                f"tensor {name!r} has type {kind.name if kind else number}, which is not supported; "
                f"supported: {', '.join(supported.name for supported in SUPPORTED_TYPES)}"
            )
        return name, kind, shape, self._u64()
