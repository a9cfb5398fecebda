"""Decode steps at padded batch sizes: held as CUDA graphs on a card, called each time elsewhere.

A step of few tokens takes the device less time than the host needs to launch its kernels one by one; a graph launches
them all at once. Graphs are captured from the largest to the smallest, so that all share the memory of the first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

# `[4, size]` int32 (rows, computed, lengths, tokens) to the hidden states `[size, H]`.
Decode = Callable[[torch.Tensor], torch.Tensor]


def padded_sizes(largest: int) -> tuple[int, ...]:
    """Batch sizes to prepare, ascending: powers of two to 8, multiples of 8 to 64, of 16 to 256, of 32 beyond.

    Requests that pad a batch cost little: they read no keys.
    """
    sizes = [*(1, 2, 4), *range(8, 64, 8), *range(64, 256, 16), *range(256, largest + 1, 32)]
    return (*(size for size in sizes if size < largest), largest)


def padded_size(sizes: Sequence[int], count: int) -> int | None:
    """The smallest of `sizes` that holds `count` requests; None when none does."""
    return next((size for size in sizes if size >= count), None)


class DecodeSteps(Protocol):
    """Runs a padded batch of decodes; its result is overwritten by the next run."""

    def run(self, step: torch.Tensor) -> torch.Tensor: ...


class EagerDecodes:
    """Without graphs: every size is computed when asked for."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode

    def run(self, step: torch.Tensor) -> torch.Tensor:
        return self._decode(step)


class DecodeGraphs:
    """`decode` captured for each of `sizes`; inputs are copied to where the graphs read them.

    `padding` fills the inputs while capturing: a batch of padding writes no cache. All graphs leave their result in one
    buffer, so that what each computes on the way can share memory with the others.
    """

    def __init__(self, decode: Decode, sizes: Sequence[int], padding: Callable[[int], torch.Tensor]) -> None:
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}
        self._hidden = torch.empty_like(decode(padding(max(sizes))))
        pool = None
        for size in sorted(sizes, reverse=True):
            step = padding(size)
            # The first call compiles kernels and loads modules, which a capture does not allow.
            decode(step)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                self._hidden[:size].copy_(decode(step))
            pool = graph.pool()
            self._graphs[size] = (graph, step)

    def run(self, step: torch.Tensor) -> torch.Tensor:
        graph, inputs = self._graphs[step.shape[1]]
        inputs.copy_(step)
        graph.replay()
        return self._hidden[: step.shape[1]]
