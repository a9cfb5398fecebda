"""A model's shape from what it is published with: a Hugging Face `config.json` or GGUF metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.model_config import ModelConfig, RopeScaling, RopeScalingKind

HF_ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
GGUF_ARCHITECTURES = ("llama", "qwen2", "qwen3")


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
    if _integer(metadata, "split.count", 1) > 1:
        raise ValueError("this is one part of a split GGUF; join the parts with `llama-gguf-split --merge`")
    if _integer(fields, "expert_count", 0) > 0:
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
