"""The bytes that a token of a vocabulary stands for, by the tokenizer's way of decoding."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import tokenizers

BytesOf = Callable[[str], bytes]
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte (openai/gpt-2 `encoder.py`, `bytes_to_unicode`)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


_ALPHABET = byte_alphabet()


def _byte_level(token: str) -> bytes:
    try:
        return bytes([_ALPHABET[character] for character in token])
    except KeyError:
        return token.encode()


def _sentencepiece(token: str) -> bytes:
    found = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(found[1], 16)]) if found else token.replace("▁", " ").encode()


def bytes_of_token(backend: tokenizers.Tokenizer) -> BytesOf:
    """How to turn a vocabulary entry into bytes. Raises `ValueError` for decoders we cannot stream."""
    kinds = _decoder_kinds(json.loads(backend.decoder.__getstate__()) if backend.decoder is not None else {})
    if "ByteLevel" in kinds:
        return _byte_level
    if kinds & {"ByteFallback", "Metaspace"}:
        return _sentencepiece
    named = ", ".join(sorted(kinds)) or "none"
    raise ValueError(f"tokenizer decoder {named} is not supported; supported: ByteLevel, ByteFallback, Metaspace")


def _decoder_kinds(decoder: dict[str, object]) -> set[str]:
    parts = decoder.get("decoders")
    if isinstance(parts, list):
        return {kind for part in parts for kind in _decoder_kinds(part)}
    return {str(decoder["type"])} if "type" in decoder else set()
