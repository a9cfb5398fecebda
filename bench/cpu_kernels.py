"""The CPU kernels beside torch and oneDNN, and a whole decoder step, under ceilings measured in the same run.

Every figure is the minimum over rounds in which the variants take turns, so that a busy machine slows all of them
alike; the load average is part of the result. Layers rotate, so that weights and caches come from memory as they do
in a step. Weights are random, the shape is SmolLM2-135M's.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch.nn import functional as F

from bench._machine import cpu_name
from kernels import cpu_status, ops, reference
from kernels.cpu.decoder import DecoderLayer, DecoderShape, make_cpu_decoder
from kernels.kv_cache import KVCache, allocate_kv_caches
from kernels.linear import Int4Blocks, Int8Blocks, OneDnnLinear, compute_logits, make_linear
from kernels.metadata import AttentionMetadata
from kernels.threads import set_threads, usable_cores
from kernels.weight_format import WeightFormat

HIDDEN, INTERMEDIATE, VOCAB, LAYERS = 576, 1536, 49152, 30
HEADS, KV_HEADS, HEAD_DIM, BLOCK_SIZE = 9, 3, 64, 16
QKV = (HEADS + 2 * KV_HEADS) * HEAD_DIM
LINEAR_SHAPES = {"qkv": (QKV, HIDDEN), "out": (HIDDEN, HIDDEN), "gate_up": (2 * INTERMEDIATE, HIDDEN)}
LINEAR_SHAPES |= {"down": (HIDDEN, INTERMEDIATE), "lm_head": (VOCAB, HIDDEN)}
ROTATION = 12  # layers in turn: 85 MB of bf16 weights, beyond the cache


@dataclass(frozen=True, slots=True)
class Row:
    """One measured line. `rate` is in `rate_unit`; `of_ceiling` relates it to the ceiling of that unit."""

    operation: str
    variant: str
    case: str
    time_us: float
    rate: float
    rate_unit: str
    of_ceiling: float | None


@dataclass(frozen=True, slots=True)
class Ceilings:
    copy_gb_per_s: float
    bf16_gflop_per_s: float


def best_times(variants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of the fastest call of each variant, the variants taking turns."""
    best = dict.fromkeys(variants, float("inf"))
    for call in variants.values():
        call()
    for _ in range(rounds):
        for name, call in variants.items():
            begin = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - begin)
    return best


def measure_ceilings(rounds: int) -> Ceilings:
    source = torch.ones(256 << 20, dtype=torch.uint8)
    target = torch.zeros_like(source)
    a, b = (torch.randn(1024, 1024).bfloat16() for _ in range(2))
    best = best_times({"copy": lambda: target.copy_(source), "gemm": lambda: a @ b}, rounds)
    return Ceilings(2 * source.numel() / best["copy"] / 1e9, 2 * 1024**3 / best["gemm"] / 1e9)


def random_int4(n: int, k: int) -> Int4Blocks:
    scale = 0.21 * k**-0.5
    blocks = (n, k // 32)
    codes = torch.randint(0, 16, (n, k), dtype=torch.uint8)
    return Int4Blocks(codes, torch.full(blocks, scale).half().float(), torch.full(blocks, -7.5 * scale).half().float())


def decode_metadata(batch: int, query_len: int, context_len: int, num_blocks: int) -> AttentionMetadata:
    """`batch` requests alike, on scattered blocks."""
    per_request = -(-context_len // BLOCK_SIZE)
    tables = torch.randperm(num_blocks)[: batch * per_request].view(batch, per_request)
    positions = torch.arange(context_len - query_len, context_len)
    slots = tables[:, positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
    return AttentionMetadata(
        query_start=torch.arange(batch + 1, dtype=torch.int32) * query_len,
        context_lens=torch.full((batch,), context_len, dtype=torch.int32),
        block_tables=tables.int(),
        slot_mapping=slots.flatten(),
        positions=positions.repeat(batch),
        max_query_len=query_len,
        max_context_len=context_len,
        num_decodes=batch if query_len == 1 else 0,
    )


def rotating(calls: Sequence[Callable[[], object]]) -> Callable[[], object]:
    def call() -> None:
        for one in calls:
            one()

    return call


def bench_linears(ceilings: Ceilings, batches: Sequence[int], rounds: int) -> list[Row]:
    rows = []
    for name, (n, k) in LINEAR_SHAPES.items():
        copies = 1 if name == "lm_head" else ROTATION
        weights = [random_int4(n, k) for _ in range(copies)]
        dense = [weight.dequantize().bfloat16() for weight in weights]
        layers: dict[str, list[Callable[[torch.Tensor], torch.Tensor]]] = {
            "bf16": [make_linear(weight, None, WeightFormat.BF16) for weight in dense],
            "int4": [make_linear(weight, None, WeightFormat.INT4) for weight in weights],
            "F.linear": [partial(F.linear, weight=weight) for weight in dense],
        }
        if OneDnnLinear.supported():
            layers["oneDNN packed"] = [OneDnnLinear(weight, None) for weight in dense]
        for batch in batches:
            x = torch.randn(batch, k).bfloat16()
            calls = {
                variant: rotating([partial(function, x) for function in functions])
                for variant, functions in layers.items()
            }
            for variant, seconds in best_times(calls, rounds).items():
                each = seconds / copies
                rate = 2 * batch * n * k / each / 1e9
                rows.append(
                    Row(f"linear {name}", variant, f"T={batch}", each * 1e6, rate, "GFLOP/s",
                        rate / ceilings.bf16_gflop_per_s)
                )  # fmt: skip
    return rows


def gather_and_sdpa(q: torch.Tensor, cache: KVCache, metadata: AttentionMetadata, scale: float) -> torch.Tensor:
    """The torch way for decodes of equal length: gather the pages, the group's heads as query rows of one SDPA call."""
    context_len = metadata.max_context_len
    tables = metadata.block_tables.long()
    k, v = (pages[tables].transpose(1, 2).flatten(2, 3)[:, :, :context_len] for pages in cache)
    rows = q.view(q.shape[0], KV_HEADS, HEADS // KV_HEADS, HEAD_DIM)
    return F.scaled_dot_product_attention(rows, k, v, scale=scale).view_as(q)


def bench_attention(ceilings: Ceilings, cases: Sequence[tuple[int, int]], rounds: int) -> list[Row]:
    rows = []
    num_blocks = max(batch * -(-context // BLOCK_SIZE) for batch, context in cases)
    caches = allocate_kv_caches(ROTATION, num_blocks, KV_HEADS, BLOCK_SIZE, HEAD_DIM, torch.bfloat16, "cpu")
    for cache in caches:
        for part in cache:
            part.normal_()
    scale = HEAD_DIM**-0.5
    for batch, context in cases:
        metadata = decode_metadata(batch, 1, context, num_blocks)
        q = torch.randn(batch, HEADS, HEAD_DIM).bfloat16()
        calls = {
            "kernels.ops": rotating([partial(ops.paged_attention, q, k, v, metadata, scale) for k, v in caches]),
            "gather + SDPA": rotating([partial(gather_and_sdpa, q, cache, metadata, scale) for cache in caches]),
        }
        num_bytes = batch * context * KV_HEADS * HEAD_DIM * 4
        for variant, seconds in best_times(calls, rounds).items():
            each = seconds / ROTATION
            rate = num_bytes / each / 1e9
            rows.append(
                Row("paged decode", variant, f"B={batch} ctx={context}", each * 1e6, rate, "GB/s",
                    rate / ceilings.copy_gb_per_s)
            )  # fmt: skip
    return rows


def bench_elementwise(batches: Sequence[int], rounds: int) -> list[Row]:
    rows = []
    weight = torch.ones(HIDDEN).bfloat16()
    cos_sin = torch.rand(4096, HEAD_DIM)
    num_blocks = max(batches) * 10
    ((k_cache, v_cache),) = allocate_kv_caches(1, num_blocks, KV_HEADS, BLOCK_SIZE, HEAD_DIM, torch.bfloat16, "cpu")
    for batch in batches:
        x, residual = (torch.randn(batch, HIDDEN).bfloat16() for _ in range(2))
        gate_up = torch.randn(batch, 2 * INTERMEDIATE).bfloat16()
        q, k, v = torch.randn(batch, HEADS + 2 * KV_HEADS, HEAD_DIM).bfloat16().split([HEADS, KV_HEADS, KV_HEADS], 1)  # type: ignore[no-untyped-call]
        metadata = decode_metadata(batch, 1, 160, num_blocks)
        operations: dict[str, tuple[object, ...]] = {
            "add_rms_norm": (x, residual, weight, 1e-5),
            "silu_and_mul": (gate_up,),
            "rope_and_write_kv": (q, k, v, k_cache, v_cache, cos_sin, metadata),
        }
        for name, inputs in operations.items():
            calls = {
                "kernels.ops": partial(getattr(ops, name), *inputs),
                "definition in torch": partial(getattr(reference, name), *inputs),
            }
            for variant, seconds in best_times(calls, rounds).items():
                rows.append(Row(name, variant, f"T={batch}", seconds * 1e6, 1 / seconds, "calls/s", None))
    return rows


class Model:
    """SmolLM2-135M's shape with random weights as in a Q4_1 file: 4-bit layers, an 8-bit tied head."""

    def __init__(self) -> None:
        self.shape = DecoderShape(HEADS, KV_HEADS, HEAD_DIM, eps=1e-5, scale=HEAD_DIM**-0.5)
        self.norm = torch.ones(HIDDEN).bfloat16()
        names = ("qkv", "out", "gate_up", "down")
        self.layers = [[random_int4(*LINEAR_SHAPES[name]) for name in names] for _ in range(LAYERS)]
        codes = torch.randint(-127, 128, (VOCAB, HIDDEN), dtype=torch.int8)
        self.head = Int8Blocks(codes, torch.full((VOCAB, HIDDEN // 32), 0.0005).half().float())
        self.embedding = self.head.dequantize().bfloat16()
        angles = torch.arange(4096).unsqueeze(1) / 10000 ** (torch.arange(HEAD_DIM // 2) / (HEAD_DIM // 2))
        self.cos_sin = torch.cat((angles.cos(), angles.sin()), dim=1)

    def forwards(self, weight_format: WeightFormat, caches: list[KVCache]) -> dict[str, Callable[..., torch.Tensor]]:
        """The step in one call, where the library has it, and operation by operation, on the same packed weights."""
        layers = [
            DecoderLayer(self.norm, qkv, out, self.norm, gate_up, down)
            for qkv, out, gate_up, down in (
                [make_linear(weight, None, weight_format) for weight in layer] for layer in self.layers
            )
        ]
        lm_head = make_linear(self.head, None, weight_format)
        decoder = make_cpu_decoder(self.shape, layers, self.embedding, self.norm, self.cos_sin)
        sizes = [HEADS, KV_HEADS, KV_HEADS]

        def by_operation(ids: torch.Tensor, metadata: AttentionMetadata, wanted: torch.Tensor) -> torch.Tensor:
            residual = self.embedding[ids]
            hidden = ops.rms_norm(residual, self.norm, self.shape.eps)
            for layer, (k_cache, v_cache) in zip(layers, caches):
                q, k, v = torch.split(layer.qkv(hidden).view(-1, sum(sizes), HEAD_DIM), sizes, dim=1)
                q = ops.rope_and_write_kv(q, k, v, k_cache, v_cache, self.cos_sin, metadata)
                attended = ops.paged_attention(q, k_cache, v_cache, metadata, self.shape.scale)
                hidden, residual = ops.add_rms_norm(layer.out(attended.flatten(1)), residual, self.norm, self.shape.eps)
                mixed = layer.down(ops.silu_and_mul(layer.gate_up(hidden)))
                hidden, residual = ops.add_rms_norm(mixed, residual, self.norm, self.shape.eps)
            return compute_logits(lm_head, hidden[wanted])

        def one_call(ids: torch.Tensor, metadata: AttentionMetadata, wanted: torch.Tensor) -> torch.Tensor:
            assert decoder is not None
            return compute_logits(lm_head, decoder.forward(ids, metadata, caches)[wanted])

        variants = {f"by operation, {weight_format}": by_operation}
        return variants if decoder is None else {f"one call, {weight_format}": one_call, **variants}


def greedy(
    forward: Callable[..., torch.Tensor], ids: torch.Tensor, metadata: AttentionMetadata, wanted: torch.Tensor
) -> list[int]:
    tokens: list[int] = ops.greedy_argmax(forward(ids, metadata, wanted)).tolist()
    return tokens


def bench_steps(cases: Sequence[tuple[int, int, int]], rounds: int) -> list[Row]:
    """Whole steps with greedy argmax; a case is (requests, tokens of each, context)."""
    rows = []
    model = Model()
    num_blocks = max(batch * -(-context // BLOCK_SIZE) for batch, _, context in cases)
    caches = allocate_kv_caches(LAYERS, num_blocks, KV_HEADS, BLOCK_SIZE, HEAD_DIM, torch.bfloat16, "cpu")
    variants: dict[str, Callable[..., torch.Tensor]] = {}
    for weight_format in (WeightFormat.BF16, WeightFormat.INT4):
        variants |= model.forwards(weight_format, caches)
    for batch, query_len, context in cases:
        metadata = decode_metadata(batch, query_len, context, num_blocks)
        ids = torch.randint(0, VOCAB, (batch * query_len,))
        wanted = metadata.query_start[1:].long() - 1
        calls = {name: partial(greedy, forward, ids, metadata, wanted) for name, forward in variants.items()}
        case = f"B={batch} ctx={context}" if query_len == 1 else f"prefill {batch} x {query_len}"
        for variant, seconds in best_times(calls, rounds).items():
            rows.append(Row("step", variant, case, seconds * 1e6, batch * query_len / seconds, "tok/s", None))
    return rows


def print_table(rows: Sequence[Row]) -> None:
    print(f"{'operation':<20}{'case':<20}{'variant':<22}{'us':>11}{'rate':>11} {'unit':<9}{'of ceiling':>10}")
    for row in rows:
        share = "" if row.of_ceiling is None else f"{row.of_ceiling:10.0%}"
        print(
            f"{row.operation:<20}{row.case:<20}{row.variant:<22}{row.time_us:>11.1f}{row.rate:>11.1f} "
            f"{row.rate_unit:<9}{share}"
        )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="gridserve bench cpu_kernels", description=__doc__)
    parser.add_argument("--json", metavar="FILE", help="write the result to FILE")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="threads (default: the physical cores)")
    parser.add_argument("--rounds", type=int, default=20, help="calls of each variant, of which the fastest counts")
    parser.add_argument(
        "--only", choices=("linear", "attention", "elementwise", "step"), help="one part instead of all"
    )
    arguments = parser.parse_args(argv)
    torch.manual_seed(0)
    set_threads(arguments.threads)
    rounds = arguments.rounds
    ceilings = measure_ceilings(rounds)
    parts: dict[str, Callable[[], list[Row]]] = {
        "linear": lambda: bench_linears(ceilings, (1, 8, 32, 128), rounds),
        "attention": lambda: bench_attention(ceilings, ((1, 512), (8, 160), (8, 512), (32, 160), (32, 512)), rounds),
        "elementwise": lambda: bench_elementwise((1, 32), rounds),
        "step": lambda: bench_steps(((1, 1, 160), (8, 1, 160), (32, 1, 160), (32, 1, 512), (1, 128, 128)), rounds),
    }
    rows = [row for name, part in parts.items() if arguments.only in (None, name) for row in part()]
    status = cpu_status()
    print(f"copy {ceilings.copy_gb_per_s:.1f} GB/s, bf16 GEMM {ceilings.bf16_gflop_per_s:.0f} GFLOP/s", end=", ")
    print(f"{arguments.threads} threads, load {os.getloadavg()[0]:.1f}, kernels: {status.instruction_set or 'torch'}")
    print_table(rows)
    if arguments.json:
        result = {
            "method": "measured",
            "ceilings": asdict(ceilings),
            "threads": arguments.threads,
            "rounds": rounds,
            "load_average_1min": os.getloadavg()[0],
            "instruction_set": status.instruction_set,
            "machine": cpu_name(),
            "torch": torch.__version__,
            "rows": [asdict(row) for row in rows],
        }
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
