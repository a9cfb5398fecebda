"""Tokenizers built from GGUF metadata: hand-made vocabularies of both families, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from engine.gguf_tokenizer import TokenType, build_tokenizer, end_token_ids
from engine.token_bytes import byte_alphabet
from engine.tokenizer import Tokenizer

ALPHABET = {byte: character for character, byte in byte_alphabet().items()}


def byte_vocabulary(*merged: str) -> list[str]:
    return [ALPHABET[byte] for byte in range(256)] + list(merged)


def bpe_metadata(kind: str, **more: Any) -> dict[str, Any]:
    tokens = [*byte_vocabulary("12", "123", "ab", "Ġa"), "<s>", "</s>", "<tool>"]
    types = [TokenType.NORMAL] * 260 + [TokenType.CONTROL] * 2 + [TokenType.USER_DEFINED]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": kind,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": list(map(int, types)),
        "tokenizer.ggml.merges": ["1 2", "12 3", "a b", "Ġ a"],
        "tokenizer.ggml.bos_token_id": 260,
        "tokenizer.ggml.eos_token_id": 261,
        **more,
    }


@pytest.mark.parametrize(
    ("kind", "pieces"),
    [
        ("gpt-2", ["1234", " x", "'s", "\n\n", " y"]),
        ("default", ["1234", " x", "'s", "\n\n", " y"]),
        ("smollm", ["1", "2", "3", "4", " x", "'s", "\n\n", " y"]),
        ("llama-bpe", ["123", "4", " x", "'s", "\n\n", " y"]),
        ("qwen2", ["1", "2", "3", "4", " x", "'s", "\n\n", " y"]),
    ],
)
def test_pre_tokenizers_cut_where_they_should(kind: str, pieces: list[str]) -> None:
    backend = build_tokenizer(bpe_metadata(kind))
    alphabet = byte_alphabet()
    cut = [text for text, _ in backend.pre_tokenizer.pre_tokenize_str("1234 x's\n\n y")]
    assert [bytes(alphabet[character] for character in text).decode() for text in cut] == pieces


def test_bos_and_eos_are_added_as_the_metadata_says() -> None:
    plain = build_tokenizer(bpe_metadata("gpt-2"))
    assert plain.encode("ab").ids == [258]
    both = build_tokenizer(
        bpe_metadata("gpt-2", **{"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True})
    )
    assert both.encode("ab").ids == [260, 258, 261]
    assert both.encode("ab", add_special_tokens=False).ids == [258]
    assert build_tokenizer(bpe_metadata("llama-bpe")).encode("ab").ids == [260, 258]


def test_user_defined_tokens_are_text_not_special() -> None:
    metadata = bpe_metadata("gpt-2")
    tokenizer = Tokenizer(build_tokenizer(metadata), end_token_ids(metadata))
    assert tokenizer.special_token_ids == {260, 261}
    assert tokenizer.encode("<tool>") == [262]
    assert tokenizer.decode([262]) == "<tool>"


def test_end_tokens() -> None:
    metadata = bpe_metadata("gpt-2", **{"tokenizer.ggml.eot_token_id": 262})
    metadata["tokenizer.ggml.tokens"][260] = "<|eot_id|>"
    assert end_token_ids(metadata) == {260, 261, 262}


SPM_TOKENS = [
    ("<unk>", 0.0, TokenType.UNKNOWN),
    ("<s>", 0.0, TokenType.CONTROL),
    ("</s>", 0.0, TokenType.CONTROL),
    *[(f"<0x{byte:02X}>", 0.0, TokenType.BYTE) for byte in range(256)],
    ("he", -1.0, TokenType.NORMAL),
    ("▁he", -2.0, TokenType.NORMAL),
    ("ll", -3.0, TokenType.NORMAL),
    ("▁hell", -4.0, TokenType.NORMAL),
    ("▁hello", -5.0, TokenType.NORMAL),
    ("lo", -6.0, TokenType.NORMAL),
    *[(character, -100.0 - place, TokenType.NORMAL) for place, character in enumerate("▁helo")],
]


def spm_metadata(**more: Any) -> dict[str, Any]:
    tokens, scores, types = zip(*SPM_TOKENS)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": list(tokens),
        "tokenizer.ggml.scores": list(scores),
        "tokenizer.ggml.token_type": list(map(int, types)),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        **more,
    }


def test_sentencepiece_vocabulary() -> None:
    backend = build_tokenizer(spm_metadata())
    assert backend.encode("hello hell").tokens == ["<s>", "▁hello", "▁hell"]
    assert backend.encode("é").tokens == ["<s>", "▁", "<0xC3>", "<0xA9>"]
    tokenizer = Tokenizer(backend, end_token_ids(spm_metadata()))
    for text in ("hello", "hello  hell", "é🙂 he"):
        ids = tokenizer.encode(text)
        assert ids[0] == 1
        assert tokenizer.decode(ids) == text
        assert b"".join(map(tokenizer.token_bytes, ids[1:])) == f" {text}".encode()
    no_prefix = build_tokenizer(spm_metadata(**{"tokenizer.ggml.add_space_prefix": False}))
    assert no_prefix.encode("hello").tokens == ["<s>", "he", "ll", "o"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer.ggml.model": "bert"}, "'bert' is not supported; supported: gpt2, llama"),
        ({"tokenizer.ggml.pre": "falcon"}, "'falcon' is not supported; supported: default, gpt-2, smollm"),
        ({"tokenizer.ggml.tokens": []}, "no tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.token_type": [1]}, "1 entries for 263 tokens"),
        ({"tokenizer.ggml.merges": ["ab"]}, "two tokens apart"),
        ({"tokenizer.ggml.merges": ["a nothing"]}, "inconsistent"),
        ({"tokenizer.ggml.bos_token_id": 999, "tokenizer.ggml.add_bos_token": True}, "outside the vocabulary"),
        ({"tokenizer.ggml.model": "llama"}, "no tokenizer.ggml.scores"),
    ],
)
def test_unsupported_vocabularies_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_tokenizer({**bpe_metadata("gpt-2"), **changes})


def test_end_tokens_must_be_in_the_vocabulary() -> None:
    with pytest.raises(ValueError, match=r"end tokens \[999\]"):
        Tokenizer(build_tokenizer(bpe_metadata("gpt-2")), {999})
