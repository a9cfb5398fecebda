"""The shape of a decoder-only transformer, read from a Hugging Face `config.json` or from GGUF metadata."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

HF_ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
GGUF_ARCHITECTURES = ("llama", "qwen2", "qwen3")

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


def config_from_hf(fields: Mapping[str, Any]) -> ModelConfig:
    """Read the contents of a `config.json`, in the layout of transformers 4 or 5.

    Raises `ValueError` naming what is missing or not supported.
    """
    architecture = _hf_architecture(fields)
    quantization = fields.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method") if isinstance(quantization, Mapping) else quantization
        raise ValueError(f"quantised checkpoints ({method}) are not supported; use the bf16 checkpoint or a GGUF file")
    if fields.get("hidden_act", "silu") not in ("silu", "swish"):
        raise ValueError(f"activation {fields['hidden_act']!r} is not supported; supported: silu")
    hidden_size, num_heads = _integer(fields, "hidden_size"), _integer(fields, "num_attention_heads")
    num_layers = _integer(fields, "num_hidden_layers")
    rope = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise ValueError(f"rope scaling must be an object in config.json, got {rope!r}")
    rope = {**{name: fields.get(name) for name in ("rope_theta", "partial_rotary_factor")}, **rope}
    if _number(rope, "partial_rotary_factor", 1.0) != 1.0:
        raise ValueError("partial rotary embeddings are not supported")
    return ModelConfig(
        architecture=architecture,
        vocab_size=_integer(fields, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=_integer(fields, "intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=_integer(fields, "num_key_value_heads", num_heads),
        head_dim=_integer(fields, "head_dim", hidden_size // max(num_heads, 1)),
        rms_norm_eps=_number(fields, "rms_norm_eps", 1e-6),
        rope_theta=_number(rope, "rope_theta", 10000.0),
        max_position_embeddings=_integer(fields, "max_position_embeddings", 2048),
        layer_windows=_hf_layer_windows(fields, architecture, num_layers),
        rope_scaling=_hf_rope_scaling(rope),
        tie_word_embeddings=bool(fields.get("tie_word_embeddings", False)),
        qkv_bias=architecture == "qwen2" or bool(fields.get("attention_bias", False)),
        output_bias=architecture != "qwen2" and bool(fields.get("attention_bias", False)),
        mlp_bias=bool(fields.get("mlp_bias", False)),
        qk_norm=architecture == "qwen3",
    )


def config_from_gguf(metadata: Mapping[str, Any], tensor_shapes: Mapping[str, tuple[int, ...]]) -> ModelConfig:
    """Read GGUF metadata; `tensor_shapes` (rows first) settles what the metadata leaves open.

    A missing `output.weight` means tied embeddings; biases and query/key norms are there when their tensors are.
    """
    architecture = metadata.get("general.architecture")
    if architecture not in GGUF_ARCHITECTURES:
        supported = ", ".join(GGUF_ARCHITECTURES)
        raise ValueError(f"GGUF architecture {architecture!r} is not supported; supported: {supported}")

    fields = {key.removeprefix(f"{architecture}."): value for key, value in metadata.items()}
    if int(fields.get("expert_count", 0) or 0) > 0:
        raise ValueError("mixture-of-experts models are not supported; supported: dense llama, qwen2 and qwen3")
    hidden_size, num_heads = _integer(fields, "embedding_length"), _integer(fields, "attention.head_count")
    num_layers = _integer(fields, "block_count")
    head_dim = _integer(fields, "attention.key_length", hidden_size // max(num_heads, 1))
    if _integer(fields, "attention.value_length", head_dim) != head_dim:
        raise ValueError("keys and values of different widths are not supported")
    if _integer(fields, "rope.dimension_count", head_dim) != head_dim:
        raise ValueError("partial rotary embeddings are not supported")
    embedding = tensor_shapes.get("token_embd.weight")
    if embedding is None or len(embedding) != 2:
        raise ValueError("the GGUF file has no token_embd.weight matrix; it is not a language model")
    window = _integer(fields, "attention.sliding_window", 0) or None
    return ModelConfig(
        architecture=architecture,
        vocab_size=embedding[0],
        hidden_size=hidden_size,
        intermediate_size=_integer(fields, "feed_forward_length"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=_integer(fields, "attention.head_count_kv", num_heads),
        head_dim=head_dim,
        rms_norm_eps=_number(fields, "attention.layer_norm_rms_epsilon", 1e-5),
        rope_theta=_number(fields, "rope.freq_base", 10000.0),
        max_position_embeddings=_integer(fields, "context_length", 2048),
        layer_windows=(window,) * num_layers,
        rope_scaling=_gguf_rope_scaling(fields),
        tie_word_embeddings="output.weight" not in tensor_shapes,
        qkv_bias="blk.0.attn_q.bias" in tensor_shapes,
        output_bias="blk.0.attn_output.bias" in tensor_shapes,
        mlp_bias="blk.0.ffn_up.bias" in tensor_shapes,
        qk_norm="blk.0.attn_q_norm.weight" in tensor_shapes,
    )


def _integer(fields: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = fields.get(name)
    if value is None:
        value = default
    if value is None:
        raise ValueError(f"the model's configuration has no {name}")
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} in the model's configuration must be a whole number, got {value!r}")
    return value


def _number(fields: Mapping[str, Any], name: str, default: float | None = None) -> float:
    value = fields.get(name)
    if value is None:
        value = default
    if value is None:
        raise ValueError(f"the model's configuration has no {name}")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name} in the model's configuration must be a number, got {value!r}")
    return float(value)


def _hf_architecture(fields: Mapping[str, Any]) -> str:
    names = fields.get("architectures") or []
    if not isinstance(names, list):
        raise ValueError(f"architectures in config.json must be a list, got {names!r}")
    for name in names:
        if name in HF_ARCHITECTURES:
            return HF_ARCHITECTURES[name]
    named = ", ".join(map(str, names)) or str(fields.get("model_type"))
    if not names and fields.get("model_type") in HF_ARCHITECTURES.values():
        return str(fields["model_type"])
    raise ValueError(f"architecture {named} is not supported; supported: {', '.join(HF_ARCHITECTURES)}")


def _hf_layer_windows(fields: Mapping[str, Any], architecture: str, num_layers: int) -> tuple[int | None, ...]:
    window = fields.get("sliding_window")
    if window is None or not fields.get("use_sliding_window", architecture == "mistral"):
        return (None,) * num_layers
    window = _integer(fields, "sliding_window")
    layer_types = fields.get("layer_types")
    if layer_types:
        if len(layer_types) != num_layers:
            raise ValueError(f"{len(layer_types)} layer_types for {num_layers} layers")
        return tuple(window if kind == "sliding_attention" else None for kind in layer_types)
    first = 0 if architecture == "mistral" else _integer(fields, "max_window_layers", 0)
    return tuple(window if layer >= first else None for layer in range(num_layers))


def _hf_rope_scaling(rope: Mapping[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind not in tuple(RopeScalingKind):
        supported = ", ".join(("default", *RopeScalingKind))
        raise ValueError(f"rope scaling {kind!r} is not supported; supported: {supported}")
    if RopeScalingKind(kind) is RopeScalingKind.LINEAR:
        return RopeScaling(RopeScalingKind.LINEAR, _number(rope, "factor"))
    return RopeScaling(
        RopeScalingKind.LLAMA3,
        _number(rope, "factor"),
        _number(rope, "low_freq_factor"),
        _number(rope, "high_freq_factor"),
        _integer(rope, "original_max_position_embeddings"),
    )


def _gguf_rope_scaling(fields: Mapping[str, Any]) -> RopeScaling | None:
    """Llama 3's scaling is no metadata in GGUF but the tensor `rope_freqs.weight`, which the decoder applies."""
    kind = fields.get("rope.scaling.type", "none")
    if kind == "none":
        return None
    if kind != RopeScalingKind.LINEAR:
        raise ValueError(f"rope scaling {kind!r} is not supported in GGUF files; supported: none, linear")
    return RopeScaling(RopeScalingKind.LINEAR, _number(fields, "rope.scaling.factor", 1.0))
