"""A model's weights as the forward pass takes them: read in order, shapes checked, projections fused by rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from engine.model_config import ModelConfig
from engine.rope import inverse_frequencies, rope_table
from engine.weights import ROPE_FACTORS, Weights
from kernels.linear import Int4Blocks, Int8Blocks, Weight, activation_dtype, quantize_int8
from kernels.weight_format import WeightFormat

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class LayerTensors:
    """One block of the decoder. Fused by rows: `qkv` is queries, keys, values; `gate_up` the gate first."""

    input_norm: torch.Tensor
    qkv: Weight
    qkv_bias: torch.Tensor | None
    output: Weight
    output_bias: torch.Tensor | None
    mlp_norm: torch.Tensor
    gate_up: Weight
    gate_up_bias: torch.Tensor | None
    down: Weight
    down_bias: torch.Tensor | None
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    window: int | None


class WeightLoader:
    """Reads each weight once, onto the device: in the dtype of the activations, its stored blocks or rounded to int8.

    `progress` is called with (bytes read, bytes in all). Raises `ValueError` for an absent weight or a wrong shape.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        weight_format: WeightFormat,
        device: torch.device,
        progress: Progress | None = None,
    ) -> None:
        self._config = config
        self._weights = weights
        self._format = weight_format
        self._dtype = activation_dtype(weight_format)
        self._device = device
        self._progress = progress
        self._done_bytes = 0

    def embedding(self) -> torch.Tensor:
        return self._tensor("model.embed_tokens.weight", self._config.vocab_size, self._config.hidden_size)

    def final_norm(self) -> torch.Tensor:
        return self._tensor("model.norm.weight", self._config.hidden_size)

    def layer(self, number: int) -> LayerTensors:
        config = self._config
        prefix = f"model.layers.{number}"
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        hidden, inner, head_dim = config.hidden_size, config.intermediate_size, config.head_dim
        q_rows, kv_rows = config.num_heads * head_dim, config.num_kv_heads * head_dim
        qkv = {f"{attention}.q_proj": q_rows, f"{attention}.k_proj": kv_rows, f"{attention}.v_proj": kv_rows}
        output, down = {f"{attention}.o_proj": hidden}, {f"{mlp}.down_proj": hidden}
        gate_up = {f"{mlp}.gate_proj": inner, f"{mlp}.up_proj": inner}
        return LayerTensors(
            input_norm=self._tensor(f"{prefix}.input_layernorm.weight", hidden),
            qkv=self._linear(qkv, hidden),
            qkv_bias=self._bias(qkv, config.qkv_bias),
            output=self._linear(output, q_rows),
            output_bias=self._bias(output, config.output_bias),
            mlp_norm=self._tensor(f"{prefix}.post_attention_layernorm.weight", hidden),
            gate_up=self._linear(gate_up, hidden),
            gate_up_bias=self._bias(gate_up, config.mlp_bias),
            down=self._linear(down, inner),
            down_bias=self._bias(down, config.mlp_bias),
            q_norm=self._tensor(f"{attention}.q_norm.weight", head_dim) if config.qk_norm else None,
            k_norm=self._tensor(f"{attention}.k_norm.weight", head_dim) if config.qk_norm else None,
            window=config.layer_windows[number],
        )

    def lm_head(self, embedding: torch.Tensor) -> Weight:
        """`[V, H]`; the embedding itself where they are tied, in its stored blocks or rounded as the format asks."""
        config = self._config
        if not config.tie_word_embeddings:
            return self._linear({"lm_head": config.vocab_size}, config.hidden_size)
        if self._format is WeightFormat.INT8:
            return quantize_int8(embedding)
        blocks = self._weights.blocks("model.embed_tokens.weight") if self._format is WeightFormat.INT4 else None
        return embedding if blocks is None else self._move(blocks)

    def rope_table(self, max_model_len: int) -> torch.Tensor:
        """Cosines and sines, `[max_model_len, D]` fp32. The last of the weights: reports that all is read."""
        weights = self._weights
        self._report(weights.total_bytes)
        factors = weights.dense(ROPE_FACTORS, torch.float32) if ROPE_FACTORS in weights else None
        return rope_table(inverse_frequencies(self._config, factors), max_model_len).to(self._device)

    def _linear(self, modules: dict[str, int], columns: int) -> Weight:
        """Modules (name to rows) stacked by rows."""
        if self._format is WeightFormat.INT4:
            blocks = self._blocks(modules, columns)
            if blocks is not None:
                return blocks
        parts = [self._tensor(f"{name}.weight", rows, columns) for name, rows in modules.items()]
        dense = parts[0] if len(parts) == 1 else torch.cat(parts)
        return quantize_int8(dense) if self._format is WeightFormat.INT8 else dense

    def _bias(self, modules: dict[str, int], wanted: bool) -> torch.Tensor | None:
        return torch.cat([self._tensor(f"{name}.bias", rows) for name, rows in modules.items()]) if wanted else None

    def _tensor(self, name: str, *shape: int) -> torch.Tensor:
        tensor = self._weights.dense(name, self._dtype)
        self._check(name, tuple(tensor.shape), shape)
        return tensor.to(self._device)

    def _blocks(self, modules: dict[str, int], columns: int) -> Int4Blocks | Int8Blocks | None:
        """None when the modules are not all stored in blocks of one kind."""
        parts: list[Int4Blocks | Int8Blocks] = []
        for name in modules:
            blocks = self._weights.blocks(f"{name}.weight")
            if blocks is None or (parts and type(blocks) is not type(parts[0])):
                return None
            parts.append(blocks)
        for part, (name, rows) in zip(parts, modules.items()):
            self._check(f"{name}.weight", part.shape, (rows, columns))
        codes, scales = (torch.cat([getattr(part, field) for part in parts]) for field in ("codes", "scales"))
        if isinstance(parts[0], Int8Blocks):
            return self._move(Int8Blocks(codes, scales, parts[0].block))
        minimums = torch.cat([part.minimums for part in parts if isinstance(part, Int4Blocks)])
        return self._move(Int4Blocks(codes, scales, minimums, parts[0].block))

    def _move(self, blocks: Int4Blocks | Int8Blocks) -> Int4Blocks | Int8Blocks:
        codes, scales = blocks.codes.to(self._device), blocks.scales.to(self._device)
        if isinstance(blocks, Int8Blocks):
            return Int8Blocks(codes, scales, blocks.block)
        return Int4Blocks(codes, scales, blocks.minimums.to(self._device), blocks.block)

    def _check(self, name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
        if found != expected:
            raise ValueError(f"weight {name} has shape {found}, the model's configuration expects {expected}")
        self._done_bytes += self._weights.nbytes(name)
        self._report(self._done_bytes)

    def _report(self, done_bytes: int) -> None:
        if self._progress is not None:
            total_bytes = self._weights.total_bytes
            self._progress(min(done_bytes, total_bytes), total_bytes)
