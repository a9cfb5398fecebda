"""The weights of a Hugging Face folder, as tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from engine.safetensors_files import safetensors_files
from engine.weights import Part
from kernels.linear import Int4Blocks, Int8Blocks

ELEMENT_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


class SafetensorsWeights:
    """Tensors read from memory-mapped files when asked for. Raises `ValueError` for missing or foreign files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = {path: _open(path) for path in safetensors_files(folder)}
        self._owner = {name: file for file in self._files.values() for name in file.keys()}  # noqa: SIM118

    @property
    def total_bytes(self) -> int:
        return sum(path.stat().st_size for path in self._files)

    def nbytes(self, name: str) -> int:
        entry = self._entry(name)
        elements = 1
        for size in entry.get_shape():
            elements *= size
        return int(elements * ELEMENT_BYTES[entry.get_dtype()])

    def __contains__(self, name: str) -> bool:
        return name in self._owner

    def dense(self, name: str, dtype: torch.dtype, part: Part | None = None) -> torch.Tensor:
        entry = self._entry(name)
        tensor: torch.Tensor
        if part is None:
            tensor = self._owner[name].get_tensor(name)
        elif part.dim == 0:
            tensor = entry[part.start : part.stop]
        else:
            tensor = entry[:, part.start : part.stop]
        return tensor.to(dtype)

    def blocks(self, name: str, part: Part | None = None) -> Int4Blocks | Int8Blocks | None:
        return None

    def _entry(self, name: str) -> Any:
        if name not in self._owner:
            raise ValueError(f"{self._folder} has no weight {name}")
        entry = self._owner[name].get_slice(name)
        if entry.get_dtype() not in ELEMENT_BYTES:
            supported = ", ".join(ELEMENT_BYTES)
            raise ValueError(
                f"weight {name} has type {entry.get_dtype()}, which is not supported; supported: {supported}"
            )
        return entry


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except SafetensorError as error:
        raise ValueError(f"{path} is not a valid safetensors file: {error}") from error
