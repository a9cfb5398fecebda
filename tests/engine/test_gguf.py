"""GGUF: block formats against scalar definitions, whole models written and read back, malformed files refused."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Kind
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.checkpoint import open_checkpoint
from engine.config_reading import config_from_gguf
from engine.decoder import Decoder
from engine.gguf_file import SUPPORTED_TYPES, GgufFile
from engine.gguf_quants import _DEQUANTIZE, _FLOATS, dequantize, int4_blocks
from engine.model_config import ModelConfig, RopeScaling, RopeScalingKind
from engine.random_model import random_model
from engine.rope import inverse_frequencies
from engine.weights import ROPE_FACTORS
from kernels.weight_format import WeightFormat


def half(block: bytes, at: int) -> float:
    return float(struct.unpack_from("<e", block, at)[0])


def six_bit_pair(block: bytes, number: int) -> tuple[int, int]:
    """Scale and minimum `number` of a K superblock, twelve bytes from offset 4."""
    q = block[4:16]
    if number < 4:
        return q[number] & 63, q[number + 4] & 63
    return (q[number + 4] & 15) | (q[number - 4] >> 6) << 4, q[number + 4] >> 4 | (q[number] >> 6) << 4


def scalar_q4_0(b: bytes) -> list[float]:
    return [half(b, 0) * (nibble - 8) for nibble in [x & 15 for x in b[2:]] + [x >> 4 for x in b[2:]]]


def scalar_q4_1(b: bytes) -> list[float]:
    return [half(b, 0) * nibble + half(b, 2) for nibble in [x & 15 for x in b[4:]] + [x >> 4 for x in b[4:]]]


def scalar_q5(b: bytes, bits_at: int) -> list[int]:
    bits = int.from_bytes(b[bits_at : bits_at + 4], "little")
    q = b[bits_at + 4 :]
    return [(x & 15) | (bits >> j & 1) << 4 for j, x in enumerate(q)] + [
        x >> 4 | (bits >> (j + 16) & 1) << 4 for j, x in enumerate(q)
    ]


def scalar_q8_0(b: bytes) -> list[float]:
    return [half(b, 0) * x for x in struct.unpack("<32b", b[2:])]


def scalar_k(b: bytes, fifth: bytes | None, codes: bytes) -> list[float]:
    weights = []
    for number in range(8):
        scale, minimum = six_bit_pair(b, number)
        for column in range(32):
            byte = codes[32 * (number // 2) + column]
            code = byte >> 4 if number % 2 else byte & 15
            if fifth is not None:
                code |= (fifth[column] >> number & 1) << 4
            weights.append(half(b, 0) * scale * code - half(b, 2) * minimum)
    return weights


def scalar_q6_k(b: bytes) -> list[float]:
    low, high, scales = b[:128], b[128:192], struct.unpack("<16b", b[192:208])
    weights = [0.0] * 256
    for part in range(2):
        for column in range(32):
            for quarter in range(4):
                byte = low[64 * part + 32 * (quarter % 2) + column]
                code = (byte >> 4 if quarter >= 2 else byte & 15) | (high[32 * part + column] >> 2 * quarter & 3) << 4
                place = 128 * part + 32 * quarter + column
                weights[place] = half(b, 208) * scales[place // 16] * (code - 32)
    return weights


SCALAR: dict[Kind, Callable[[bytes], list[float]]] = {
    Kind.F32: lambda b: list(struct.unpack("<f", b)),
    Kind.F16: lambda b: list(struct.unpack("<e", b)),
    Kind.BF16: lambda b: list(struct.unpack("<f", b"\0\0" + b)),
    Kind.Q4_0: scalar_q4_0,
    Kind.Q4_1: scalar_q4_1,
    Kind.Q5_0: lambda b: [half(b, 0) * (code - 16) for code in scalar_q5(b, 2)],
    Kind.Q5_1: lambda b: [half(b, 0) * code + half(b, 2) for code in scalar_q5(b, 4)],
    Kind.Q8_0: scalar_q8_0,
    Kind.Q4_K: lambda b: scalar_k(b, None, b[16:]),
    Kind.Q5_K: lambda b: scalar_k(b, b[16:48], b[48:]),
    Kind.Q6_K: scalar_q6_k,
}
SCALES_AT = {Kind.Q4_1: (0, 2), Kind.Q5_1: (0, 2), Kind.Q4_K: (0, 2), Kind.Q5_K: (0, 2), Kind.Q6_K: (208,)}
INT4_KINDS = (Kind.Q4_0, Kind.Q4_1, Kind.Q4_K)


def random_rows(kind: Kind, rows: int, blocks: int) -> np.ndarray:
    """Random bytes, with the half-precision scales finite."""
    generator = np.random.default_rng(kind)
    size = GGML_QUANT_SIZES[kind][1]
    raw = generator.integers(0, 256, (rows * blocks, size), dtype=np.uint8)
    if kind in (Kind.F32, Kind.F16, Kind.BF16):
        values = generator.standard_normal(rows * blocks).astype(np.float32)
        raw = gguf.quants.quantize(values.reshape(1, -1), kind).view(np.uint8).copy()
    else:
        for at in SCALES_AT.get(kind, (0,)):
            scales = generator.standard_normal(len(raw)).astype(np.float16)
            raw[:, at : at + 2] = scales.view(np.uint8).reshape(-1, 2)
    return raw.reshape(rows, -1)


def test_what_the_reader_lets_through_can_be_dequantised() -> None:
    assert set(SUPPORTED_TYPES) == {*_FLOATS, *_DEQUANTIZE}


@pytest.mark.parametrize("kind", SUPPORTED_TYPES, ids=lambda kind: kind.name)
def test_dequantising_follows_the_scalar_definition(kind: Kind) -> None:
    raw = random_rows(kind, rows=3, blocks=2)
    size = GGML_QUANT_SIZES[kind][1]
    expected = [SCALAR[kind](bytes(block)) for block in raw.reshape(-1, size)]
    weight = dequantize(torch.from_numpy(raw), kind, torch.float32)
    torch.testing.assert_close(weight, torch.tensor(expected).view(3, -1), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", SUPPORTED_TYPES, ids=lambda kind: kind.name)
def test_dequantising_agrees_with_the_gguf_package(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.gguf_quants.CHUNK_WEIGHTS", 1000)
    raw = random_rows(kind, rows=37, blocks=3)
    expected = gguf.quants.dequantize(raw, kind)
    weight = dequantize(torch.from_numpy(raw), kind, torch.float32)
    torch.testing.assert_close(weight.numpy(), expected.reshape(weight.shape), atol=1e-5, rtol=1e-6)
    rounded = dequantize(torch.from_numpy(raw), kind, torch.bfloat16)
    assert torch.equal(rounded, weight.bfloat16())


@pytest.mark.parametrize("kind", INT4_KINDS, ids=lambda kind: kind.name)
def test_four_bit_blocks_are_lossless(kind: Kind) -> None:
    raw = torch.from_numpy(random_rows(kind, rows=5, blocks=3))
    blocks = int4_blocks(raw, kind)
    assert blocks is not None
    assert blocks.codes.dtype == torch.uint8
    assert blocks.codes.max() <= 15
    torch.testing.assert_close(blocks.dequantize(), dequantize(raw, kind, torch.float32), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", sorted(set(SUPPORTED_TYPES) - set(INT4_KINDS)), ids=lambda kind: kind.name)
def test_other_formats_have_no_four_bit_blocks(kind: Kind) -> None:
    assert int4_blocks(torch.from_numpy(random_rows(kind, rows=2, blocks=2)), kind) is None


def small_config(architecture: str = "llama", **changes: Any) -> ModelConfig:
    fields: dict[str, Any] = {
        "architecture": architecture,
        "vocab_size": 96,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 16,
        "rms_norm_eps": float(np.float32(1e-5)),
        "rope_theta": 10000.0,
        "max_position_embeddings": 64,
        "layer_windows": (None, None),
    }
    return ModelConfig(**{**fields, **changes})


MODELS = {
    "llama": small_config(),
    "llama-tied": small_config(tie_word_embeddings=True),
    "llama-biases": small_config(qkv_bias=True, output_bias=True, mlp_bias=True),
    "llama-linear": small_config(rope_scaling=RopeScaling(RopeScalingKind.LINEAR, 2.0)),
    "llama-window": small_config(layer_windows=(5, 5)),
    "qwen2": small_config("qwen2", qkv_bias=True, tie_word_embeddings=True),
    "qwen3": small_config("qwen3", qk_norm=True, head_dim=32),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_survives_the_round_trip(name: str, write_gguf: Any, paged_run: Any, tmp_path: Path) -> None:
    config = MODELS[name]
    weights = random_model(config, seed=2)
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", config, weights.tensors))

    assert checkpoint.config == config
    read = checkpoint.open_weights()
    for weight, tensor in weights.tensors.items():
        torch.testing.assert_close(read.dense(weight, torch.float32), tensor, atol=0, rtol=0)
    prompt = list(range(1, 20))
    logits, expected = (
        paged_run(Decoder(config, source, WeightFormat.FP32)).prompt_logits({0: prompt}, chunk=50)[0]
        for source in (read, weights)
    )
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("kind", [Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1])
@pytest.mark.parametrize("weight_format", [WeightFormat.FP32, WeightFormat.INT4])
@pytest.mark.parametrize("name", ["llama", "llama-tied"])
def test_quantised_models_run(
    kind: Kind, weight_format: WeightFormat, name: str, write_gguf: Any, paged_run: Any, tmp_path: Path
) -> None:
    """In FP32 the logits are those of the dequantised weights; INT4 keeps 4-bit blocks, rows in their right order."""
    config = MODELS[name]
    tensors = random_model(config, seed=2).tensors
    read = open_checkpoint(write_gguf(tmp_path / "m.gguf", config, tensors, kind)).open_weights()
    for weight, tensor in tensors.items():
        if tensor.dim() == 2:
            rounded = gguf.quants.dequantize(gguf.quants.quantize(tensor.numpy(), kind), kind)
            torch.testing.assert_close(read.dense(weight, torch.float32).numpy(), rounded, atol=1e-6, rtol=1e-5)
            blocks = read.blocks(weight)
            assert (blocks is not None) == (kind in (*INT4_KINDS, gguf.GGMLQuantizationType.Q8_0))
            if blocks is not None:
                torch.testing.assert_close(blocks.dequantize().numpy(), rounded, atol=1e-6, rtol=1e-5)
    prompt = list(range(1, 20))
    logits, expected = (
        paged_run(Decoder(config, read, chosen)).prompt_logits({0: prompt}, chunk=50)[0]
        for chosen in (weight_format, WeightFormat.FP32)
    )
    assert torch.nn.functional.cosine_similarity(logits, expected).min() > 0.99


def test_a_fused_layer_of_mixed_types_is_dense(write_gguf: Any, paged_run: Any, tmp_path: Path) -> None:
    """As in files of the K-mix kind, where values have more bits than queries and keys."""
    config = MODELS["llama"]
    tensors = random_model(config, seed=2).tensors
    kinds = {f"model.layers.{layer}.self_attn.v_proj.weight": Kind.Q8_0 for layer in range(config.num_layers)}
    read = open_checkpoint(write_gguf(tmp_path / "m.gguf", config, tensors, Kind.Q4_1, kinds=kinds)).open_weights()
    prompt = list(range(1, 20))
    mixed, expected = (
        paged_run(Decoder(config, read, chosen)).prompt_logits({0: prompt}, chunk=50)[0]
        for chosen in (WeightFormat.INT4, WeightFormat.FP32)
    )
    assert torch.nn.functional.cosine_similarity(mixed, expected).min() > 0.99


def test_parts_of_a_split_file_are_refused() -> None:
    with pytest.raises(ValueError, match="llama-gguf-split --merge"):
        config_from_gguf({"general.architecture": "llama", "split.count": 3}, {})


def test_llama3_rope_factors_are_applied(write_gguf: Any, paged_run: Any, tmp_path: Path) -> None:
    """GGUF stores Llama 3's scaling as divisors of the frequencies; they must give what the configuration gives."""
    plain = small_config()
    scaled = small_config(rope_scaling=RopeScaling(RopeScalingKind.LLAMA3, 8.0, 1.0, 4.0, 32))
    factors = inverse_frequencies(plain) / inverse_frequencies(scaled)
    assert factors.max() > 1
    weights = random_model(plain, seed=2)
    path = write_gguf(tmp_path / "m.gguf", plain, weights.tensors, extra_tensors={ROPE_FACTORS: factors})
    checkpoint = open_checkpoint(path)
    prompt = list(range(1, 40))
    decoders = (
        Decoder(checkpoint.config, checkpoint.open_weights(), WeightFormat.FP32),
        Decoder(scaled, weights, WeightFormat.FP32),
        Decoder(plain, weights, WeightFormat.FP32),
    )
    ours, expected, unscaled = (paged_run(d).prompt_logits({0: prompt}, chunk=64)[0] for d in decoders)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(ours, unscaled, atol=1e-2)


def header(*parts: bytes, tensors: int = 0, keys: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + b"".join(parts)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def tensor_info(
    name: bytes, shape: tuple[int, ...], kind: int, offset: int = 0, num_dimensions: int | None = None
) -> bytes:
    count = len(shape) if num_dimensions is None else num_dimensions
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", count, *shape, kind, offset)


MALFORMED = {
    "empty": (b"", "not a GGUF file"),
    "short": (b"GG", "GGUF"),
    "magic": (b"GGML" + bytes(40), "does not begin with GGUF"),
    "version 1": (header(version=1), "version 1 is not supported"),
    "big endian": (header(version=3 << 24), "little-endian"),
    "too many keys": (header(keys=1 << 60), "more than fit"),
    "too many tensors": (header(tensors=1 << 63), "more than fit"),
    "long key": (header(struct.pack("<Q", 1 << 62), bytes(20), keys=1), "ends in the middle"),
    "value type": (header(text(b"k"), struct.pack("<I", 99), bytes(8), keys=1), "unknown value type 99"),
    "array of arrays": (header(text(b"k"), struct.pack("<IIQ", 9, 9, 1), bytes(9), keys=1), "unknown value type 9"),
    "huge array": (header(text(b"k"), struct.pack("<IIQ", 9, 4, 1 << 61), keys=1), "ends in the middle"),
    "huge string array": (header(text(b"k"), struct.pack("<IIQ", 9, 8, 1 << 61), keys=1), "more than fit"),
    "not UTF-8": (header(text(b"\xff\xfe"), struct.pack("<II", 4, 1), keys=1), "not UTF-8"),
    "twice a key": (header(*[text(b"k") + struct.pack("<II", 4, 1)] * 2, keys=2), "occurs twice"),
    "alignment": (
        header(text(b"general.alignment"), struct.pack("<II", 4, 3), keys=1),
        "power of two",
    ),
    "type": (header(tensor_info(b"t", (32,), Kind.IQ2_XXS), bytes(64), tensors=1), "type IQ2_XXS, which is not supp"),
    "unknown type": (header(tensor_info(b"t", (32,), 250), bytes(64), tensors=1), "type 250.*supported: F32, F16"),
    "five dimensions": (header(tensor_info(b"t", (1,) * 5, 0), bytes(64), tensors=1), "5 dimensions"),
    "no dimension": (header(tensor_info(b"t", (), 0), bytes(64), tensors=1), "0 dimensions"),
    "empty tensor": (header(tensor_info(b"t", (4, 0), 0), bytes(64), tensors=1), "is empty"),
    "beyond the end": (header(tensor_info(b"t", (64,), 0), bytes(64), tensors=1), "beyond the end"),
    "huge tensor": (header(tensor_info(b"t", (1 << 63, 1 << 63), 0), bytes(64), tensors=1), "beyond the end"),
    "huge offset": (header(tensor_info(b"t", (1,), 0, (1 << 64) - 8), bytes(64), tensors=1), "beyond the end"),
    "ragged block": (header(tensor_info(b"t", (33,), Kind.Q4_0), bytes(64), tensors=1), "no multiple of Q4_0"),
    "twice a tensor": (header(*[tensor_info(b"t", (1,), 0)] * 2, bytes(64), tensors=2), "occurs twice"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_files_are_refused(name: str, tmp_path: Path) -> None:
    content, message = MALFORMED[name]
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        GgufFile(path)


@pytest.fixture(scope="module")
def sound_file(write_gguf: Any, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    config = small_config()
    path = write_gguf(tmp_path_factory.mktemp("gguf") / "m.gguf", config, random_model(config).tensors)
    return bytes(path.read_bytes())


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_corruption_crashes_the_reader(sound_file: bytes, tmp_path: Path, data: st.DataObject) -> None:
    """Cut short or with bytes changed in the header, a file is read or refused with `ValueError`."""
    size = data.draw(st.one_of(st.just(len(sound_file)), st.integers(0, 4000)))
    content = bytearray(sound_file[:size])
    limit = max(min(len(content), 2500) - 1, 0)
    for place, byte in data.draw(st.lists(st.tuples(st.integers(0, limit), st.integers(0, 255)), max_size=8)):
        if place < len(content):
            content[place] = byte
    path = tmp_path / "m.gguf"
    path.write_bytes(bytes(content))
    try:
        file = GgufFile(path)
        config_from_gguf(file.metadata, file.shapes)
    except ValueError:
        return
    for tensor in file.tensors.values():
        assert file.raw(tensor).numel() == tensor.nbytes


def test_unknown_architecture_is_named() -> None:
    with pytest.raises(ValueError, match=r"'mamba' is not supported; supported: llama, qwen2, qwen3"):
        config_from_gguf({"general.architecture": "mamba"}, {})


def test_missing_tensor_is_named(write_gguf: Any, tmp_path: Path) -> None:
    config = small_config()
    name = "model.layers.1.mlp.down_proj.weight"
    path = write_gguf(tmp_path / "m.gguf", config, random_model(config).tensors, skip=(name,))
    checkpoint = open_checkpoint(path)
    with pytest.raises(ValueError, match=r"no tensor blk\.1\.ffn_down\.weight"):
        Decoder(checkpoint.config, checkpoint.open_weights())
