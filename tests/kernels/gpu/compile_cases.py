"""The variants that the compile gate builds, by family: a name and a call of the wrapper on meta tensors."""

from collections.abc import Callable, Iterator

import torch

from kernels.gpu import ops, tuning
from kernels.gpu.definitions import KVScales
from kernels.metadata import AttentionMetadata

Case = tuple[str, Callable[[], object]]


def empty(*sizes: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(sizes, dtype=dtype, device="meta")


def metadata(requests: int, tokens: int, context: int, num_decodes: int) -> AttentionMetadata:
    return AttentionMetadata(
        query_start=empty(requests + 1, dtype=torch.int32),
        context_lens=empty(requests, dtype=torch.int32),
        block_tables=empty(requests, context // 16, dtype=torch.int32),
        slot_mapping=empty(tokens, dtype=torch.int64),
        positions=empty(tokens, dtype=torch.int64),
        max_query_len=tokens if num_decodes < requests else 1,
        max_context_len=context,
        num_decodes=num_decodes,
    )


def _attention(
    requests: int,
    tokens: int,
    num_decodes: int,
    heads: int = 32,
    kv_heads: int = 8,
    head_dim: int = 128,
    cache: torch.dtype = torch.bfloat16,
    window: int | None = None,
) -> Callable[[], object]:
    caches = empty(4096, 2, kv_heads, 16, head_dim, dtype=cache)
    scales = None
    if cache in (torch.int8, torch.float8_e4m3fn):
        factors = empty(2, 4096, kv_heads, 16, dtype=torch.float32)
        scales = KVScales(factors[0], factors[1])
    q = empty(tokens, heads + 2 * kv_heads, head_dim)[:, :heads]
    return lambda: ops.paged_attention(
        q,
        caches[:, 0],
        caches[:, 1],
        metadata(requests, tokens, 8192, num_decodes),
        head_dim**-0.5,
        window,
        scales=scales,
    )


def _cache_dtypes(capability: int) -> list[torch.dtype]:
    fp8 = [torch.float8_e4m3fn] if capability >= 89 else []
    return [torch.bfloat16, torch.int8, *fp8]


def decode(capability: int, depth: str) -> Iterator[Case]:
    for cache in _cache_dtypes(capability):
        yield f"8B split {cache}", _attention(8, 8, 8, cache=cache)
    yield "8B single", _attention(64, 64, 64)
    yield "8B window", _attention(64, 64, 64, window=4096)
    yield "135M group 3", _attention(4, 4, 4, 9, 3, 64)

    def deterministic() -> None:
        tuning.set_deterministic(True)
        try:
            _attention(8, 8, 8)()
        finally:
            tuning.set_deterministic(False)

    yield "8B deterministic", deterministic
    if depth == "all":
        for head_dim in (64, 80, 256):
            yield f"head_dim {head_dim}", _attention(8, 8, 8, head_dim=head_dim)
            yield f"head_dim {head_dim} int8", _attention(8, 8, 8, head_dim=head_dim, cache=torch.int8)
        for heads, kv_heads in ((8, 8), (64, 8), (32, 1)):
            yield f"group {heads // kv_heads}", _attention(8, 8, 8, heads, kv_heads)


def prefill(capability: int, depth: str) -> Iterator[Case]:
    for cache in _cache_dtypes(capability):
        yield f"8B {cache}", _attention(1, 8192, 0, cache=cache)
    yield "8B window", _attention(1, 8192, 0, window=4096)
    yield "135M group 3", _attention(1, 2048, 0, 9, 3, 64)
    if depth == "all":
        for head_dim in (64, 80, 256):
            yield f"head_dim {head_dim}", _attention(1, 8192, 0, head_dim=head_dim)
            yield f"head_dim {head_dim} int8", _attention(1, 8192, 0, head_dim=head_dim, cache=torch.int8)
        for heads, kv_heads in ((8, 8), (64, 8), (32, 1)):
            yield f"group {heads // kv_heads}", _attention(1, 8192, 0, heads, kv_heads)


FAMILIES: dict[str, Callable[[int, str], Iterator[Case]]] = {"decode": decode, "prefill": prefill}
