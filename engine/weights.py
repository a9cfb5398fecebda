"""A model's weights by name, read when asked for, whatever file format they come from.

Names are those of Hugging Face checkpoints (`model.layers.0.self_attn.q_proj.weight`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from gguf.constants import GGML_QUANT_SIZES

from engine.gguf_file import GgufFile, GgufTensor
from engine.gguf_quants import dequantize, quantized_blocks
from engine.model_config import ModelConfig
from kernels.linear import Int4Blocks, Int8Blocks

ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True, slots=True)
class Part:
    """Rows (`dim` 0) or columns (`dim` 1) `start .. stop` of a weight."""

    dim: int
    start: int
    stop: int

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.narrow(self.dim, self.start, self.stop - self.start)

    def in_blocks(self, block: int) -> Part | None:
        """The same part of a weight's scales, one for each `block` columns; None where it cuts a block."""
        if self.dim == 0:
            return self
        if self.start % block or self.stop % block:
            return None
        return Part(1, self.start // block, self.stop // block)


class Weights(Protocol):
    """Where the decoder takes its tensors from. Reading an absent name raises `ValueError`."""

    @property
    def total_bytes(self) -> int:
        """Bytes of all weights as stored."""
        ...

    def nbytes(self, name: str) -> int:
        """Bytes of one weight as stored."""
        ...

    def __contains__(self, name: str) -> bool: ...

    def dense(self, name: str, dtype: torch.dtype, part: Part | None = None) -> torch.Tensor:
        """The weight in the shape of the model, on the CPU; of a `part` no more than that is read."""
        ...

    def blocks(self, name: str, part: Part | None = None) -> Int4Blocks | Int8Blocks | None:
        """The weight as 4-bit or 8-bit blocks, without loss; None when it is not stored so or `part` cuts a block."""
        ...


class TensorWeights:
    """Weights that are in memory already: tests and random models."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.tensors = tensors

    @property
    def total_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def nbytes(self, name: str) -> int:
        return self.tensors[name].nbytes

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def dense(self, name: str, dtype: torch.dtype, part: Part | None = None) -> torch.Tensor:
        if name not in self.tensors:
            raise ValueError(f"the model has no weight {name}")
        tensor = self.tensors[name]
        return (tensor if part is None else part.of(tensor)).to(dtype)

    def blocks(self, name: str, part: Part | None = None) -> Int4Blocks | Int8Blocks | None:
        return None


_GGUF_GLOBALS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    ROPE_FACTORS: "rope_freqs.weight",
}
_GGUF_MODULES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_LAYER_NAME = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")


class GgufWeights:
    """The tensors of a GGUF file.

    Converters to GGUF reorder the query and key rows of the llama architecture so that rotary pairs are
    neighbours (`permute` in ggml-org/llama.cpp `convert_hf_to_gguf.py`); this puts them back into halves.
    """

    def __init__(self, file: GgufFile, config: ModelConfig) -> None:
        self._file = file
        self._head_dim = config.head_dim
        self._permuted = ("self_attn.q_proj.", "self_attn.k_proj.") if config.architecture == "llama" else ()

    @property
    def total_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._file.tensors.values())

    def nbytes(self, name: str) -> int:
        return self._tensor(name).nbytes

    def __contains__(self, name: str) -> bool:
        return gguf_name(name) in self._file.tensors

    def dense(self, name: str, dtype: torch.dtype, part: Part | None = None) -> torch.Tensor:
        tensor = self._tensor(name)
        raw = self._raw(tensor, part)
        if raw is None:
            assert part is not None
            return part.of(self.dense(name, dtype)).contiguous()
        weight = dequantize(raw, tensor.type, dtype)
        return self._restore_rows(name, weight.view(-1) if len(tensor.shape) == 1 else weight)

    def blocks(self, name: str, part: Part | None = None) -> Int4Blocks | Int8Blocks | None:
        tensor = self._tensor(name)
        raw = self._raw(tensor, part)
        blocks = None if raw is None else quantized_blocks(raw, tensor.type)
        if blocks is None:
            return None
        codes, scales = self._restore_rows(name, blocks.codes), self._restore_rows(name, blocks.scales)
        if isinstance(blocks, Int8Blocks):
            return Int8Blocks(codes, scales, blocks.block)
        return Int4Blocks(codes, scales, self._restore_rows(name, blocks.minimums), blocks.block)

    def _tensor(self, name: str) -> GgufTensor:
        tensor = self._file.tensors.get(gguf_name(name))
        if tensor is None:
            raise ValueError(f"{self._file.path} has no tensor {gguf_name(name)}")
        return tensor

    def _raw(self, tensor: GgufTensor, part: Part | None) -> torch.Tensor | None:
        """Stored bytes of a part, a view of the mapped file; None where the part cuts the format's blocks."""
        raw = self._file.raw(tensor)
        if part is None:
            return raw
        if part.dim == 0 and len(tensor.shape) > 1:
            return part.of(raw)
        block, block_bytes = GGML_QUANT_SIZES[tensor.type]
        stored = Part(1, part.start, part.stop).in_blocks(block)
        return None if stored is None else raw[:, stored.start * block_bytes : stored.stop * block_bytes]

    def _restore_rows(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        if not any(module in name for module in self._permuted):
            return weight
        pairs = weight.view(-1, self._head_dim // 2, 2, *weight.shape[1:])
        return pairs.transpose(1, 2).reshape(weight.shape)


def gguf_name(name: str) -> str:
    """GGUF's name of a weight."""
    found = _LAYER_NAME.fullmatch(name)
    if found is None:
        return _GGUF_GLOBALS.get(name, name)
    layer, module, part = found.groups()
    return f"blk.{layer}.{_GGUF_MODULES[module]}.{part}"


def open_gguf_weights(path: Path, config: ModelConfig) -> GgufWeights:
    return GgufWeights(GgufFile(path), config)
