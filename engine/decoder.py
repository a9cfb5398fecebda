"""The decoder-only transformer of the Llama family: embed, attend, mix, predict.

One class serves Llama 2/3/3.1, SmolLM2, Mistral, Qwen2 and Qwen3: what sets them apart is in `ModelConfig`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from engine.model_config import ModelConfig
from engine.rope import inverse_frequencies, rope_table
from engine.weights import ROPE_FACTORS, Weights
from kernels import ops
from kernels.linear import Int4Blocks, Linear, Weight, WeightFormat, activation_dtype, make_linear
from kernels.metadata import AttentionMetadata

Progress = Callable[[int, int], None]
KvCache = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class _Layer:
    """One block. `next_norm` is the norm after it: the next layer's first, or the model's last."""

    qkv: Linear
    output: Linear
    gate_up: Linear
    down: Linear
    mlp_norm: torch.Tensor
    next_norm: torch.Tensor
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    window: int | None


class Decoder:
    """Weights packed for a device, and the forward pass over packed batches.

    Args:
        weights: read once, tensor by tensor; memory peaks at the packed model and one layer.
        max_model_len: longest context to prepare for; the model's own limit when None, never more than that.
        progress: called with (bytes read, bytes in all) as loading goes on.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        weight_format: WeightFormat = WeightFormat.BF16,
        device: torch.device | str = "cpu",
        max_model_len: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        if max_model_len is not None and max_model_len < 1:
            raise ValueError(f"max_model_len must be at least 1, got {max_model_len}")
        self.config = config
        self.weight_format = weight_format
        self.device = torch.device(device)
        self.dtype = activation_dtype(weight_format)
        self.max_model_len = min(max_model_len or config.max_position_embeddings, config.max_position_embeddings)
        with torch.inference_mode():
            loader = _Loader(config, weights, weight_format, self.device, progress)
            self._embedding = loader.tensor("model.embed_tokens.weight", config.vocab_size, config.hidden_size)
            self._first_norm = loader.tensor("model.layers.0.input_layernorm.weight", config.hidden_size)
            self._layers = tuple(loader.layer(number) for number in range(config.num_layers))
            self._lm_head = loader.lm_head(self._embedding)
            loader.report(weights.total_bytes)
            factors = weights.dense(ROPE_FACTORS, torch.float32) if ROPE_FACTORS in weights else None
            table = rope_table(inverse_frequencies(config, factors), self.max_model_len)
            self._cos_sin = table.to(self.device)
        self._heads = [config.num_heads, config.num_kv_heads, config.num_kv_heads]
        self._scale = config.head_dim**-0.5

    @torch.inference_mode()
    def forward(
        self, token_ids: torch.Tensor, metadata: AttentionMetadata, kv_caches: Sequence[KvCache]
    ) -> torch.Tensor:
        """Run packed tokens, writing their keys and values into the caches.

        Args:
            token_ids: `[T]` int64.
            kv_caches: for each layer `(k_cache, v_cache)`, `[blocks, kv_heads, block_size, head_dim]`.

        Returns the normed hidden states `[T, H]`.
        """
        eps, scale, heads, cos_sin = self.config.rms_norm_eps, self._scale, self._heads, self._cos_sin
        tokens, head_dim = token_ids.shape[0], self.config.head_dim
        residual = F.embedding(token_ids, self._embedding)
        hidden = ops.rms_norm(residual, self._first_norm, eps)
        for layer, (k_cache, v_cache) in zip(self._layers, kv_caches):
            q, k, v = torch.split(layer.qkv(hidden).view(tokens, -1, head_dim), heads, dim=1)
            if layer.q_norm is not None and layer.k_norm is not None:
                q, k = ops.rms_norm(q, layer.q_norm, eps), ops.rms_norm(k, layer.k_norm, eps)
            q = ops.rope_and_write_kv(q, k, v, k_cache, v_cache, cos_sin, metadata)
            attended = ops.paged_attention(q, k_cache, v_cache, metadata, scale, layer.window)
            attended = layer.output(attended.view(tokens, -1))
            hidden, residual = ops.add_rms_norm(attended, residual, layer.mlp_norm, eps)
            mixed = layer.down(ops.silu_and_mul(layer.gate_up(hidden)))
            hidden, residual = ops.add_rms_norm(mixed, residual, layer.next_norm, eps)
        return hidden

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Scores of the next token, fp32 `[R, V]`, for hidden states `[R, H]`."""
        return self._lm_head(hidden).float()


class _Loader:
    """Reads weights in the order of the model, checks shapes, fuses and packs them."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        weight_format: WeightFormat,
        device: torch.device,
        progress: Progress | None,
    ) -> None:
        self._config = config
        self._weights = weights
        self._format = weight_format
        self._dtype = activation_dtype(weight_format)
        self._device = device
        self._progress = progress
        self._done_bytes = 0

    def layer(self, number: int) -> _Layer:
        config = self._config
        prefix = f"model.layers.{number}"
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        hidden, inner, head_dim = config.hidden_size, config.intermediate_size, config.head_dim
        q_rows, kv_rows = config.num_heads * head_dim, config.num_kv_heads * head_dim
        qkv = {f"{attention}.q_proj": q_rows, f"{attention}.k_proj": kv_rows, f"{attention}.v_proj": kv_rows}
        following = "model.norm" if number + 1 == config.num_layers else f"model.layers.{number + 1}.input_layernorm"
        return _Layer(
            qkv=self.linear(qkv, hidden, config.qkv_bias),
            output=self.linear({f"{attention}.o_proj": hidden}, q_rows, config.output_bias),
            gate_up=self.linear({f"{mlp}.gate_proj": inner, f"{mlp}.up_proj": inner}, hidden, config.mlp_bias),
            down=self.linear({f"{mlp}.down_proj": hidden}, inner, config.mlp_bias),
            mlp_norm=self.tensor(f"{prefix}.post_attention_layernorm.weight", hidden),
            next_norm=self.tensor(f"{following}.weight", hidden),
            q_norm=self.tensor(f"{attention}.q_norm.weight", head_dim) if config.qk_norm else None,
            k_norm=self.tensor(f"{attention}.k_norm.weight", head_dim) if config.qk_norm else None,
            window=config.layer_windows[number],
        )

    def lm_head(self, embedding: torch.Tensor) -> Linear:
        config = self._config
        if not config.tie_word_embeddings:
            return self.linear({"lm_head": config.vocab_size}, config.hidden_size, bias=False)
        blocks = self._weights.int4("model.embed_tokens.weight") if self._format is WeightFormat.INT4 else None
        return make_linear(embedding if blocks is None else self._move(blocks), None, self._format)

    def linear(self, modules: dict[str, int], columns: int, bias: bool) -> Linear:
        """One linear layer of several modules (name to rows) stacked by rows."""
        weight = self._int4(modules, columns) if self._format is WeightFormat.INT4 else None
        if weight is None:
            parts = [self.tensor(f"{name}.weight", rows, columns) for name, rows in modules.items()]
            weight = parts[0] if len(parts) == 1 else torch.cat(parts)
        biases = [self.tensor(f"{name}.bias", rows) for name, rows in modules.items()] if bias else []
        return make_linear(weight, torch.cat(biases) if biases else None, self._format)

    def tensor(self, name: str, *shape: int) -> torch.Tensor:
        tensor = self._weights.dense(name, self._dtype)
        self._check(name, tuple(tensor.shape), shape)
        return tensor.to(self._device)

    def _int4(self, modules: dict[str, int], columns: int) -> Weight | None:
        parts = []
        for name, rows in modules.items():
            blocks = self._weights.int4(f"{name}.weight")
            if blocks is None:
                return None
            self._check(f"{name}.weight", blocks.shape, (rows, columns))
            parts.append(blocks)
        codes, scales, minimums = (
            torch.cat([getattr(part, field) for part in parts]) for field in ("codes", "scales", "minimums")
        )
        return self._move(Int4Blocks(codes, scales, minimums, parts[0].block))

    def _move(self, blocks: Int4Blocks) -> Int4Blocks:
        device = self._device
        return Int4Blocks(blocks.codes.to(device), blocks.scales.to(device), blocks.minimums.to(device), blocks.block)

    def _check(self, name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
        if found != expected:
            raise ValueError(f"weight {name} has shape {found}, the model's configuration expects {expected}")
        self._done_bytes += self._weights.nbytes(name)
        self.report(self._done_bytes)

    def report(self, done_bytes: int) -> None:
        if self._progress is not None:
            total_bytes = self._weights.total_bytes
            self._progress(min(done_bytes, total_bytes), total_bytes)
