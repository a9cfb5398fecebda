"""Whole decode and sampling steps whose lengths, tables and tokens change under them: on a card held in a CUDA graph,
under the interpreter called again each time."""

import torch

from kernels.gpu import definitions, ops
from kernels.metadata import AttentionMetadata

BATCH, PAGE, BLOCKS, LIMIT = 8, 16, 200, 256


class Held:
    """A function of no arguments, captured once where there is a card; `replay` refreshes `result`."""

    def __init__(self, function, device):
        self._function = function
        self._graph = None
        if device.type == "cuda":
            torch.cuda.synchronize()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self.result = function()

    def replay(self):
        if self._graph is None:
            self.result = self._function()
        else:
            self._graph.replay()


def test_a_decode_step_follows_its_buffers(device, close):
    lengths = torch.tensor([1, 15, 16, 60, 33, 140, 0, 0], dtype=torch.int32, device=device)
    tables = torch.randperm(BLOCKS, device=device)[: BATCH * LIMIT // PAGE].reshape(BATCH, -1).int()
    cache = torch.randn(BLOCKS, 2, 2, PAGE, 64, device=device).bfloat16()
    qkv = torch.randn(BATCH, 12, 64, device=device).bfloat16()
    angles = torch.outer(torch.arange(LIMIT + 1, device=device), torch.rand(32, device=device))
    cos_sin = torch.cat((angles.cos(), angles.sin()), dim=1)
    query_start = torch.arange(BATCH + 1, dtype=torch.int32, device=device)

    def decode(kernels, lengths, cache):
        positions, slots = kernels.advance_decodes(lengths, tables, PAGE)
        metadata = AttentionMetadata(query_start, lengths, tables, slots, positions, 1, LIMIT, BATCH)
        q, k, v = qkv.split([8, 2, 2], dim=1)
        rotated = kernels.rope_and_write_kv(q, k, v, cache[:, 0], cache[:, 1], cos_sin, metadata)
        return kernels.paged_attention(rotated, cache[:, 0], cache[:, 1], metadata, 0.125)

    decode(ops, lengths.clone(), cache.clone())
    expected_lengths, expected_cache = lengths.clone(), cache.clone()
    step = Held(lambda: decode(ops, lengths, cache), device)
    for _ in range(3):
        qkv.copy_(torch.randn_like(qkv))
        step.replay()
        expected = decode(definitions, expected_lengths, expected_cache)
        assert torch.equal(lengths, expected_lengths)
        close(cache, expected_cache)
        used = expected_lengths > 0
        close(step.result[used], expected[used])
        assert (step.result[~used] == 0).all()


def test_a_sampling_step_follows_its_buffers(device):
    rows = 3
    logits = torch.randn(rows, 1500, device=device).bfloat16()
    temperatures = torch.linspace(0, 1.5, rows, device=device)
    top_k = torch.full((rows,), 50, dtype=torch.int32, device=device)
    top_p, min_p = torch.full((rows,), 0.9, device=device), torch.zeros(rows, device=device)
    seeds = torch.arange(rows, device=device)
    positions = torch.zeros(rows, dtype=torch.int64, device=device)

    def sample(kernels):
        thresholds = kernels.sampling_thresholds(logits, temperatures, top_k, top_p, min_p)
        return kernels.gumbel_sample(logits, temperatures, thresholds, seeds, positions)

    sample(ops)
    step = Held(lambda: sample(ops), device)
    for position in range(2):
        positions.fill_(position)
        logits.copy_(torch.randn(rows, 1500, device=device))
        step.replay()
        assert torch.equal(step.result, sample(definitions))
