"""SmolLM2 from its GGUF file against transformers' Llama, its weights read by the gguf package's own code."""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import pytest
import torch

from bench._prompts import PROMPTS
from engine.block_pool import BlockPool
from engine.checkpoint import Checkpoint
from engine.decoder import Decoder
from engine.engine import Engine
from engine.model_runner import ModelRunner
from engine.request import Request, SamplingParams
from engine.sampler import Sampler
from engine.scheduler import Scheduler
from engine.scheduler_config import SchedulerConfig
from engine.tokenizer import Tokenizer
from kernels.kv_cache import allocate_kv_caches
from kernels.weight_format import WeightFormat


@pytest.fixture(scope="module")
def reference(transformers: Any, embedded: Checkpoint) -> Any:
    config = embedded.config
    hf_config = transformers.LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        max_position_embeddings=config.max_position_embeddings,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
    )
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_layers)
    tensors = {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        for tensor in gguf.GGUFReader(embedded.path).tensors
    }
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(hf_config)
    state = {}
    for hf_name in model.state_dict():
        stem, part = hf_name.rsplit(".", 1)
        if hf_name == "lm_head.weight":
            continue
        data = tensors[f"{names.get_name(stem)}.{part}"]
        heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}.get(stem.split(".")[-1])
        if heads is not None:
            data = np.swapaxes(data.reshape(heads, config.head_dim // 2, 2, -1), 1, 2).reshape(data.shape)
        state[hf_name] = torch.from_numpy(np.array(data))
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, strict=True, assign=True)
    model.model.rotary_emb = type(model.model.rotary_emb)(hf_config)
    return model.eval()


@pytest.fixture(scope="module")
def question(embedded_tokenizer: Tokenizer) -> list[int]:
    template = embedded_tokenizer.chat_template
    assert template is not None
    return embedded_tokenizer.encode_chat(
        template.render([{"role": "user", "content": "What is the capital of France?"}])
    )


def test_fp32_logits_and_answer_match(
    reference: Any, embedded: Checkpoint, embedded_tokenizer: Tokenizer, question: list[int], paged_run: Any
) -> None:
    decoder = Decoder(embedded.config, embedded.open_weights(), WeightFormat.FP32, max_model_len=512)
    run = paged_run(decoder, block_size=16)
    other = embedded_tokenizer.encode("def fibonacci(n):\n    ")
    ours = run.prompt_logits({0: question, 1: other}, chunk=20)
    with torch.inference_mode():
        for request, prompt in enumerate((question, other)):
            expected = reference(torch.tensor([prompt])).logits[0]
            torch.testing.assert_close(ours[request], expected, atol=2e-3, rtol=1e-3)
    answer = run.greedy({0: ours[0][-1]}, steps=8)[0]
    assert answer == reference.generate(torch.tensor([question]), max_new_tokens=8, do_sample=False)[0, -8:].tolist()
    assert embedded_tokenizer.decode(answer) == "The capital of France is Paris."


@pytest.mark.parametrize("weight_format", [WeightFormat.BF16, WeightFormat.INT4])
def test_smaller_formats_give_the_same_answer(
    weight_format: WeightFormat,
    embedded: Checkpoint,
    embedded_tokenizer: Tokenizer,
    question: list[int],
    paged_run: Any,
) -> None:
    decoder = Decoder(embedded.config, embedded.open_weights(), weight_format, max_model_len=512)
    run = paged_run(decoder, block_size=16)
    ours = run.prompt_logits({0: question}, chunk=100)
    answer = run.greedy({0: ours[0][-1]}, steps=8)[0]
    assert embedded_tokenizer.decode(answer) == "The capital of France is Paris."


def test_twenty_greedy_answers_are_those_of_transformers(
    reference: Any, embedded: Checkpoint, embedded_tokenizer: Tokenizer
) -> None:
    """Twenty prompts, 64 tokens each, through the scheduler in one batch; transformers reads our answers back.

    Its likeliest token at every position is ours, which is to say that its own greedy answer is ours too. Where its
    two likeliest tokens are closer than the arithmetic of either library can tell apart, both are right.
    """
    decoder = Decoder(embedded.config, embedded.open_weights(), WeightFormat.FP32, max_model_len=512)
    config = embedded.config
    caches = allocate_kv_caches(
        config.num_layers, 200, config.num_kv_heads, 16, config.head_dim, torch.float32, torch.device("cpu")
    )
    runner = ModelRunner(decoder, caches, Sampler(config.vocab_size), torch.device("cpu"))
    engine = Engine(
        Scheduler(SchedulerConfig(max_num_batched_tokens=300, max_model_len=512), BlockPool(200, 16)), runner
    )
    template = embedded_tokenizer.chat_template
    assert template is not None
    requests = [
        Request(
            text,
            tuple(embedded_tokenizer.encode_chat(template.render([{"role": "user", "content": text}]))),
            SamplingParams(max_tokens=64, temperature=0.0, ignore_eos=True),
            0.0,
        )
        for text in PROMPTS
    ]
    for request in requests:
        engine.add(request)
    while engine.has_work:
        assert engine.step().fault is None
    for request in requests:
        start = request.num_prompt_tokens
        with torch.inference_mode():
            logits = reference(torch.tensor([request.token_ids[:-1]])).logits[0, start - 1 :]
        ours = torch.tensor(request.token_ids[start:])
        assert len(ours) == 64
        behind = logits.max(-1).values - logits.gather(1, ours.unsqueeze(1)).squeeze(1)
        assert behind.max() <= 1e-3, request.request_id
