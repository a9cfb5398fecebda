"""Which implementation a tensor meets."""

from __future__ import annotations

import pytest
import torch

from kernels import backend, ops
from kernels.backend import definitions_only, uses_triton

CPU, CUDA, META = (torch.device(name) for name in ("cpu", "cuda", "meta"))


@pytest.fixture
def mode(monkeypatch):
    """Sets `GRIDSERVE_CPU_KERNELS` as if the process had started with it."""

    def choose(word: str, interpret: str = "0") -> None:
        monkeypatch.setenv("GRIDSERVE_CPU_KERNELS", word)
        monkeypatch.setenv("TRITON_INTERPRET", interpret)
        backend.cpu_mode.cache_clear()

    yield choose
    backend.cpu_mode.cache_clear()


def test_each_device_has_its_implementation(mode):
    mode("auto")
    assert [uses_triton(device) for device in (CPU, CUDA, META)] == [False, True, False]
    mode("triton", interpret="1")
    assert uses_triton(CPU)
    with definitions_only():
        assert [uses_triton(device) for device in (CPU, CUDA, META)] == [False, False, False]
    assert uses_triton(CPU)


@pytest.mark.parametrize(("word", "message"), [("fast", "use auto, torch or triton"), ("triton", "TRITON_INTERPRET=1")])
def test_a_mode_that_cannot_be_is_refused(mode, word, message):
    mode(word)
    with pytest.raises(ValueError, match=message):
        uses_triton(CPU)


def test_a_row_without_a_possible_token_gives_minus_one():
    logits = torch.randn(4, 50)
    logits[1] = -torch.inf
    logits[2, 7] = torch.nan
    for dtype in (torch.float32, torch.bfloat16):
        tokens = ops.greedy_argmax(logits.to(dtype))
        assert (tokens < 0).tolist() == [False, True, True, False]
        assert tokens[0] == logits[0].to(dtype).argmax()
