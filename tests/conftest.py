"""Fixtures every test may use."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from kernels.threads import configure_environment

# Before torch is imported: its OpenMP threads would otherwise spin against whatever else the machine runs.
configure_environment()

from hypothesis import HealthCheck, settings  # noqa: E402

from engine.model_store import resolve_model  # noqa: E402

# On a build machine the same examples every time, however busy it is; elsewhere new ones.
settings.register_profile(
    "steady", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("searching", deadline=None)
settings.load_profile("steady" if os.environ.get("CI") else "searching")


@pytest.fixture(scope="session")
def embedded_model() -> Path:
    """The built-in model's GGUF file, fetched through the model store when this machine does not have it yet."""
    return resolve_model("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, embedded_model: Path) -> Path:
    """A Hugging Face folder with a small random Llama and the embedded model's tokenizer: loads in a moment."""
    import torch
    from safetensors.torch import save_file

    from engine.checkpoint import open_checkpoint
    from engine.model_config import ModelConfig
    from engine.random_model import random_model

    tokenizer = open_checkpoint(embedded_model).load_tokenizer()
    config = ModelConfig(
        architecture="llama",
        vocab_size=tokenizer.vocab_size,
        hidden_size=64,
        intermediate_size=96,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=32,
        rms_norm_eps=1e-5,
        rope_theta=10_000.0,
        max_position_embeddings=1024,
        layer_windows=(None, None),
        tie_word_embeddings=True,
    )
    folder = tmp_path_factory.mktemp("tiny-model")
    save_file(random_model(config, seed=3, dtype=torch.bfloat16).tensors, folder / "model.safetensors")
    (folder / "tokenizer.json").write_text(tokenizer.to_json())
    template = tokenizer.chat_template.source if tokenizer.chat_template else None
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": template, "eos_token": "<|im_end|>", "bos_token": "<|im_start|>"})
    )
    fields = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "max_position_embeddings": config.max_position_embeddings,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
    }
    (folder / "config.json").write_text(json.dumps(fields))
    return folder
