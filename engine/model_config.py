"""The shape of a decoder-only transformer."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

MAX_DIMENSION = 1 << 24


class RopeScalingKind(enum.StrEnum):
    LINEAR = "linear"
    LLAMA3 = "llama3"


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the trained context.

    `LINEAR` divides every frequency by `factor`. `LLAMA3` divides the slow ones, keeps the fast ones and blends
    between (Llama 3.1 model card and its `config.json`).
    """

    kind: RopeScalingKind
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    def __post_init__(self) -> None:
        if not (math.isfinite(self.factor) and self.factor > 0):
            raise ValueError(f"rope scaling factor must be above 0, got {self.factor}")
        if self.kind is RopeScalingKind.LLAMA3 and not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ValueError(
                "llama3 rope scaling needs 0 < low_freq_factor < high_freq_factor, "
                f"got {self.low_freq_factor} and {self.high_freq_factor}"
            )


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Everything the decoder needs to know about a model's shape.

    `layer_windows[i]`: tokens that layer `i` attends back to, itself included; None sees the whole context.
    Raises `ValueError` naming the field when sizes do not fit together.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    max_position_embeddings: int
    layer_windows: tuple[int | None, ...]
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "max_position_embeddings",
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or not 1 <= value <= MAX_DIMENSION:
                raise ValueError(f"{name} must be a whole number from 1 to {MAX_DIMENSION}, got {value!r}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary embeddings, got {self.head_dim}")
        if len(self.layer_windows) != self.num_layers:
            raise ValueError(f"{len(self.layer_windows)} layer windows for {self.num_layers} layers")
        if any(window is not None and window < 1 for window in self.layer_windows):
            raise ValueError(f"a sliding window must be at least 1 token, got {self.layer_windows}")
        for name in ("rms_norm_eps", "rope_theta"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be above 0, got {value!r}")

    @property
    def num_parameters(self) -> int:
        """Weights of the model, tied embeddings counted once."""
        attention = self.hidden_size * self.head_dim * 2 * (self.num_heads + self.num_kv_heads)
        norms = 2 * self.hidden_size + (2 * self.head_dim if self.qk_norm else 0)
        biases = (
            (self.num_heads + 2 * self.num_kv_heads) * self.head_dim * self.qkv_bias
            + self.hidden_size * self.output_bias
            + (2 * self.intermediate_size + self.hidden_size) * self.mlp_bias
        )
        layer = attention + 3 * self.hidden_size * self.intermediate_size + norms + biases
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return self.num_layers * layer + embeddings + self.hidden_size

    def kv_bytes_per_token(self, element_bytes: int) -> int:
        """Bytes of keys and values that one token leaves in the cache."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * element_bytes
