"""What the kernel benchmark measures: shapes of an 8B model's layer, the bytes and operations each call must move."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from bench import _kernel_peers as peers
from kernels import reference
from kernels.gpu import definitions, ops
from kernels.gpu.definitions import KVScales
from kernels.linear import Int4Blocks, quantize_int8
from kernels.metadata import AttentionMetadata

PAGE = 16
HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
HIDDEN, INTERMEDIATE, VOCAB = 4096, 14336, 128256
SAMPLED_ROWS = 32


@dataclass(frozen=True)
class KernelCase:
    """One row of the report.

    Attributes:
        build: makes fresh inputs on a device; with `tiny` of shapes that a CPU runs in a moment.
        ours, definition: the kernel and the plain-torch function on those inputs.
        peers: other implementations of the same function; each takes inputs and returns a call, or raises
            `PeerUnavailableError` with the reason.
        bytes_moved, flops: what any implementation has to read, write and compute for the full shape.
    """

    name: str
    family: str
    build: Callable[[str, bool], Any]
    ours: Callable[[Any], object]
    definition: Callable[[Any], object]
    peers: Mapping[str, Callable[[Any], Callable[[], object]]]
    bytes_moved: int
    flops: int


@dataclass(frozen=True)
class AttentionInputs:
    q: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    metadata: AttentionMetadata
    scales: KVScales | None
    query_lens: tuple[int, ...]
    context_lens: tuple[int, ...]

    def run(self, function: Callable[..., torch.Tensor]) -> torch.Tensor:
        extra = {} if self.scales is None else {"scales": self.scales}
        return function(self.q, self.k_cache, self.v_cache, self.metadata, self.q.shape[-1] ** -0.5, None, **extra)


def attention_inputs(
    device: str, query_lens: tuple[int, ...], context_lens: tuple[int, ...], cache: torch.dtype
) -> AttentionInputs:
    """Random queries, keys and values; pages scattered over the cache."""
    counts = [-(-length // PAGE) for length in context_lens]
    blocks = sum(counts)
    tables = torch.zeros((len(counts), max(counts)), dtype=torch.int32, device=device)
    order = torch.randperm(blocks, device=device).int()
    for row, count in enumerate(counts):
        begin = sum(counts[:row])
        tables[row, :count] = order[begin : begin + count]
    shape = (blocks, KV_HEADS, PAGE, HEAD_DIM)
    k_cache, v_cache = (torch.randn(shape, dtype=torch.bfloat16, device=device) for _ in range(2))
    scales = None
    if cache is not torch.bfloat16:
        (k_cache, k_scales), (v_cache, v_scales) = (
            tuple(part.reshape(blocks, KV_HEADS, PAGE, *part.shape[2:]) for part in each)
            for each in (
                definitions.quantize_heads(full.reshape(-1, PAGE, HEAD_DIM), cache) for full in (k_cache, v_cache)
            )
        )
        scales = KVScales(k_scales, v_scales)
    starts = [0]
    for length in query_lens:
        starts.append(starts[-1] + length)
    empty = torch.empty(0, dtype=torch.int64, device=device)
    metadata = AttentionMetadata(
        query_start=torch.tensor(starts, dtype=torch.int32, device=device),
        context_lens=torch.tensor(context_lens, dtype=torch.int32, device=device),
        block_tables=tables,
        slot_mapping=empty,
        positions=empty,
        max_query_len=max(query_lens),
        max_context_len=max(context_lens),
        num_decodes=len(query_lens) if max(query_lens) == 1 else 0,
    )
    q = torch.randn((starts[-1], HEADS, HEAD_DIM), dtype=torch.bfloat16, device=device)
    return AttentionInputs(q, k_cache, v_cache, metadata, scales, query_lens, context_lens)


def _attention(
    family: str, name: str, query_lens: tuple[int, ...], context_lens: tuple[int, ...], cache: torch.dtype
) -> KernelCase:
    element = torch.empty(0, dtype=cache).element_size()
    per_token = 2 * KV_HEADS * (HEAD_DIM * element + (4 if element == 1 else 0))
    tokens = sum(query_lens)
    # Keys each query sees, summed: the last query of a request sees its whole context, each before it one less.
    seen = sum(count * context - count * (count - 1) // 2 for count, context in zip(query_lens, context_lens))

    def build(device: str, tiny: bool) -> AttentionInputs:
        if not tiny:
            return attention_inputs(device, query_lens, context_lens, cache)
        counts = tuple(min(each, 8) for each in query_lens[:2])
        return attention_inputs(device, counts, (24, 33)[: len(counts)], cache)

    rivals: dict[str, Callable[[Any], Callable[[], object]]] = {}
    if cache is torch.bfloat16:
        rivals = {"FlashInfer": peers.flashinfer_attention, "varlen_attn (contiguous KV)": peers.varlen_attention}
        if len(set(context_lens)) == 1 and len(set(query_lens)) == 1:
            rivals["SDPA (contiguous KV)"] = peers.sdpa_attention
            rivals["FlexAttention (contiguous KV)"] = peers.flex_attention
    return KernelCase(
        name,
        family,
        build,
        lambda inputs: inputs.run(ops.paged_attention),
        lambda inputs: inputs.run(definitions.paged_attention),
        rivals,
        bytes_moved=sum(context_lens) * per_token + 2 * tokens * HEADS * HEAD_DIM * 2,
        flops=4 * HEADS * HEAD_DIM * seen,
    )


def attention_cases() -> Iterator[KernelCase]:
    for context in (2048, 8192, 32768):
        yield _attention("decode", f"decode 32 x {context} bf16", (1,) * 32, (context,) * 32, torch.bfloat16)
    for batch in (1, 8):
        yield _attention("decode", f"decode {batch} x 8192 bf16", (1,) * batch, (8192,) * batch, torch.bfloat16)
    ragged = tuple(128 + 241 * index for index in range(32))
    yield _attention("decode", "decode 32 ragged 128..7599 bf16", (1,) * 32, ragged, torch.bfloat16)
    for cache in (torch.int8, torch.float8_e4m3fn):
        kind = str(cache).removeprefix("torch.")
        yield _attention("decode", f"decode 32 x 8192 {kind}", (1,) * 32, (8192,) * 32, cache)
    for length in (2048, 8192):
        yield _attention("prefill", f"prefill {length} bf16", (length,), (length,), torch.bfloat16)
    yield _attention("prefill", "chunk 2048 of 16384 bf16", (2048,), (16384,), torch.bfloat16)
    yield _attention("prefill", "prefill 8192 int8", (8192,), (8192,), torch.int8)


def _plain(
    family: str,
    name: str,
    shapes: Mapping[str, tuple[int, ...]],
    ours: Callable[[dict[str, torch.Tensor]], object],
    definition: Callable[[dict[str, torch.Tensor]], object],
    rivals: Mapping[str, Callable[[Any], Callable[[], object]]],
    bytes_moved: int,
) -> KernelCase:
    def build(device: str, tiny: bool) -> dict[str, torch.Tensor]:
        return {
            key: torch.randn(min(shape[0], 4) if tiny else shape[0], *shape[1:], dtype=torch.bfloat16, device=device)
            for key, shape in shapes.items()
        }

    return KernelCase(name, family, build, ours, definition, rivals, bytes_moved, flops=0)


def stream_cases() -> Iterator[KernelCase]:
    for tokens in (32, 2048):
        row = tokens * HIDDEN * 2
        yield _plain(
            "elementwise",
            f"add + RMSNorm {tokens} x {HIDDEN}",
            {"x": (tokens, HIDDEN), "residual": (tokens, HIDDEN), "weight": (1, HIDDEN)},
            lambda t: ops.add_rms_norm(t["x"], t["residual"], t["weight"][0], 1e-5),
            lambda t: reference.add_rms_norm(t["x"], t["residual"], t["weight"][0], 1e-5),
            {"Liger": peers.liger_add_rms_norm, "torch.compile": peers.compiled_add_rms_norm},
            bytes_moved=4 * row,
        )
        yield _plain(
            "elementwise",
            f"SiLU x up {tokens} x {INTERMEDIATE}",
            {"gate_up": (tokens, 2 * INTERMEDIATE)},
            lambda t: ops.silu_and_mul(t["gate_up"]),
            lambda t: reference.silu_and_mul(t["gate_up"]),
            {"Liger": peers.liger_silu_mul, "torch.compile": peers.compiled_silu_mul},
            bytes_moved=3 * tokens * INTERMEDIATE * 2,
        )


def sampling_inputs(device: str, tiny: bool) -> dict[str, torch.Tensor]:
    rows = 2 if tiny else SAMPLED_ROWS
    ones = torch.ones(rows, device=device)
    return {
        "logits": torch.randn(rows, VOCAB, dtype=torch.bfloat16, device=device),
        "temperatures": ones,
        "thresholds": torch.full_like(ones, -torch.inf),
        "keys": torch.arange(rows, device=device),
        "top_k": torch.full((rows,), 50, dtype=torch.int32, device=device),
        "top_p": 0.9 * ones,
        "min_p": 0.0 * ones,
    }


def sampling_cases() -> Iterator[KernelCase]:
    def case(
        name: str, function: str, keys: tuple[str, ...], rivals: Mapping[str, Callable[[Any], Callable[[], object]]]
    ) -> KernelCase:
        kernel, definition = getattr(ops, function), getattr(definitions, function)
        return KernelCase(
            f"{name} {SAMPLED_ROWS} x {VOCAB}",
            "sampling",
            sampling_inputs,
            lambda t: kernel(*(t[key] for key in keys)),
            lambda t: definition(*(t[key] for key in keys)),
            rivals,
            bytes_moved=SAMPLED_ROWS * VOCAB * 2,
            flops=0,
        )

    yield case("greedy argmax", "greedy_argmax", ("logits",), {"torch.argmax": peers.torch_argmax})
    draw = ("logits", "temperatures", "thresholds", "keys", "keys")
    yield case("Gumbel-max draw", "gumbel_sample", draw, {"softmax + multinomial": peers.torch_multinomial})
    filters = ("logits", "temperatures", "top_k", "top_p", "min_p")
    yield case("top-k 50, top-p 0.9 threshold", "sampling_thresholds", filters, {"torch.sort": peers.torch_sort})


def _int4(weight: torch.Tensor) -> Int4Blocks:
    """With scales in half precision, as weight files carry them."""
    full = definitions.quantize_int4(weight)
    return Int4Blocks(full.codes, full.scales.half().float(), full.minimums.half().float())


def linear_cases() -> Iterator[KernelCase]:
    formats: dict[str, tuple[Callable[[torch.Tensor], Any], float]] = {
        "dense bf16": (lambda weight: weight, 2.0),
        "int8": (quantize_int8, 1.0),
        "int4": (_int4, 0.5 + 4 / 32),
    }
    for kind, (quantize, bytes_each) in formats.items():
        for tokens in (1, 16, 64):

            def build(
                device: str, tiny: bool, quantize: Callable[[torch.Tensor], Any] = quantize, tokens: int = tokens
            ) -> dict[str, Any]:
                outputs, inputs = (128, 256) if tiny else (INTERMEDIATE, HIDDEN)
                dense = torch.randn(outputs, inputs, device=device).bfloat16() * inputs**-0.5
                weight = quantize(dense)
                x = torch.randn(tokens, inputs, device=device).bfloat16()
                return {"x": x, "dense": dense, "weight": weight, "packed": ops.pack_weight(weight)}

            yield KernelCase(
                f"linear {kind} {tokens} x {HIDDEN} -> {INTERMEDIATE}",
                "linear",
                build,
                lambda t: ops.linear(t["x"], t["packed"]),
                lambda t: definitions.linear(t["x"], t["weight"]),
                {"cuBLAS bf16": peers.cublas_linear},
                bytes_moved=int(HIDDEN * INTERMEDIATE * bytes_each) + 2 * tokens * (HIDDEN + INTERMEDIATE),
                flops=2 * tokens * HIDDEN * INTERMEDIATE,
            )


def all_cases() -> list[KernelCase]:
    return [*attention_cases(), *stream_cases(), *sampling_cases(), *linear_cases()]
