"""Configurations as models publish them, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from engine.config_reading import config_from_hf
from engine.model_config import ModelConfig, RopeScaling, RopeScalingKind

LLAMA31_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
}
QWEN3_06B: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 151936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000,
    "rope_scaling": None,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "sliding_window": None,
    "use_sliding_window": False,
    "max_window_layers": 28,
}
QWEN25_05B: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "max_position_embeddings": 32768,
    "sliding_window": 32768,
    "use_sliding_window": False,
    "max_window_layers": 21,
    "tie_word_embeddings": True,
}


@pytest.mark.parametrize(
    ("fields", "parameters", "kv_bytes"),
    [(LLAMA31_8B, 8_030_261_248, 131_072), (QWEN3_06B, 596_049_920, 114_688), (QWEN25_05B, 494_032_768, 12_288)],
)
def test_published_sizes(fields: dict[str, Any], parameters: int, kv_bytes: int) -> None:
    """Parameter counts as the models' safetensors indexes state them; KV bytes per token in 16 bits."""
    config = config_from_hf(fields)
    assert config.num_parameters == parameters
    assert config.kv_bytes_per_token(2) == kv_bytes


def test_llama31() -> None:
    config = config_from_hf(LLAMA31_8B)
    assert config.head_dim == 128
    assert config.rope_scaling == RopeScaling(RopeScalingKind.LLAMA3, 8.0, 1.0, 4.0, 8192)
    assert set(config.layer_windows) == {None}


def test_transformers_5_layout_of_rope() -> None:
    moved = {key: value for key, value in LLAMA31_8B.items() if not key.startswith("rope")}
    moved["rope_parameters"] = {**LLAMA31_8B["rope_scaling"], "rope_theta": 500000.0}
    assert config_from_hf(moved) == config_from_hf(LLAMA31_8B)


def test_qwen_flags() -> None:
    two, three = config_from_hf(QWEN25_05B), config_from_hf(QWEN3_06B)
    assert (two.qkv_bias, two.output_bias, two.qk_norm) == (True, False, False)
    assert (three.qkv_bias, three.qk_norm, three.head_dim) == (False, True, 128)
    assert set(two.layer_windows) == {None}


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({"use_sliding_window": True, "max_window_layers": 22}, (None,) * 22 + (32768,) * 2),
        ({"use_sliding_window": True, "layer_types": ["sliding_attention", "full_attention"] * 12}, (32768, None) * 12),
        ({"architectures": ["MistralForCausalLM"], "use_sliding_window": None, "sliding_window": None}, (None,) * 24),
    ],
)
def test_sliding_windows(changes: dict[str, Any], windows: tuple[int | None, ...]) -> None:
    assert config_from_hf({**QWEN25_05B, **changes}).layer_windows == windows


def test_mistral_slides_by_default() -> None:
    fields = {key: value for key, value in LLAMA31_8B.items() if key != "rope_scaling"}
    config = config_from_hf({**fields, "architectures": ["MistralForCausalLM"], "sliding_window": 4096})
    assert set(config.layer_windows) == {4096}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GemmaForCausalLM"]}, "GemmaForCausalLM is not supported; supported: LlamaForCausalLM"),
        ({"architectures": "LlamaForCausalLM"}, "must be a list"),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        ({"quantization_config": {"quant_method": "awq"}}, "awq"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "'yarn' is not supported; supported: default, linear"),
        ({"rope_scaling": {"type": "linear"}}, "no factor"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor must be above 0"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        ({"rope_scaling": [1]}, "must be an object"),
        ({"partial_rotary_factor": 0.5}, "partial rotary"),
        ({"hidden_size": None}, "no hidden_size"),
        ({"hidden_size": "4096"}, "hidden_size in the model's configuration must be a whole number"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
        ({"num_key_value_heads": 5}, "not a multiple"),
        ({"head_dim": 127}, "even"),
        ({"num_hidden_layers": 0}, "num_layers"),
        ({"num_attention_heads": 0}, "num_heads"),
        ({"vocab_size": 1 << 40}, "vocab_size"),
    ],
)
def test_refusals_name_the_reason(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_from_hf({**LLAMA31_8B, **changes})


def test_windows_must_fit() -> None:
    config = config_from_hf(LLAMA31_8B)
    fields = {name: getattr(config, name) for name in ModelConfig.__slots__}
    with pytest.raises(ValueError, match="1 layer windows for 32 layers"):
        ModelConfig(**{**fields, "layer_windows": (None,)})
    with pytest.raises(ValueError, match="at least 1 token"):
        ModelConfig(**{**fields, "layer_windows": (0,) * 32})
