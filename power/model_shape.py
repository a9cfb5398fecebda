"""Shapes of decoder models: what a token costs in FLOPs and bytes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A dense decoder with grouped-query attention and a gated MLP. Sizes in elements, bytes where named so."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    weight_bytes: float = 2.0
    kv_bytes: float = 2.0

    def __post_init__(self) -> None:
        for field in ("layers", "hidden", "heads", "kv_heads", "head_dim", "intermediate", "vocab"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} of model shape {self.name!r} must be at least 1")

    @property
    def linear_parameters(self) -> int:
        """Parameters multiplied with every token in the layers (embedding and output head apart)."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def head_parameters(self) -> int:
        return self.hidden * self.vocab

    @property
    def streamed_bytes(self) -> float:
        """Weights read from memory once in each step: all layers and the output head."""
        return (self.linear_parameters + self.head_parameters) * self.weight_bytes

    @property
    def kv_bytes_per_token(self) -> float:
        return 2 * self.layers * self.kv_heads * self.head_dim * self.kv_bytes

    @property
    def flops_per_token(self) -> float:
        """Of the linear layers, 2 per multiply-add; the output head counts per sampled token."""
        return 2.0 * self.linear_parameters

    @property
    def head_flops(self) -> float:
        return 2.0 * self.head_parameters

    @property
    def attention_flops_per_pair(self) -> float:
        """Per query-key pair: scores and weighted values over all query heads and layers."""
        return 4.0 * self.layers * self.heads * self.head_dim


_SHAPES = (
    ModelShape("llama-3.1-8b", 32, 4096, 32, 8, 128, 14336, 128256),
    ModelShape("llama-3.2-1b", 16, 2048, 32, 8, 64, 8192, 128256),
    ModelShape("llama-3.1-70b", 80, 8192, 64, 8, 128, 28672, 128256),
    ModelShape("llama-2-70b", 80, 8192, 64, 8, 128, 28672, 32000),
    ModelShape("qwen3-0.6b", 28, 1024, 16, 8, 128, 3072, 151936),
    ModelShape("qwen3-1.7b", 28, 2048, 16, 8, 128, 6144, 151936),
    ModelShape("qwen3-4b", 36, 2560, 32, 8, 128, 9728, 151936),
    ModelShape("qwen3-8b", 36, 4096, 32, 8, 128, 12288, 151936),
    ModelShape("qwen3-14b", 40, 5120, 40, 8, 128, 17408, 151936),
    ModelShape("qwen3-32b", 64, 5120, 64, 8, 128, 25600, 151936),
    ModelShape("smollm2-135m", 30, 576, 9, 3, 64, 1536, 49152),
)
PRESETS = {shape.name: shape for shape in _SHAPES}
"""Sizes from the models' published `config.json`; bfloat16 weights and cache."""


def model_shape(name: str) -> ModelShape:
    """A preset by name. Raises `ValueError` listing the known ones."""
    shape = PRESETS.get(name.lower())
    if shape is None:
        raise ValueError(f"no model shape {name!r}; known: {', '.join(sorted(PRESETS))}")
    return shape
