"""Random paged caches and packed batches; every compiled variant of the CPU library this machine can run."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pytest
import torch

from kernels.cpu import library as cpu_library
from kernels.cpu.build import BuildError, build_library, find_compiler
from kernels.metadata import AttentionMetadata

# Relative error of the norm against fp64, by dtype of the tensors.
GATES = {torch.float32: 1e-6, torch.bfloat16: 4e-3}


@dataclass
class PagedBatch:
    """A packed batch whose caches hold NaN wherever no token of a request stands."""

    metadata: AttentionMetadata
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    q: torch.Tensor


def _relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    expected = expected.double()
    return float((actual.double() - expected).norm() / expected.norm())


@pytest.fixture
def relative_error() -> Callable[[torch.Tensor, torch.Tensor], float]:
    return _relative_error


@pytest.fixture
def gates() -> dict[torch.dtype, float]:
    return GATES


def _build_metadata(
    query_lens: Sequence[int], context_lens: Sequence[int], block_size: int, order: torch.Tensor
) -> AttentionMetadata:
    counts = [-(-length // block_size) for length in context_lens]
    tables = torch.zeros(len(counts), max(counts), dtype=torch.int32)
    taken = 0
    positions, slots = [], []
    for row, (count, query_len, context_len) in enumerate(zip(counts, query_lens, context_lens)):
        tables[row, :count] = order[taken : taken + count]
        taken += count
        position = torch.arange(context_len - query_len, context_len)
        positions.append(position)
        slots.append(tables[row, position // block_size].long() * block_size + position % block_size)
    return AttentionMetadata(
        query_start=torch.tensor([0, *torch.tensor(query_lens).cumsum(0).tolist()], dtype=torch.int32),
        context_lens=torch.tensor(context_lens, dtype=torch.int32),
        block_tables=tables,
        slot_mapping=torch.cat(slots),
        positions=torch.cat(positions),
        max_query_len=max(query_lens),
        max_context_len=max(context_lens),
        num_decodes=next((i for i, length in enumerate(query_lens) if length != 1), len(query_lens)),
    )


@pytest.fixture
def paged_batch() -> Callable[..., PagedBatch]:
    def build(
        query_lens: Sequence[int],
        context_lens: Sequence[int],
        heads: tuple[int, int] = (9, 3),
        head_dim: int = 64,
        block_size: int = 16,
        dtype: torch.dtype = torch.bfloat16,
        seed: int = 0,
    ) -> PagedBatch:
        generator = torch.Generator().manual_seed(seed)
        num_blocks = sum(-(-length // block_size) for length in context_lens) + 5
        order = torch.randperm(num_blocks, generator=generator)
        metadata = _build_metadata(query_lens, context_lens, block_size, order)
        caches = torch.full((2, num_blocks, heads[1], block_size, head_dim), torch.nan, dtype=dtype)
        for row, context_len in enumerate(context_lens):
            for begin in range(0, context_len, block_size):
                block = metadata.block_tables[row, begin // block_size]
                count = min(block_size, context_len - begin)
                values = torch.randn(2, heads[1], count, head_dim, generator=generator)
                caches[:, block, :, :count] = values.to(dtype)
        q = torch.randn(sum(query_lens), heads[0], head_dim, generator=generator).to(dtype)
        return PagedBatch(metadata, caches[0], caches[1], q)

    return build


def _variants() -> list[str]:
    if platform.machine() != "x86_64":
        return ["native"]
    return ["native", "cooperlake", "x86-64-v4", "x86-64-v3", "x86-64"]


def _use_library(monkeypatch: pytest.MonkeyPatch, arch: str) -> cpu_library.Library:
    try:
        find_compiler()
    except BuildError as error:
        pytest.skip(str(error))
    library = cpu_library.Library(build_library(arch))
    monkeypatch.setattr(cpu_library, "_load", lambda: (library, None))
    return library


def _runs_here(arch: str) -> bool:
    # What `native` compiles to without tiles is the variant for pairs already.
    needed = {"cooperlake": {"avx512_bf16", "amx_bf16"}, "x86-64-v4": {"avx512vl"}, "x86-64-v3": {"avx2"}}
    with open("/proc/cpuinfo", encoding="utf-8") as cpuinfo:
        return needed.get(arch, set()) <= set(cpuinfo.read().split())


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> cpu_library.Library:
    """The library compiled for this machine; `kernels.ops` uses it."""
    return _use_library(monkeypatch, "native")


@pytest.fixture(params=_variants())
def any_library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[cpu_library.Library]:
    """Each variant of the library in turn: this machine's, bf16 pairs, AVX-512, AVX2, x86-64."""
    if not _runs_here(request.param):
        pytest.skip(f"this CPU does not run {request.param}")
    library = _use_library(monkeypatch, request.param)
    yield library
    library.set_threads(1)
