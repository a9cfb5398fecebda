"""Model shapes of the GPU benchmarks, from the published configurations, and random weights for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from engine.model_config import ModelConfig, RopeScaling, RopeScalingKind
from engine.random_model import weight_shapes
from engine.weights import Part
from kernels.linear import Int4Blocks, Int8Blocks

_LLAMA3 = RopeScaling(RopeScalingKind.LLAMA3, 8.0, 1.0, 4.0, 8192)
MAX_MODEL_LEN = 2304


def _shape(
    architecture: str,
    vocab: int,
    hidden: int,
    inner: int,
    layers: int,
    heads: tuple[int, int, int],
    theta: float,
    tied: bool,
    scaling: RopeScaling | None = None,
) -> ModelConfig:
    query_heads, kv_heads, head_dim = heads
    return ModelConfig(
        architecture=architecture,
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=inner,
        num_layers=layers,
        num_heads=query_heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=1e-6 if architecture == "qwen3" else 1e-5,
        rope_theta=theta,
        max_position_embeddings=40960,
        layer_windows=(None,) * layers,
        rope_scaling=scaling,
        tie_word_embeddings=tied,
        qk_norm=architecture == "qwen3",
    )


SHAPES: Mapping[str, ModelConfig] = {
    "qwen3-0.6b": _shape("qwen3", 151936, 1024, 3072, 28, (16, 8, 128), 1e6, True),
    "llama-3.2-1b": _shape("llama", 128256, 2048, 8192, 16, (32, 8, 64), 5e5, True, _LLAMA3),
    "llama-3.1-8b": _shape("llama", 128256, 4096, 14336, 32, (32, 8, 128), 5e5, False, _LLAMA3),
}
# What a dry run serves under every name: the same code, no speed.
TINY = _shape("qwen3", 512, 64, 128, 2, (4, 2, 32), 1e4, True)


class RandomWeights:
    """`engine.weights.Weights` made when asked for, on the device: an 8B model is never whole on the host.

    Matrices scaled by `columns ** -0.5`, norms around 1, so that activations stay near one.
    """

    def __init__(self, config: ModelConfig, device: torch.device, seed: int = 0) -> None:
        self._shapes = weight_shapes(config)
        self._device = device
        self._seed = seed

    @property
    def total_bytes(self) -> int:
        return sum(map(self.nbytes, self._shapes))

    def nbytes(self, name: str) -> int:
        size = 2
        for each in self._shapes[name]:
            size *= each
        return size

    def __contains__(self, name: str) -> bool:
        return name in self._shapes

    def dense(self, name: str, dtype: torch.dtype, part: Part | None = None) -> torch.Tensor:
        """The same values for a name whenever it is read."""
        if name not in self._shapes:
            raise ValueError(f"the model has no weight {name}")
        shape = self._shapes[name]
        generator = torch.Generator(self._device).manual_seed(self._seed + sorted(self._shapes).index(name))
        noise = torch.randn(shape, generator=generator, device=self._device)
        if part is not None:
            noise = part.of(noise).contiguous()
        if len(shape) == 2:
            return noise.mul_(shape[1] ** -0.5).to(dtype)
        return noise.mul_(0.1).add_(1.0 if "norm" in name else 0.0).to(dtype)

    def blocks(self, name: str, part: Part | None = None) -> Int4Blocks | Int8Blocks | None:
        return None


def step_weight_bytes(config: ModelConfig, bytes_per_weight: int = 2) -> int:
    """Bytes of weights that a decode step reads: all but the rows of an untied embedding. Scales and norms, less than
    a hundredth, count as weights."""
    unread = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    return bytes_per_weight * (config.num_parameters - unread)


def hf_config(config: ModelConfig) -> Any:
    """The shape as transformers' configuration, rope scaling left out: it changes no amount of work."""
    from transformers import LlamaConfig, Qwen3Config

    made = Qwen3Config if config.architecture == "qwen3" else LlamaConfig
    return made(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_position_embeddings,
        rms_norm_eps=config.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        tie_word_embeddings=config.tie_word_embeddings,
    )
