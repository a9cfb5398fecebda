"""All layers of a decoder as one call into the compiled library: no Python between its 30 layers.

`kernels.ops` and `kernels.linear` define the same computation operation by operation; this path differs only in that
values between two linears stay fp32. A row's bits do not depend on the batch it runs in.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kernels.cpu import abi
from kernels.cpu.library import Library, native_library
from kernels.cpu.ops import LANES, MAX_GROUP, MAX_HEAD_DIM, check_metadata
from kernels.cpu.packing import PackedLinear
from kernels.linear import Linear
from kernels.metadata import AttentionMetadata


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """`scale`: factor on attention scores; `eps`: of all norms."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    eps: float
    scale: float


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """One layer, its linears as `make_linear` packed them (shared, not copied).

    Attributes:
        qkv: to `(heads + 2 * kv_heads) * D`, queries first.
        gate_up: to `2 * intermediate`, the gate first.
        q_norm, k_norm: `[D]` norms of each query and key head before the rotation, where the model has them.
        window: sliding window in tokens, or None.
    """

    input_norm: torch.Tensor
    qkv: Linear
    out: Linear
    post_norm: torch.Tensor
    gate_up: Linear
    down: Linear
    q_norm: torch.Tensor | None = None
    k_norm: torch.Tensor | None = None
    window: int | None = None

    @property
    def linears(self) -> tuple[Linear, ...]:
        return self.qkv, self.out, self.gate_up, self.down


class CpuDecoder:
    """Token ids in, normed hidden states out, keys and values written to the paged caches. See `make_cpu_decoder`."""

    def __init__(
        self,
        library: Library,
        shape: DecoderShape,
        layers: Sequence[DecoderLayer],
        embedding: torch.Tensor,
        final_norm: torch.Tensor,
        cos_sin: torch.Tensor,
    ) -> None:
        self._library = library
        self._kept: list[object] = [layers]
        self._layers = (abi.LayerABI * len(layers))()
        for to, layer in zip(self._layers, layers):
            to.input_norm = self._fp32(layer.input_norm)
            to.post_norm = self._fp32(layer.post_norm)
            to.q_norm = self._fp32(layer.q_norm)
            to.k_norm = self._fp32(layer.k_norm)
            for name in ("qkv", "out", "gate_up", "down"):
                setattr(to, name, getattr(layer, name).abi)
            to.window = layer.window or 0
        self._embedding = embedding.to(torch.bfloat16).contiguous()
        self._num_positions = cos_sin.shape[0]
        self._model = abi.ModelABI(
            layers=ctypes.addressof(self._layers),
            embedding=self._embedding.data_ptr(),
            final_norm=self._fp32(final_norm),
            cos_sin=self._fp32(cos_sin),
            num_layers=len(layers),
            hidden=embedding.shape[1],
            num_heads=shape.num_heads,
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            intermediate=layers[0].down.in_features,
            eps=shape.eps,
            scale=shape.scale,
        )
        self._caches: Sequence[tuple[torch.Tensor, torch.Tensor]] | None = None
        self._workspace = torch.empty(0, dtype=torch.uint8)

    def _fp32(self, values: torch.Tensor | None) -> int | None:
        if values is None:
            return None
        kept = values.float().contiguous()
        self._kept.append(kept)
        return kept.data_ptr()

    def _bind(self, caches: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        if len(caches) != len(self._layers):
            raise ValueError(f"{len(caches)} caches for {len(self._layers)} layers")
        k_first, v_first = caches[0]
        inner = (self._model.num_kv_heads, k_first.shape[2], self._model.head_dim)
        for k_cache, v_cache in caches:
            for cache, first in ((k_cache, k_first), (v_cache, v_first)):
                if cache.dtype is not torch.bfloat16 or cache.device.type != "cpu" or cache.shape[1:] != inner:
                    raise ValueError(f"caches must be bf16 on the CPU, [blocks, {', '.join(map(str, inner))}]")
                if cache.stride() != first.stride() or cache.stride()[2:] != (inner[2], 1):
                    raise ValueError("caches must be strided alike in all layers, dense in the last two dimensions")
        for layer, (k_cache, v_cache) in zip(self._layers, caches):
            layer.k_cache, layer.v_cache = k_cache.data_ptr(), v_cache.data_ptr()
        self._model.k_block_stride, self._model.k_head_stride = k_first.stride()[:2]
        self._model.v_block_stride, self._model.v_head_stride = v_first.stride()[:2]
        self._model.block_size = inner[1]
        self._caches = caches

    def forward(
        self,
        token_ids: torch.Tensor,
        metadata: AttentionMetadata,
        kv_caches: Sequence[tuple[torch.Tensor, torch.Tensor]],
    ) -> torch.Tensor:
        """Run the packed batch; returns the normed hidden states, bf16 `[T, H]`.

        Args:
            token_ids: `[T]` int64.
            kv_caches: bf16 `[blocks, kv_heads, block_size, D]`, a pair for each layer, all strided alike. Pass the
                same sequence at every step: another one is checked and bound anew.

        Raises:
            ValueError: unfit caches or metadata, or a token id, position or slot out of range.
        """
        if kv_caches is not self._caches:
            self._bind(kv_caches)
        tokens = token_ids.shape[0]
        hidden = torch.empty((tokens, self._model.hidden), dtype=torch.bfloat16)
        if tokens == 0:
            return hidden
        check_metadata(metadata, tokens)
        _check_range("token id", token_ids, self._embedding.shape[0])
        _check_range("position", metadata.positions, self._num_positions)
        k_cache = kv_caches[0][0]
        _check_range("slot", metadata.slot_mapping, k_cache.shape[0] * k_cache.shape[2], begin=-1)
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
            )
        ]
        step = abi.StepABI(
            *(array.data_ptr() for array in arrays),
            hidden.data_ptr(),
            self._workspace.data_ptr(),
            metadata.block_tables.shape[1],
            tokens,
            metadata.context_lens.shape[0],
        )
        self._library.forward(self._model, step)
        return hidden


def make_cpu_decoder(
    shape: DecoderShape,
    layers: Sequence[DecoderLayer],
    embedding: torch.Tensor,
    final_norm: torch.Tensor,
    cos_sin: torch.Tensor,
) -> CpuDecoder | None:
    """A decoder over packed linears; None where the library cannot run it (use `kernels.ops` then).

    Covered: linears that `make_linear` packed for the library (bf16 and 4-bit formats on a CPU), hidden and
    intermediate sizes in multiples of 16, a head dimension in multiples of 32 up to 256, up to 48 query heads for each
    key head.

    Args:
        embedding: `[vocab, hidden]`.
        cos_sin: `[max_position, D]` fp32, as in `kernels.reference.apply_rope`.
    """
    library = native_library()
    if library is None or not all(isinstance(linear, PackedLinear) for layer in layers for linear in layer.linears):
        return None
    sizes = (embedding.shape[1], layers[0].down.in_features, shape.head_dim // 2)
    if any(size % LANES for size in sizes) or shape.head_dim % 2 or shape.head_dim > MAX_HEAD_DIM:
        return None
    if shape.num_heads // shape.num_kv_heads > MAX_GROUP:
        return None
    return CpuDecoder(library, shape, layers, embedding, final_norm, cos_sin)


def _check_range(name: str, values: torch.Tensor, end: int, begin: int = 0) -> None:
    lowest, highest = values.aminmax()
    if lowest < begin or highest >= end:
        raise ValueError(f"{name}s must be in [{begin}, {end}), not [{int(lowest)}, {int(highest)}]")
