"""Timing of GPU kernels: CUDA-graph replay over inputs that do not fit the L2 cache, medians, ceilings of the card."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch

# A rotation of inputs must be this many times the L2 cache for each call to find it cold.
COLD_FACTOR = 4
REPLAYS = 20
MIN_CALLS = 16


def copies_for_cold_l2(bytes_per_call: int) -> int:
    """How many sets of inputs a rotation needs."""
    l2_bytes = torch.cuda.get_device_properties(0).L2_cache_size
    return max(1, min(256, -(-COLD_FACTOR * l2_bytes // max(1, bytes_per_call))))


def median_us(calls: Sequence[Callable[[], object]]) -> float:
    """Median time of one call, in microseconds, from replays of a graph that makes all of them in turn."""
    rounds = -(-MIN_CALLS // len(calls))
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls[:3]:
            call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(rounds):
            for call in calls:
                call()
    times: list[float] = []
    for replay in range(REPLAYS + 3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        if replay >= 3:
            times.append(begin.elapsed_time(end) * 1e3 / (rounds * len(calls)))
    return statistics.median(times)


def copy_ceiling_gbps() -> float:
    """Bytes read and written a second by copies of 1 GiB, in GB/s (1e9)."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    gigabyte_us = median_us([lambda: target.copy_(source)])
    return 2.0 * (1 << 30) / gigabyte_us * 1e-3


def gemm_ceiling_tflops(size: int = 8192) -> float:
    """Rate of the library's bf16 matrix product of three square matrices, in TFLOP/s."""
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    out = torch.empty_like(a)
    return 2.0 * float(size) ** 3 / median_us([lambda: torch.mm(a, b, out=out)]) * 1e-6
