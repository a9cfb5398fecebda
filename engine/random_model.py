"""Models with random weights, made on the fly for tests and benchmarks."""

from __future__ import annotations

import torch

from engine.model_config import ModelConfig
from engine.weights import TensorWeights


def weight_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every weight of a model by its name, with its shape."""
    hidden, inner = config.hidden_size, config.intermediate_size
    q_rows, kv_rows = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    for number in range(config.num_layers):
        attention, mlp = f"model.layers.{number}.self_attn", f"model.layers.{number}.mlp"
        linears = {
            f"{attention}.q_proj": (q_rows, hidden, config.qkv_bias),
            f"{attention}.k_proj": (kv_rows, hidden, config.qkv_bias),
            f"{attention}.v_proj": (kv_rows, hidden, config.qkv_bias),
            f"{attention}.o_proj": (hidden, q_rows, config.output_bias),
            f"{mlp}.gate_proj": (inner, hidden, config.mlp_bias),
            f"{mlp}.up_proj": (inner, hidden, config.mlp_bias),
            f"{mlp}.down_proj": (hidden, inner, config.mlp_bias),
        }
        for name, (rows, columns, bias) in linears.items():
            shapes[f"{name}.weight"] = (rows, columns)
            if bias:
                shapes[f"{name}.bias"] = (rows,)
        if config.qk_norm:
            shapes[f"{attention}.q_norm.weight"] = (config.head_dim,)
            shapes[f"{attention}.k_norm.weight"] = (config.head_dim,)
        shapes[f"model.layers.{number}.input_layernorm.weight"] = (hidden,)
        shapes[f"model.layers.{number}.post_attention_layernorm.weight"] = (hidden,)
    shapes["model.norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    return shapes


def random_model(config: ModelConfig, seed: int = 0, dtype: torch.dtype = torch.float32) -> TensorWeights:
    """Weights scaled so that activations stay near one: matrices by `columns ** -0.5`, norms around 1."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in weight_shapes(config).items():
        noise = torch.randn(shape, generator=generator)
        if len(shape) == 2:
            tensors[name] = (noise * shape[1] ** -0.5).to(dtype)
        else:
            tensors[name] = (noise * 0.1 + (1.0 if "norm" in name else 0.0)).to(dtype)
    return TensorWeights(tensors)
