"""The whole forward pass in one call against the same layers built from `kernels.reference` and `F.linear`."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kernels import ops, reference
from kernels.cpu.decoder import DecoderLayer, DecoderShape, make_cpu_decoder
from kernels.kv_cache import allocate_kv_caches
from kernels.linear import Int4Blocks, compute_logits, make_linear
from kernels.weight_format import WeightFormat

HIDDEN, VOCAB, LAYERS, BLOCKS, BLOCK_SIZE = 192, 500, 3, 64, 16


class Model:
    """Random weights of a small decoder; `qwen` adds a qkv bias, head norms, another group size, and an intermediate
    size that is no multiple of a panel."""

    def __init__(self, qwen: bool, int4: bool = False) -> None:
        generator = torch.Generator().manual_seed(3)
        heads, kv_heads, head_dim = (4, 2, 96) if qwen else (3, 1, 64)
        self.shape = DecoderShape(heads, kv_heads, head_dim, eps=1e-5, scale=head_dim**-0.5)

        def random(*size, std=1.0):
            return (torch.randn(size, generator=generator) * std).bfloat16()

        def weight(n, k):
            if not int4:
                return random(n, k, std=k**-0.5)
            return Int4Blocks(
                torch.randint(0, 16, (n, k), dtype=torch.uint8, generator=generator),
                torch.full((n, k // 32), 0.21 * k**-0.5).half().float(),
                torch.full((n, k // 32), -1.6 * k**-0.5).half().float(),
            )

        def norm(size):
            return (1 + random(size, std=0.1)).bfloat16()

        inner = 352 if qwen else 384
        width = (heads + 2 * kv_heads) * head_dim
        self.layers = [
            {
                "input_norm": norm(HIDDEN),
                "qkv": weight(width, HIDDEN),
                "out": weight(HIDDEN, heads * head_dim),
                "post_norm": norm(HIDDEN),
                "gate_up": weight(2 * inner, HIDDEN),
                "down": weight(HIDDEN, inner),
                "qkv_bias": random(width, std=0.2) if qwen else None,
                "out_bias": random(HIDDEN, std=0.2) if qwen else None,
                "q_norm": norm(head_dim) if qwen else None,
                "k_norm": norm(head_dim) if qwen else None,
                "window": 24 if index == 1 else None,
            }
            for index in range(LAYERS)
        ]
        self.embedding = random(VOCAB, HIDDEN)
        self.final_norm = norm(HIDDEN)
        angles = torch.arange(512).unsqueeze(1) / 10000 ** (torch.arange(head_dim // 2) / (head_dim // 2))
        self.cos_sin = torch.cat((angles.cos(), angles.sin()), dim=1)

    def pack(self, weight_format=WeightFormat.BF16):
        layers = []
        for fields in self.layers:
            linears = {
                name: make_linear(fields[name], fields.get(f"{name}_bias"), weight_format)
                for name in ("qkv", "out", "gate_up", "down")
            }
            others = {name: value for name, value in fields.items() if name not in linears and "bias" not in name}
            layers.append(DecoderLayer(**linears, **others))
        return make_cpu_decoder(self.shape, layers, self.embedding, self.final_norm, self.cos_sin)

    def caches(self, dtype=torch.bfloat16):
        return allocate_kv_caches(
            LAYERS, BLOCKS, self.shape.num_kv_heads, BLOCK_SIZE, self.shape.head_dim, dtype, "cpu"
        )

    def run_by_operation(self, library, token_ids, metadata, caches, dtype):
        """The same pass by the operations of `library` (`kernels.ops` or the definitions) in `dtype`."""
        heads, kv_heads, head_dim = self.shape.num_heads, self.shape.num_kv_heads, self.shape.head_dim
        weight_format = WeightFormat.FP32 if dtype is torch.float32 else WeightFormat.BF16

        def linear(x, weight, bias=None):
            return make_linear(weight, bias, weight_format)(x)

        residual = torch.zeros(token_ids.shape[0], HIDDEN, dtype=dtype)
        hidden = self.embedding[token_ids].to(dtype)
        for layer, (k_cache, v_cache) in zip(self.layers, caches):
            x, residual = library.add_rms_norm(hidden, residual, layer["input_norm"].to(dtype), self.shape.eps)
            qkv = linear(x, layer["qkv"], layer["qkv_bias"]).view(-1, heads + 2 * kv_heads, head_dim)
            q, k, v = qkv.split([heads, kv_heads, kv_heads], dim=1)
            if layer["q_norm"] is not None:
                q = library.rms_norm(q, layer["q_norm"].to(dtype), self.shape.eps)
                k = library.rms_norm(k, layer["k_norm"].to(dtype), self.shape.eps)
            q = library.rope_and_write_kv(q, k, v, k_cache, v_cache, self.cos_sin, metadata)
            out = library.paged_attention(q, k_cache, v_cache, metadata, self.shape.scale, layer["window"])
            hidden = linear(out.flatten(1), layer["out"], layer["out_bias"])
            x, residual = library.add_rms_norm(hidden, residual, layer["post_norm"].to(dtype), self.shape.eps)
            hidden = linear(library.silu_and_mul(linear(x, layer["gate_up"])), layer["down"])
        return library.add_rms_norm(hidden, residual, self.final_norm.to(dtype), self.shape.eps)[0]


@pytest.mark.parametrize("qwen", [False, True])
def test_hidden_states_against_fp32_and_the_operations(any_library, paged_batch, relative_error, qwen):
    """fp32 throughout is the yardstick: one call must be at least as near to it as the bf16 operations."""
    model = Model(qwen)
    metadata = paged_batch([1, 70, 33], [1, 70, 33]).metadata
    token_ids = torch.randint(0, VOCAB, (104,), generator=torch.Generator().manual_seed(1))
    caches = model.caches()
    hidden = model.pack().forward(token_ids, metadata, caches)
    exact_caches = model.caches(torch.float32)
    exact = model.run_by_operation(reference, token_ids, metadata, exact_caches, torch.float32)
    stepwise = model.run_by_operation(ops, token_ids, metadata, model.caches(), torch.bfloat16)
    assert relative_error(hidden, exact) < 8e-3
    assert relative_error(hidden, exact) < relative_error(stepwise, exact)
    for cached, wanted in zip(caches, exact_caches):
        assert relative_error(cached[0], wanted[0]) < 1e-2
        assert relative_error(cached[1], wanted[1]) < 1e-2


@pytest.mark.parametrize("weight_format", [WeightFormat.BF16, WeightFormat.INT4])
def test_tokens_decoded_in_any_company_have_the_same_bits(native, paged_batch, weight_format):
    """A request's hidden states: prefilled at once, in chunks beside another's decodes, and token by token alone."""
    model = Model(qwen=True, int4=True)
    decoder = model.pack(weight_format)
    length = 90
    batch = paged_batch([length, 1, 12], [length, 60, 12])
    token_ids = torch.randint(0, VOCAB, (length + 13,), generator=torch.Generator().manual_seed(2))
    outcomes = []
    for threads, chunk in ((1, length), (2, 31), (2, 7), (1, 1)):
        native.set_threads(threads)
        caches = model.caches()
        rows = []
        for begin in range(0, length, chunk):
            end = min(length, begin + chunk)
            alone = replace(
                batch.metadata,
                query_start=torch.tensor([0, end - begin], dtype=torch.int32),
                context_lens=torch.tensor([end], dtype=torch.int32),
                block_tables=batch.metadata.block_tables[:1],
                slot_mapping=batch.metadata.slot_mapping[begin:end],
                positions=batch.metadata.positions[begin:end],
            )
            rows.append(decoder.forward(token_ids[begin:end], alone, caches))
        outcomes.append(torch.cat(rows))
    outcomes.append(decoder.forward(token_ids, batch.metadata, model.caches())[:length])
    native.set_threads(1)
    for outcome in outcomes[1:]:
        assert torch.equal(outcome, outcomes[0])


def test_int4_and_bf16_agree(native, paged_batch, relative_error):
    """Bit for bit where codes expand to bf16; elsewhere they are not rounded, which is nearer to the file."""
    model = Model(qwen=False, int4=True)
    metadata = paged_batch([1, 5, 20], [1, 5, 20]).metadata
    outcomes = [
        model.pack(weight_format).forward(torch.arange(26), metadata, model.caches())
        for weight_format in (WeightFormat.BF16, WeightFormat.INT4)
    ]
    if native.rounds_blocks:
        assert torch.equal(*outcomes)
    assert relative_error(outcomes[1], outcomes[0]) < 8e-3


def test_slot_minus_one_writes_nothing(native, paged_batch):
    model = Model(qwen=False)
    metadata = paged_batch([1, 5], [1, 5]).metadata
    caches = model.caches()
    model.pack().forward(torch.arange(6), replace(metadata, slot_mapping=torch.full((6,), -1)), caches)
    assert not any(cache.any() for pair in caches for cache in pair)


def test_an_empty_batch(native, paged_batch):
    model = Model(qwen=False)
    metadata = paged_batch([1], [1]).metadata
    assert model.pack().forward(torch.arange(0), metadata, model.caches()).shape == (0, HIDDEN)


def test_wrong_arguments_are_refused(native, paged_batch):
    model = Model(qwen=False)
    metadata = paged_batch([3], [3]).metadata
    decoder, caches = model.pack(), model.caches()
    with pytest.raises(ValueError, match="2 caches for 3 layers"):
        decoder.forward(torch.arange(3), metadata, caches[:2])
    with pytest.raises(ValueError, match="bf16"):
        decoder.forward(torch.arange(3), metadata, model.caches(torch.float32))
    with pytest.raises(ValueError, match="strided alike"):
        decoder.forward(torch.arange(3), metadata, [*caches[:2], tuple(cache.clone() for cache in caches[2])])
    with pytest.raises(ValueError, match=r"token ids must be in \[0, 500\)"):
        decoder.forward(torch.tensor([1, VOCAB, 2]), metadata, caches)
    with pytest.raises(ValueError, match=r"slots must be in \[-1, 1024\)"):
        decoder.forward(torch.arange(3), replace(metadata, slot_mapping=metadata.slot_mapping + 1024), caches)
    with pytest.raises(ValueError, match="positions"):
        decoder.forward(torch.arange(3), replace(metadata, positions=metadata.positions + 511), caches)


def test_not_made_where_it_cannot_run(native, monkeypatch):
    model = Model(qwen=False)
    assert model.pack(WeightFormat.FP32) is None
    monkeypatch.setattr("kernels.cpu.library._load", lambda: (None, "test"))
    assert model.pack() is None


def test_logits_keep_fp32(native, relative_error):
    weight, hidden = torch.randn(VOCAB, HIDDEN).bfloat16(), torch.randn(4, HIDDEN).bfloat16()
    exact = hidden.double() @ weight.double().T
    logits = compute_logits(make_linear(weight, None, WeightFormat.BF16), hidden)
    assert logits.dtype is torch.float32
    assert relative_error(logits, exact) < 1e-6
    full = compute_logits(make_linear(weight, None, WeightFormat.FP32), hidden.float())
    assert relative_error(full, exact) < 1e-6
