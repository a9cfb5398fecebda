"""A decoder's forward pass as one call into the compiled library: no Python between its 30 layers.

`kernels.ops` and `kernels.linear` define the same computation operation by operation; this path differs only in that
values between two linears stay fp32. Rows are bitwise independent of the batch they run in.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kernels.cpu import abi
from kernels.cpu.library import Library, native_library
from kernels.cpu.ops import LANES, MAX_GROUP, MAX_HEAD_DIM
from kernels.cpu.packing import PackedLinear
from kernels.linear import Int4Blocks, Int8Blocks, Weight, WeightFormat, make_linear
from kernels.metadata import AttentionMetadata


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer as the engine loads it.

    Attributes:
        qkv: `[(heads + 2 * kv_heads) * D, hidden]`, with its optional bias.
        gate_up: `[2 * intermediate, hidden]`, the gate first.
        q_norm, k_norm: `[D]` norms of each query and key head before the rotation, where the model has them.
        window: sliding window in tokens, or None.
    """

    input_norm: torch.Tensor
    qkv: Weight
    out: Weight
    post_norm: torch.Tensor
    gate_up: Weight
    down: Weight
    qkv_bias: torch.Tensor | None = None
    q_norm: torch.Tensor | None = None
    k_norm: torch.Tensor | None = None
    window: int | None = None


@dataclass(frozen=True, slots=True)
class DecoderShape:
    num_heads: int
    num_kv_heads: int
    head_dim: int
    eps: float
    scale: float


class CpuDecoder:
    """Token ids in, fp32 logits out, keys and values written to the paged caches on the way."""

    def __init__(
        self,
        library: Library,
        shape: DecoderShape,
        layers: Sequence[LayerWeights],
        embedding: torch.Tensor,
        final_norm: torch.Tensor,
        lm_head: Weight,
        cos_sin: torch.Tensor,
        weight_format: WeightFormat,
    ) -> None:
        """Packs the weights; the originals may be dropped afterwards. Use `make_cpu_decoder`."""
        self._library = library
        self._kept: list[object] = []
        self._layers = (abi.LayerABI * len(layers))()
        for to, layer in zip(self._layers, layers):
            gate, up = _halves(layer.gate_up)
            to.input_norm = self._vector(layer.input_norm)
            to.post_norm = self._vector(layer.post_norm)
            to.q_norm = self._vector(layer.q_norm)
            to.k_norm = self._vector(layer.k_norm)
            to.qkv = self._linear(layer.qkv, layer.qkv_bias, weight_format)
            to.out = self._linear(layer.out, None, weight_format)
            to.gate = self._linear(gate, None, weight_format)
            to.up = self._linear(up, None, weight_format)
            to.down = self._linear(layer.down, None, weight_format)
            to.window = layer.window or 0
        self.vocab_size = lm_head.shape[0]
        self._embedding = embedding.to(torch.bfloat16).contiguous()
        self._positions = cos_sin.shape[0]
        self._model = abi.ModelABI(
            layers=ctypes.addressof(self._layers),
            embedding=self._embedding.data_ptr(),
            final_norm=self._vector(final_norm),
            cos_sin=self._vector(cos_sin),
            lm_head=self._linear(lm_head, None, weight_format),
            num_layers=len(layers),
            hidden=embedding.shape[1],
            num_heads=shape.num_heads,
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            intermediate=layers[0].down.shape[1],
            eps=shape.eps,
            scale=shape.scale,
        )
        self._caches: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._workspace = torch.empty(0, dtype=torch.uint8)

    def _vector(self, values: torch.Tensor | None) -> int | None:
        if values is None:
            return None
        kept = values.float().contiguous()
        self._kept.append(kept)
        return kept.data_ptr()

    def _linear(self, weight: Weight, bias: torch.Tensor | None, weight_format: WeightFormat) -> abi.LinearABI:
        packed = make_linear(weight, bias, weight_format)
        assert isinstance(packed, PackedLinear)
        self._kept.append(packed)
        return packed.abi

    def bind_caches(self, caches: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Use these bf16 caches `[blocks, kv_heads, block_size, D]`, one pair for each layer, all strided alike.

        Raises:
            ValueError: another number of layers, dtype, shape or stride.
        """
        if len(caches) != len(self._layers):
            raise ValueError(f"{len(caches)} caches for {len(self._layers)} layers")
        k_first, v_first = caches[0]
        inner = (self._model.num_kv_heads, k_first.shape[2], self._model.head_dim)
        for k_cache, v_cache in caches:
            for cache, first in ((k_cache, k_first), (v_cache, v_first)):
                if cache.dtype is not torch.bfloat16 or cache.device.type != "cpu" or cache.shape[1:] != inner:
                    raise ValueError(f"caches must be bf16 on the CPU, [blocks, {', '.join(map(str, inner))}]")
                if cache.stride() != first.stride() or cache.stride()[2:] != (inner[2], 1):
                    raise ValueError(
                        "caches must have the same strides in all layers, dense in the last two dimensions"
                    )
        for layer, (k_cache, v_cache) in zip(self._layers, caches):
            layer.k_cache, layer.v_cache = k_cache.data_ptr(), v_cache.data_ptr()
        self._model.k_block_stride, self._model.k_head_stride = k_first.stride()[:2]
        self._model.v_block_stride, self._model.v_head_stride = v_first.stride()[:2]
        self._model.block_size = inner[1]
        self._caches = list(caches)

    def forward(
        self, token_ids: torch.Tensor, metadata: AttentionMetadata, logit_rows: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Run the packed batch; returns fp32 logits `[R, vocab]`.

        Args:
            token_ids: `[T]` int64.
            logit_rows: `[R]` int64 rows of the batch whose logits are wanted; None for all `T`.

        Raises:
            ValueError: caches are not bound, or a token id or position is out of range.
        """
        if not self._caches:
            raise ValueError("call bind_caches first")
        tokens = token_ids.shape[0]
        if logit_rows is None:
            logit_rows = torch.arange(tokens)
        logits = torch.empty((logit_rows.shape[0], self.vocab_size), dtype=torch.float32)
        if tokens == 0:
            return logits
        _check_range("token id", token_ids, self._embedding.shape[0])
        _check_range("position", metadata.positions, self._positions)
        wanted = self._library.workspace_bytes(self._model, tokens)
        if self._workspace.numel() < wanted:
            self._workspace = torch.empty(wanted, dtype=torch.uint8)
        arrays = [
            array.contiguous()
            for array in (
                token_ids,
                metadata.positions,
                metadata.slot_mapping,
                metadata.query_start,
                metadata.context_lens,
                metadata.block_tables,
                logit_rows,
            )
        ]
        step = abi.StepABI(
            *(array.data_ptr() for array in arrays),
            logits.data_ptr(),
            self._workspace.data_ptr(),
            arrays[5].stride(0),
            tokens,
            metadata.context_lens.shape[0],
            logit_rows.shape[0],
        )
        self._library.forward(self._model, step)
        return logits


def make_cpu_decoder(
    shape: DecoderShape,
    layers: Sequence[LayerWeights],
    embedding: torch.Tensor,
    final_norm: torch.Tensor,
    lm_head: Weight,
    cos_sin: torch.Tensor,
    weight_format: WeightFormat,
) -> CpuDecoder | None:
    """Pack a decoder for the compiled library; None where it cannot run it (use `kernels.ops` then).

    Covered: bf16 and 4-bit formats, a hidden and an intermediate size in multiples of 16, a head dimension in
    multiples of 32 up to 256, up to 48 query heads for each key head.

    Args:
        lm_head: `[vocab, hidden]`; the embedding itself where the two are tied.
        cos_sin: `[max_position, D]` fp32, as in `kernels.reference.apply_rope`.
    """
    library = native_library()
    hidden, intermediate = embedding.shape[1], layers[0].down.shape[1]
    if library is None or weight_format is WeightFormat.FP32 or embedding.device.type != "cpu":
        return None
    if hidden % LANES or intermediate % LANES or shape.head_dim % (2 * LANES) or shape.head_dim > MAX_HEAD_DIM:
        return None
    if shape.num_heads // shape.num_kv_heads > MAX_GROUP:
        return None
    return CpuDecoder(library, shape, layers, embedding, final_norm, lm_head, cos_sin, weight_format)


def _halves(weight: Weight) -> tuple[Weight, Weight]:
    half = weight.shape[0] // 2
    return _rows(weight, slice(None, half)), _rows(weight, slice(half, None))


def _rows(weight: Weight, rows: slice) -> Weight:
    match weight:
        case Int4Blocks():
            return Int4Blocks(weight.codes[rows], weight.scales[rows], weight.minimums[rows], weight.block)
        case Int8Blocks():
            return Int8Blocks(weight.codes[rows], weight.scales[rows], weight.block)
    return weight[rows]


def _check_range(name: str, values: torch.Tensor, end: int) -> None:
    lowest, highest = values.aminmax()
    if lowest < 0 or highest >= end:
        raise ValueError(f"{name}s must be in [0, {end}), not [{int(lowest)}, {int(highest)}]")
