"""The whole engine through the Triton kernels: scheduler, block pool, rows, padded decodes, sampling on the device.

On a card decodes are CUDA graphs; under the interpreter the same steps are called. The reference is the same engine
over the plain-torch definitions on the CPU.
"""

import os
import random
from contextlib import nullcontext

import pytest
import torch

from engine.decoder import Decoder
from engine.engine import Engine
from engine.random_model import random_model
from engine.request import Request, SamplingParams
from kernels import backend
from kernels.gpu import tuning
from kernels.linear import Int4Blocks
from kernels.weight_format import WeightFormat
from tests.engine.random_engine import device_runner, make_engine, serve, small_config

VOCAB, MAX_LEN, SEATS = 97, 128, 4
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
CONFIG = small_config(vocab_size=VOCAB, intermediate_size=64, max_position_embeddings=MAX_LEN, layer_windows=(None, 24))


@pytest.fixture(autouse=True)
def _kernels(monkeypatch):
    """CPU tensors go to the Triton kernels, as CUDA tensors do, or to the definitions where a test says so."""
    backend.cpu_mode.cache_clear()
    monkeypatch.setenv("GRIDSERVE_CPU_KERNELS", "triton" if INTERPRETED else "torch")
    yield
    backend.cpu_mode.cache_clear()


class Model:
    """One random model, on the device through the kernels and on the CPU through the definitions."""

    def __init__(self, weight_format: WeightFormat, device: torch.device, blocks: bool = False) -> None:
        weights = random_model(CONFIG, seed=3)
        if blocks:
            weights = Blocks(weights)
        self.ours = Decoder(CONFIG, weights, weight_format, device)
        with backend.definitions_only():
            self.plain = Decoder(CONFIG, weights, weight_format, "cpu")

    def engine(self, plain: bool, num_blocks: int, cache: torch.dtype | None, **limits: int) -> Engine:
        decoder = self.plain if plain else self.ours
        runner = device_runner(decoder, num_blocks, cache, max_num_seqs=SEATS, max_model_len=MAX_LEN, poison=True)
        if not INTERPRETED and not plain:
            runner.warm_up()
        return make_engine(runner, num_blocks, **{"max_model_len": MAX_LEN, "max_num_seqs": SEATS} | limits)


class Blocks:
    """The linear layers of a model rounded to 4-bit blocks, as a GGUF file stores them."""

    def __init__(self, inner) -> None:
        self._inner = inner
        self.total_bytes = inner.total_bytes

    def nbytes(self, name):
        return self._inner.nbytes(name)

    def __contains__(self, name):
        return name in self._inner

    def dense(self, name, dtype):
        blocks = self.blocks(name)
        return self._inner.dense(name, dtype) if blocks is None else blocks.dequantize().to(dtype)

    def blocks(self, name) -> Int4Blocks | None:
        from kernels.gpu.definitions import quantize_int4

        return quantize_int4(self._inner.dense(name, torch.float32)) if name.endswith("_proj.weight") else None


def requests(**params) -> list[Request]:
    """Ragged prompts around a page, two with a common beginning."""
    rng = random.Random(4)
    prefix = [rng.randrange(VOCAB) for _ in range(17)]
    made = []
    for index, length in enumerate((15, 1, 14, 3)):
        own = [rng.randrange(VOCAB) for _ in range(length)]
        sampling = SamplingParams(**{"max_tokens": 5 + index, "temperature": 0.0, "seed": index} | params)
        made.append(Request(f"r{index}", tuple(prefix * (index in (1, 3)) + own), sampling, float(index)))
    return made


def run(engine: Engine, batch: list[Request], plain: bool = False) -> dict[str, list[int]]:
    with backend.definitions_only() if plain else nullcontext():
        return serve(engine, batch)


def both(model: Model, num_blocks: int, cache: torch.dtype | None = None, params=None, **limits):
    engine = model.engine(False, num_blocks, cache, **limits)
    ours = run(engine, requests(**(params or {})))
    plain = run(model.engine(True, num_blocks, cache, **limits), requests(**(params or {})), plain=True)
    return ours, plain, engine.scheduler.stats()


def test_greedy_text_through_chunks_prefix_hits_and_preemption(device):
    """fp32, where kernels and definitions differ by less than any two tokens do: every token must agree."""
    ours, plain, stats = both(Model(WeightFormat.FP32, device), 4, max_num_batched_tokens=20)
    assert ours == plain
    assert stats.preemptions > 0
    assert stats.prefix_hit_tokens > 0


@pytest.mark.parametrize(
    ("weight_format", "cache", "blocks"),
    [
        pytest.param(WeightFormat.BF16, None, False, id="bf16", marks=pytest.mark.slow),
        pytest.param(WeightFormat.BF16, torch.int8, False, id="int8 cache", marks=pytest.mark.slow),
        pytest.param(WeightFormat.BF16, torch.float8_e4m3fn, False, id="fp8 cache", marks=pytest.mark.slow),
        pytest.param(WeightFormat.INT8, None, False, id="int8 weights", marks=pytest.mark.slow),
        pytest.param(WeightFormat.INT4, torch.int8, True, id="int4 weights, int8 cache"),
    ],
)
def test_served_formats_draw_the_tokens_of_the_definitions(device, weight_format, cache, blocks):
    """Roundings differ in the last bit of bf16: a near tie may turn, and what follows it."""
    ours, plain, _ = both(Model(weight_format, device, blocks), 24, cache, {"max_tokens": 2})
    first = sum(ours[name][0] == plain[name][0] for name in plain)
    assert first >= len(plain) - 1
    assert sum(ours[name] == plain[name] for name in plain) >= len(plain) - 2


def test_random_draws_penalties_and_bias(device):
    params = {
        "temperature": 0.8,
        "top_p": 0.9,
        "top_k": 20,
        "max_tokens": 2,
        "presence_penalty": 0.5,
        "repetition_penalty": 1.2,
        "logit_bias": {7: 2.0},
        "logprobs": 2,
    }
    model, chosen = Model(WeightFormat.FP32, device), requests(**params)[::3]
    ours = run(model.engine(False, 24, None), chosen)
    assert ours == run(model.engine(True, 24, None), requests(**params)[::3], plain=True)


@pytest.mark.slow
def test_deterministic_mode_gives_the_same_tokens_alone_and_in_company(device, deterministic):
    assert tuning.deterministic()
    model = Model(WeightFormat.BF16, device)
    together = run(model.engine(False, 24, None, max_num_batched_tokens=20), requests(max_tokens=2))
    alone = {}
    for each in requests(max_tokens=2)[1::2]:
        alone |= run(model.engine(False, 24, None), [each])
    assert {name: together[name] for name in alone} == alone
