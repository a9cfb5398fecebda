"""The decoder as one call into the compiled CPU library: no Python between its layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engine.decoder import Decoder, KvCache, context_length
from engine.model_config import ModelConfig
from engine.weight_loader import Progress, WeightLoader
from engine.weights import Weights
from kernels.cpu.decoder import CpuDecoder, DecoderShape, LayerWeights, make_cpu_decoder
from kernels.linear import WeightFormat, activation_dtype
from kernels.metadata import AttentionMetadata


class NativeDecoder:
    """`Decoder`'s computation, compiled; `step_logits` alone, for a server needs no more."""

    def __init__(self, config: ModelConfig, weight_format: WeightFormat, max_model_len: int, inner: CpuDecoder) -> None:
        self.config = config
        self.weight_format = weight_format
        self.dtype = activation_dtype(weight_format)
        self.device = torch.device("cpu")
        self.max_model_len = max_model_len
        self._inner = inner
        self._bound: Sequence[KvCache] | None = None

    def step_logits(
        self,
        token_ids: torch.Tensor,
        metadata: AttentionMetadata,
        kv_caches: Sequence[KvCache],
        rows: torch.Tensor,
    ) -> torch.Tensor:
        """Run packed tokens `[T]`, write their keys and values, return the logits `[R, V]` fp32 of `rows` `[R]`."""
        if self._bound is not kv_caches:
            self._inner.bind_caches(kv_caches)
            self._bound = kv_caches
        return self._inner.forward(token_ids, metadata, rows)


def load_decoder(
    config: ModelConfig,
    weights: Weights,
    weight_format: WeightFormat,
    device: torch.device,
    max_model_len: int | None = None,
    progress: Progress | None = None,
) -> Decoder | NativeDecoder:
    """The fastest decoder that computes this model on this device."""
    if device.type == "cpu" and not (config.output_bias or config.mlp_bias):
        native = _load_native(config, weights, weight_format, max_model_len, progress)
        if native is not None:
            return native
    return Decoder(config, weights, weight_format, device, max_model_len, progress)


def _load_native(
    config: ModelConfig,
    weights: Weights,
    weight_format: WeightFormat,
    max_model_len: int | None,
    progress: Progress | None,
) -> NativeDecoder | None:
    """None where the compiled library does not cover the model."""
    length = context_length(config, max_model_len)
    shape = DecoderShape(
        config.num_heads, config.num_kv_heads, config.head_dim, config.rms_norm_eps, config.head_dim**-0.5
    )
    with torch.inference_mode():
        loader = WeightLoader(config, weights, weight_format, torch.device("cpu"), progress)
        embedding = loader.embedding()
        layers = [_layer(loader, number) for number in range(config.num_layers)]
        inner = make_cpu_decoder(
            shape,
            layers,
            embedding,
            loader.final_norm(),
            loader.lm_head(embedding),
            loader.rope_table(length),
            weight_format,
        )
    return None if inner is None else NativeDecoder(config, weight_format, length, inner)


def _layer(loader: WeightLoader, number: int) -> LayerWeights:
    tensors = loader.layer(number)
    return LayerWeights(
        input_norm=tensors.input_norm,
        qkv=tensors.qkv,
        out=tensors.output,
        post_norm=tensors.mlp_norm,
        gate_up=tensors.gate_up,
        down=tensors.down,
        qkv_bias=tensors.qkv_bias,
        q_norm=tensors.q_norm,
        k_norm=tensors.k_norm,
        window=tensors.window,
    )
