"""The variants that the compile gate builds, by family: a name and a call of the wrapper on meta tensors."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from engine.batch import Batch, ScheduledRequest
from engine.decoder import Decoder
from engine.device_runner import DeviceRunner, Limits
from engine.model_config import ModelConfig
from engine.random_model import weight_shapes
from engine.request import Request, SamplingParams
from engine.weights import TensorWeights
from kernels.gpu import ops, tuning
from kernels.gpu.definitions import KVScales
from kernels.gpu.linear import PackedWeight
from kernels.kv_cache import allocate_kv_caches, allocate_kv_scales
from kernels.metadata import AttentionMetadata
from kernels.weight_format import WeightFormat

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


def invariant(capability: int, depth: str) -> Iterator[Case]:
    def held(run: Callable[[], object]) -> Callable[[], object]:
        def deterministic() -> None:
            tuning.set_deterministic(True)
            try:
                run()
            finally:
                tuning.set_deterministic(False)

        return deterministic

    for cache in _cache_dtypes(capability):
        yield f"8B {cache}", held(_attention(9, 2048, 8, cache=cache))
    yield "8B window", held(_attention(9, 2048, 8, window=4096))
    yield "135M group 3", held(_attention(9, 2048, 8, 9, 3, 64))
    if depth == "all":
        yield "head_dim 256", held(_attention(9, 2048, 8, head_dim=256))


def elementwise(capability: int, depth: str) -> Iterator[Case]:
    for width in (576, 4096):
        x, weight = empty(64, width), empty(width)
        yield f"norm {width}", lambda x=x, weight=weight: ops.rms_norm(x, weight, 1e-5)
        yield f"add norm {width}", lambda x=x, weight=weight: ops.add_rms_norm(x, x, weight, 1e-5)
    heads = empty(64, 48, 128)[:, :32]
    yield "head norm", lambda: ops.rms_norm(heads, empty(128), 1e-6)
    yield "silu", lambda: ops.silu_and_mul(empty(64, 2 * 14336))
    yield "embedding", lambda: ops.embedding(empty(64, dtype=torch.int64), empty(128256, 4096))
    for cache in _cache_dtypes(capability):
        yield f"rope 8B {cache}", _rope(32, 8, 128, cache)
    yield "rope 135M", _rope(9, 3, 64, torch.bfloat16)
    yield "rope with head norms", _rope(16, 8, 128, torch.bfloat16, q_norm=empty(128), k_norm=empty(128))
    tables = empty(64, 512, dtype=torch.int32)
    lengths = empty(64, dtype=torch.int32)
    yield "step inputs", lambda: ops.step_inputs(lengths, lengths, tables, 16, 2048)
    yield "advance", lambda: ops.advance_decodes(lengths, tables, 16)


def _rope(heads: int, kv_heads: int, head_dim: int, cache: torch.dtype, **extra: torch.Tensor) -> Callable[[], object]:
    caches = empty(4096, 2, kv_heads, 16, head_dim, dtype=cache)
    scales = None
    if cache in (torch.int8, torch.float8_e4m3fn):
        factors = empty(2, 4096, kv_heads, 16, dtype=torch.float32)
        scales = KVScales(factors[0], factors[1])
    q, k, v = empty(64, heads + 2 * kv_heads, head_dim).split([heads, kv_heads, kv_heads], dim=1)
    cos_sin = empty(8192, head_dim, dtype=torch.float32)
    meta = metadata(64, 64, 8192, 64)
    return lambda: ops.rope_and_write_kv(q, k, v, caches[:, 0], caches[:, 1], cos_sin, meta, scales=scales, **extra)


def sampling(capability: int, depth: str) -> Iterator[Case]:
    rows, vocab = 64, 128256
    column = empty(rows, dtype=torch.float32)
    keys = empty(rows, dtype=torch.int64)
    slots = empty(rows, dtype=torch.int32)
    for dtype in (torch.bfloat16, torch.float32):
        logits = empty(rows, vocab, dtype=dtype)
        yield f"argmax {dtype}", lambda logits=logits: ops.greedy_argmax(logits)
        yield f"gumbel {dtype}", lambda logits=logits: ops.gumbel_sample(logits, column, column, keys, keys)
        yield (
            f"thresholds {dtype}",
            lambda logits=logits: ops.sampling_thresholds(logits, column, slots, column, column),
        )
    counts = empty(256, vocab, dtype=torch.int32)
    seen = empty(256, vocab, dtype=torch.bool)
    wide = empty(rows, vocab, dtype=torch.float32)
    yield "penalties", lambda: ops.apply_penalties(wide, slots, counts, seen, column, column, column)
    yield "count tokens", lambda: ops.count_tokens(counts, slots, keys)


def linear(capability: int, depth: str) -> Iterator[Case]:
    outputs, inputs = 4096, 4096
    scales = empty(outputs, dtype=torch.float32)
    blocks = empty(inputs // 32, outputs, dtype=torch.float16)
    weights = {
        "dense": (tuning.PackedFormat.DENSE, empty(outputs, inputs), None, None),
        "int8": (tuning.PackedFormat.INT8, empty(outputs, inputs, dtype=torch.int8), scales, None),
        "int4": (tuning.PackedFormat.INT4, empty(inputs // 64, outputs, 32, dtype=torch.uint8), blocks, blocks),
    }
    for name, fields in weights.items():
        weight = PackedWeight(*fields, outputs, inputs)
        for tokens in (16, 64, 2048):
            x = empty(tokens, inputs)
            yield f"{name} {tokens} tokens", lambda x=x, weight=weight: ops.linear(x, weight)


def variants(capability: int, depth: str) -> Iterator[Case]:
    """Batches of many sizes: none may make a kernel compile again while it serves."""

    def batches() -> None:
        weight = PackedWeight(tuning.PackedFormat.DENSE, empty(4096, 4096), None, None, 4096, 4096)
        for requests in (9, 10, 16):
            _attention(requests, requests, requests)()
            _attention(requests + 1, 1000 + requests, requests)()
            ops.linear(empty(requests, 4096), weight)
            ops.rms_norm(empty(requests, 4096), empty(4096), 1e-5)
            tables, lengths = empty(requests, 3 * requests, dtype=torch.int32), empty(requests, dtype=torch.int32)
            ops.step_inputs(lengths, lengths, tables, 16, 2 * requests)
            ops.advance_decodes(lengths, tables, 16)

    yield "batch sizes", batches


def _config(
    heads: int, kv_heads: int, head_dim: int, hidden: int, inner: int, vocab: int, qk_norm: bool
) -> ModelConfig:
    """One layer of a model."""
    return ModelConfig(
        "llama", vocab, hidden, inner, 1, heads, kv_heads, head_dim, 1e-5, 500_000.0, 8192, (None,), qk_norm=qk_norm
    )


SHAPES = {
    "Qwen3-0.6B": _config(16, 8, 128, 1024, 3072, 151936, True),
    "Llama-3.2-1B": _config(32, 8, 64, 2048, 8192, 128256, False),
    "Llama-3.1-8B": _config(32, 8, 128, 4096, 14336, 128256, False),
}


class MetaWeights(TensorWeights):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__({name: empty(*shape) for name, shape in weight_shapes(config).items()})


class MetaTransfers:
    """Shapes in, nothing out: a launch that read the device would fail here, for `meta` tensors hold no values."""

    def upload(self, values: np.ndarray) -> torch.Tensor:
        return torch.empty(values.shape, dtype=torch.from_numpy(values).dtype, device="meta")

    def download(self, tensors: Sequence[torch.Tensor]) -> "MetaTransfers":
        return self

    def wait(self) -> Sequence[torch.Tensor]:
        return ()


def _runner(config: ModelConfig, cache: torch.dtype) -> DeviceRunner:
    device = torch.device("meta")
    decoder = Decoder(config, MetaWeights(config), WeightFormat.BF16, device)
    sizes = (1, 4096, config.num_kv_heads, 32)
    caches = allocate_kv_caches(*sizes, config.head_dim, cache, device)
    scales = None if cache is torch.bfloat16 else allocate_kv_scales(*sizes, device)
    return DeviceRunner(decoder, caches, scales, config.vocab_size, Limits(64, 8192), device, transfers=MetaTransfers())


def _serve(runner: DeviceRunner) -> None:
    """Launch steps of every kind: chunks, chunks beside decodes, decodes of several numbers, each kind of sampling."""
    kinds = (
        SamplingParams(temperature=0.0),
        SamplingParams(temperature=1.0, seed=1),
        SamplingParams(temperature=0.7, top_p=0.9, top_k=40, min_p=0.01, seed=2, logprobs=2, logit_bias={3: 1.0}),
        SamplingParams(temperature=0.0, presence_penalty=0.5, repetition_penalty=1.1),
    )
    requests = []
    for number in range(37):
        request = Request(f"r{number}", tuple(range(1, 600)), kinds[number % 4], float(number))
        request.block_table = list(range(40))
        requests.append(request)
    for step, chunk in enumerate((1, 7, 33, 64, 65, 599)):
        prompt = [ScheduledRequest(requests[0], 0, chunk, True)]
        runner.launch(Batch(step, tuple(prompt), ("r0",)))
        decodes = [ScheduledRequest(each, 599, 1, True) for each in requests[1 : 1 + step * 6]]
        runner.launch(Batch(step + 100, tuple(decodes + [ScheduledRequest(requests[0], 0, max(2, chunk), False)])))
        if decodes:
            runner.launch(Batch(step + 200, tuple(decodes)))


def engine(capability: int, depth: str) -> Iterator[Case]:
    """What the engine itself launches: its warm-up, then the same engine serving, which must compile nothing more."""
    caches = {"Qwen3-0.6B": torch.bfloat16, "Llama-3.2-1B": torch.int8, "Llama-3.1-8B": torch.bfloat16}
    for name, config in SHAPES.items():
        runner = _runner(config, caches[name])
        yield f"{name} warm-up", runner.warm_up
        yield f"{name} serving", lambda runner=runner: _serve(runner)


FAMILIES: dict[str, Callable[[int, str], Iterator[Case]]] = {
    "decode": decode,
    "prefill": prefill,
    "invariant": invariant,
    "elementwise": elementwise,
    "sampling": sampling,
    "linear": linear,
    "variants": variants,
    "engine": engine,
}
