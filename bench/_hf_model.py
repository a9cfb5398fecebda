"""The model file of a benchmark as a transformers model, so that every system runs the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from engine.checkpoint import open_checkpoint


def load_causal_lm(model: str, dtype: torch.dtype) -> Any:
    """A transformers Llama from a GGUF file or a Hugging Face folder, in evaluation mode.

    Raises `ValueError` for another architecture.
    """
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    path = Path(model)
    if path.is_dir():
        return AutoModelForCausalLM.from_pretrained(str(path), dtype=dtype, local_files_only=True).eval()
    checkpoint = open_checkpoint(path)
    config, weights = checkpoint.config, checkpoint.open_weights()
    if config.architecture != "llama":
        raise ValueError(f"the benchmark loads Llama models into transformers, not {config.architecture}")
    hf_config = LlamaConfig(
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
    with torch.device("meta"):
        loaded = LlamaForCausalLM(hf_config)
    tied = "lm_head.weight" if config.tie_word_embeddings else None
    state = {name: weights.dense(name, dtype) for name in loaded.state_dict() if name != tied}
    if tied:
        state[tied] = state["model.embed_tokens.weight"]
    loaded.load_state_dict(state, strict=True, assign=True)
    loaded.model.rotary_emb = type(loaded.model.rotary_emb)(hf_config)
    return loaded.eval()
