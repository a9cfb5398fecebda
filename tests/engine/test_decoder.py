"""The decoder against transformers' own models, weights shared, on ragged batches through the paged cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.checkpoint import open_checkpoint
from engine.config_reading import config_from_hf
from engine.decoder import Decoder
from engine.model_config import ModelConfig
from engine.random_model import random_model
from kernels.weight_format import WeightFormat

SHAPE = {
    "vocab_size": 211,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama2": ("LlamaForCausalLM", {"num_key_value_heads": 6}),
    "llama3.1": ("LlamaForCausalLM", {"rope_parameters": LLAMA3_ROPE}),
    "llama-linear": (
        "LlamaForCausalLM",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5}},
    ),
    "llama-biases": ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}),
    "smollm2": ("LlamaForCausalLM", {"tie_word_embeddings": True, "num_attention_heads": 3, "num_key_value_heads": 1}),
    "mistral": ("MistralForCausalLM", {"sliding_window": 9}),
    "mistral-full": ("MistralForCausalLM", {"sliding_window": None}),
    "qwen2": ("Qwen2ForCausalLM", {"tie_word_embeddings": True}),
    "qwen2-sliding": ("Qwen2ForCausalLM", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
    "qwen3": ("Qwen3ForCausalLM", {"head_dim": 32}),
}
PROMPT_LENGTHS = {0: 1, 1: 23, 2: 7, 3: 40}


def prompts(vocab_size: int) -> dict[int, list[int]]:
    generator = torch.Generator().manual_seed(11)
    return {
        request: torch.randint(vocab_size, (length,), generator=generator).tolist()
        for request, length in PROMPT_LENGTHS.items()
    }


def build(transformers: Any, name: str) -> tuple[Any, ModelConfig, dict[str, torch.Tensor]]:
    """transformers' model with our random weights, the configuration we read from its own, and the weights."""
    class_name, changes = ARCHITECTURES[name]
    config_class = getattr(transformers, class_name.removesuffix("ForCausalLM") + "Config")
    hf_config = config_class(**{**SHAPE, **changes}, architectures=[class_name], attn_implementation="eager")
    config = config_from_hf(hf_config.to_dict())
    tensors = dict(random_model(config, seed=5).tensors)
    model = getattr(transformers, class_name)(hf_config).eval()
    state = dict(tensors)
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, strict=True)
    return model, config, tensors


def reference_greedy(model: Any, prompt: list[int], steps: int) -> list[int]:
    ids = list(prompt)
    for _ in range(steps):
        with torch.inference_mode():
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_and_greedy_continuation_match_transformers(name: str, transformers: Any, paged_run: Any) -> None:
    model, config, tensors = build(transformers, name)
    decoder = Decoder(config, random_model(config, seed=5), WeightFormat.FP32)
    run = paged_run(decoder)
    texts = prompts(config.vocab_size)

    ours = run.prompt_logits(texts, chunk=9)

    for request, prompt in texts.items():
        with torch.inference_mode():
            expected = model(torch.tensor([prompt])).logits[0]
        torch.testing.assert_close(ours[request], expected, atol=2e-4, rtol=2e-4)
    continued = run.greedy({request: logits[-1] for request, logits in ours.items()}, steps=10)
    assert continued == {request: reference_greedy(model, prompt, 10) for request, prompt in texts.items()}
    assert sum(tensor.numel() for tensor in tensors.values()) == config.num_parameters


@pytest.mark.parametrize("name", ["smollm2", "qwen3"])
@pytest.mark.parametrize("shards", [1, 3])
def test_a_saved_folder_gives_the_same_model(
    name: str, shards: int, transformers: Any, paged_run: Any, tmp_path: Path
) -> None:
    model, config, tensors = build(transformers, name)
    size = sum(tensor.nbytes for tensor in tensors.values())
    model.save_pretrained(tmp_path, max_shard_size=size if shards == 1 else size // shards)
    assert (tmp_path / "model.safetensors").exists() == (shards == 1)

    checkpoint = open_checkpoint(tmp_path)
    seen: list[tuple[int, int]] = []
    decoder = Decoder(
        checkpoint.config, checkpoint.open_weights(), WeightFormat.FP32, progress=lambda *args: seen.append(args)
    )

    assert checkpoint.config == config
    prompt = prompts(config.vocab_size)[1]
    logits = paged_run(decoder).prompt_logits({0: prompt}, chunk=100)[0]
    torch.testing.assert_close(logits, model(torch.tensor([prompt])).logits[0], atol=2e-4, rtol=2e-4)
    done = [done for done, _ in seen]
    assert done == sorted(done)
    assert done[-2] > 0.9 * size
    assert {total for _, total in seen} == {done[-1]} == {checkpoint.open_weights().total_bytes}


def test_bf16_stays_near_fp32(transformers: Any, paged_run: Any) -> None:
    _, config, _ = build(transformers, "qwen3")
    prompt = prompts(config.vocab_size)[3]
    exact, rounded = (
        paged_run(Decoder(config, random_model(config, seed=5), weight_format)).prompt_logits({0: prompt}, chunk=16)[0]
        for weight_format in (WeightFormat.FP32, WeightFormat.BF16)
    )
    assert rounded.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(exact, rounded).min() > 0.995


def test_context_is_capped_by_the_model_and_by_the_caller() -> None:
    config = config_from_hf({**SHAPE, "architectures": ["LlamaForCausalLM"]})
    weights = random_model(config)
    assert Decoder(config, weights).max_model_len == 128
    assert Decoder(config, weights, max_model_len=64).max_model_len == 64
    assert Decoder(config, weights, max_model_len=4096).max_model_len == 128
    with pytest.raises(ValueError, match="max_model_len"):
        Decoder(config, weights, max_model_len=0)


def test_missing_and_misshapen_weights_are_named() -> None:
    config = config_from_hf({**SHAPE, "architectures": ["LlamaForCausalLM"]})
    weights = random_model(config)
    tensors = dict(weights.tensors)
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name][:-1]
    with pytest.raises(ValueError, match=rf"{name} has shape \(79, 48\).*expects \(80, 48\)"):
        Decoder(config, type(weights)(tensors))
    del tensors[name]
    with pytest.raises(ValueError, match=name):
        Decoder(config, type(weights)(tensors))
