"""The decoder-only transformer of the Llama family: embed, attend, mix, predict.

One class serves Llama 2/3/3.1, SmolLM2, Mistral, Qwen2 and Qwen3: what sets them apart is in `ModelConfig`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from engine.model_config import ModelConfig
from engine.rank_group import RankGroup
from engine.shard import Shard, ShardedWeights
from engine.weight_loader import LayerTensors, Progress, WeightLoader
from engine.weights import Weights
from kernels import ops
from kernels.cpu.decoder import DecoderLayer, DecoderShape, make_cpu_decoder
from kernels.gpu.definitions import KVScales
from kernels.linear import activation_dtype, compute_logits, make_linear
from kernels.metadata import AttentionMetadata
from kernels.weight_format import WeightFormat

KvCache = tuple[torch.Tensor, torch.Tensor]


def _pack(tensors: LayerTensors, weight_format: WeightFormat) -> DecoderLayer:
    return DecoderLayer(
        input_norm=tensors.input_norm,
        qkv=make_linear(tensors.qkv, tensors.qkv_bias, weight_format),
        out=make_linear(tensors.output, tensors.output_bias, weight_format),
        post_norm=tensors.mlp_norm,
        gate_up=make_linear(tensors.gate_up, tensors.gate_up_bias, weight_format),
        down=make_linear(tensors.down, tensors.down_bias, weight_format),
        q_norm=tensors.q_norm,
        k_norm=tensors.k_norm,
        window=tensors.window,
    )


class Decoder:
    """Weights packed for a device, and the forward pass over packed batches.

    The pass stands here operation by operation; where the compiled CPU library covers the model, one call into it
    computes the same. With a group every rank keeps its part of the weights (`engine.shard`) and of the KV heads, and
    calls at the same time with the same tokens; hidden states and logits are the same bits on each.

    Attributes:
        config: the model as this rank computes it.

    Args:
        weights: read once, tensor by tensor; memory peaks at the packed model and one layer.
        max_model_len: longest context to prepare for; the model's own limit when None, never more than that.
        progress: called with (bytes read, bytes in all) as loading goes on.
        group: the ranks that share the model; raises `ValueError` where its sizes cannot be shared out.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        weight_format: WeightFormat = WeightFormat.BF16,
        device: torch.device | str = "cpu",
        max_model_len: int | None = None,
        progress: Progress | None = None,
        group: RankGroup | None = None,
    ) -> None:
        self._group = group
        self._vocab_start = 0
        stored = config
        if group is not None:
            shard = Shard(config, group.rank, group.size)
            weights, config = ShardedWeights(weights, shard), shard.local
            self._vocab_start, stored = shard.vocab_start, replace(config, vocab_size=shard.vocab_rows)
        self.config = config
        self.weight_format = weight_format
        self.device = torch.device(device)
        self.dtype = activation_dtype(weight_format)
        self.max_model_len = context_length(config, max_model_len)
        with torch.inference_mode():
            loader = WeightLoader(stored, weights, weight_format, self.device, progress)
            self._embedding = loader.embedding()
            self._layers = tuple(_pack(loader.layer(number), weight_format) for number in range(config.num_layers))
            self._final_norm = loader.final_norm()
            self._lm_head = make_linear(loader.lm_head(self._embedding), None, weight_format)
            self._cos_sin = loader.rope_table(self.max_model_len)
        scale = config.head_dim**-0.5
        shape = DecoderShape(config.num_heads, config.num_kv_heads, config.head_dim, config.rms_norm_eps, scale)
        self._compiled = None
        if group is None:
            self._compiled = make_cpu_decoder(shape, self._layers, self._embedding, self._final_norm, self._cos_sin)
        # The norm that follows each layer is fused with its residual addition.
        self._following_norms = [layer.input_norm for layer in self._layers[1:]] + [self._final_norm]
        self._heads = [config.num_heads, config.num_kv_heads, config.num_kv_heads]
        self._scale = scale

    @torch.inference_mode()
    def forward(
        self,
        token_ids: torch.Tensor,
        metadata: AttentionMetadata,
        kv_caches: Sequence[KvCache],
        kv_scales: Sequence[KVScales] | None = None,
    ) -> torch.Tensor:
        """Run packed tokens, writing their keys and values into the caches.

        Args:
            token_ids: `[T]` int64.
            kv_caches: for each layer `(k_cache, v_cache)`, `[blocks, kv_heads, block_size, head_dim]`.
            kv_scales: for each layer the scales of caches that hold int8 or fp8 codes.

        Returns the normed hidden states `[T, H]`.
        """
        if self._compiled is not None and kv_scales is None:
            return self._compiled.forward(token_ids, metadata, kv_caches)
        eps, scale, heads, cos_sin = self.config.rms_norm_eps, self._scale, self._heads, self._cos_sin
        tokens, head_dim = token_ids.shape[0], self.config.head_dim
        residual = self._embed(token_ids)
        hidden = ops.rms_norm(residual, self._layers[0].input_norm, eps)
        for number, (layer, following_norm) in enumerate(zip(self._layers, self._following_norms)):
            k_cache, v_cache = kv_caches[number]
            scales = None if kv_scales is None else kv_scales[number]
            q, k, v = torch.split(layer.qkv(hidden).view(tokens, -1, head_dim), heads, dim=1)
            q = ops.rope_and_write_kv(
                q, k, v, k_cache, v_cache, cos_sin, metadata,
                q_norm=layer.q_norm, k_norm=layer.k_norm, eps=eps, scales=scales,
            )  # fmt: skip
            attended = ops.paged_attention(q, k_cache, v_cache, metadata, scale, layer.window, scales=scales)
            attended = self._add_ranks(layer.out(attended.view(tokens, -1)))
            hidden, residual = ops.add_rms_norm(attended, residual, layer.post_norm, eps)
            mixed = self._add_ranks(layer.down(ops.silu_and_mul(layer.gate_up(hidden))))
            hidden, residual = ops.add_rms_norm(mixed, residual, following_norm, eps)
        return hidden

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Scores of the next token, fp32 `[R, V]`, for hidden states `[R, H]`."""
        scores = compute_logits(self._lm_head, hidden)
        if self._group is None:
            return scores
        return self._group.join(scores)[:, : self.config.vocab_size].contiguous()

    def _embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Rows of the embedding; each comes from the rank that keeps it, the others add zeros."""
        if self._group is None:
            return ops.embedding(token_ids, self._embedding)
        rows = token_ids - self._vocab_start
        elsewhere = (rows < 0) | (rows >= self._embedding.shape[0])
        embedded = ops.embedding(rows.masked_fill(elsewhere, 0), self._embedding)
        return self._group.add(embedded.masked_fill_(elsewhere.unsqueeze(1), 0.0))

    def _add_ranks(self, partial: torch.Tensor) -> torch.Tensor:
        return partial if self._group is None else self._group.add(partial)

    def step_logits(
        self,
        token_ids: torch.Tensor,
        metadata: AttentionMetadata,
        kv_caches: Sequence[KvCache],
        rows: torch.Tensor,
    ) -> torch.Tensor:
        """`forward`, then the logits `[R, V]` fp32 of the packed tokens `rows` `[R]`."""
        return self.logits(self.forward(token_ids, metadata, kv_caches)[rows])


def context_length(config: ModelConfig, asked: int | None) -> int:
    """The longest context to serve. Raises `ValueError` below 1; never more than the model's own limit."""
    if asked is not None and asked < 1:
        raise ValueError(f"max_model_len must be at least 1, got {asked}")
    return min(asked or config.max_position_embeddings, config.max_position_embeddings)
