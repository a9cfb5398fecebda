"""How large the KV cache becomes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.build import choose_device, kv_dtype
from engine.config import EngineConfig
from engine.kv_sizing import CUDA_RESERVE_BYTES, cuda_budget_bytes, kv_budget_bytes, num_kv_blocks, step_bytes
from engine.model_config import ModelConfig
from kernels.kv_cache import kv_bytes_per_block

CPU = torch.device("cpu")
MODEL = ModelConfig("llama", 128256, 4096, 14336, 32, 32, 8, 128, 1e-5, 5e5, 8192, (None,) * 32)
GIB = 1 << 30


def config(**options) -> EngineConfig:
    return EngineConfig("m", "m", **options)


def test_a_card_gives_what_weights_and_steps_leave():
    """80 GiB, 16 GiB of them weights; a tenth is held back."""
    budget = cuda_budget_bytes(free_bytes=64 * GIB, total_bytes=80 * GIB, fraction=0.9, needed_bytes=2 * GIB)
    assert budget == pytest.approx(64 * GIB - 8 * GIB - 2 * GIB - CUDA_RESERVE_BYTES, abs=1)


@given(st.integers(0, 200 * GIB), st.integers(0, 200 * GIB), st.floats(0.01, 1.0), st.integers(0, 50 * GIB))
def test_the_budget_is_never_negative_and_never_more_than_is_free(free, total, fraction, needed):
    assert 0 <= cuda_budget_bytes(free, total, fraction, needed) <= free


def test_a_step_of_an_8b_model_takes_gigabytes_at_most():
    needed = step_bytes(MODEL, max_num_seqs=256, max_num_batched_tokens=4096, element_bytes=2)
    logits = 256 * MODEL.vocab_size * 4
    gate_up = 4096 * 2 * MODEL.intermediate_size * 2
    assert logits + gate_up < needed < 4 * GIB


def test_stated_memory_wins():
    assert kv_budget_bytes(config(kv_cache_bytes=5 * GIB), 0, CPU) == 5 * GIB


def test_blocks_stop_at_what_requests_could_fill():
    few = config(max_num_seqs=2, block_size=32)
    assert num_kv_blocks(few, MODEL, 1024, torch.bfloat16, 1000 * GIB) == 2 * 32
    with pytest.raises(ValueError, match="raise --kv-cache-memory"):
        num_kv_blocks(few, MODEL, 1024, torch.bfloat16, 1 << 20)


def test_quantised_blocks_count_their_scales():
    plain = kv_bytes_per_block(32, 8, 32, 128, torch.bfloat16)
    assert plain == 2 * 32 * 8 * 32 * 128 * 2
    for dtype in (torch.int8, torch.float8_e4m3fn):
        assert kv_bytes_per_block(32, 8, 32, 128, dtype) == 2 * 32 * 8 * 32 * (128 + 4)


def test_what_a_cpu_cannot_keep_is_refused():
    assert kv_dtype(config(), torch.float32, CPU) is torch.float32
    assert kv_dtype(config(kv_dtype="bf16"), torch.bfloat16, CPU) is torch.bfloat16
    for word in ("int8", "fp8"):
        with pytest.raises(ValueError, match="leave --kv-dtype at auto"):
            kv_dtype(config(kv_dtype=word), torch.bfloat16, CPU)


@pytest.mark.parametrize("options", [{"kv_dtype": "int4"}, {"gpu_memory_fraction": 0.0}, {"gpu_memory_fraction": 1.5}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        config(**options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_a_missing_card_is_named():
    with pytest.raises(ValueError, match="--compute cpu"):
        choose_device("cuda")
    assert choose_device("auto") == CPU
