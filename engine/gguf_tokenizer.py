"""Building a tokenizer from the `tokenizer.ggml.*` metadata of a GGUF file.

Two families: byte-level BPE (`gpt2`), whose pre-tokenizer is named by `tokenizer.ggml.pre`, and SentencePiece BPE
with byte fallback (`llama`). Pre-tokenizer patterns follow the models' own `tokenizer.json` files.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_PATTERN = LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")

# Texts that end a turn in the models we know; generation stops at them whatever the file names as its end token.
END_OF_TURN_TEXTS = frozenset(
    {"<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|end|>", "<end_of_turn>"}
)


class TokenType(enum.IntEnum):
    """`llama_token_type` of ggml-org/llama.cpp."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


def _split_pattern(pattern: str) -> pre_tokenizers.PreTokenizer:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level])


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _smollm() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


_PRE_TOKENIZERS: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "default": _gpt2,
    "gpt-2": _gpt2,
    "smollm": _smollm,
    "llama-bpe": lambda: _split_pattern(LLAMA3_PATTERN),
    "llama3": lambda: _split_pattern(LLAMA3_PATTERN),
    "llama-v3": lambda: _split_pattern(LLAMA3_PATTERN),
    "qwen2": lambda: _split_pattern(QWEN2_PATTERN),
    "deepseek-r1-qwen": lambda: _split_pattern(QWEN2_PATTERN),
}
_LLAMA3_KINDS = frozenset({"llama-bpe", "llama3", "llama-v3"})
_NFC_KINDS = frozenset({"qwen2", "deepseek-r1-qwen"})


def build_tokenizer(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that the metadata describes. Raises `ValueError` for kinds that are not supported."""
    kind = metadata.get("tokenizer.ggml.model")
    builders = {"gpt2": _byte_level_bpe, "llama": _sentencepiece_bpe}
    if kind not in builders:
        raise ValueError(f"GGUF tokenizer {kind!r} is not supported; supported: {', '.join(builders)}")
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not tokens or not all(isinstance(token, str) for token in tokens):
        raise ValueError("the GGUF file has no tokenizer.ggml.tokens")
    types = metadata.get("tokenizer.ggml.token_type") or [int(TokenType.NORMAL)] * len(tokens)
    if len(types) != len(tokens):
        raise ValueError(f"tokenizer.ggml.token_type has {len(types)} entries for {len(tokens)} tokens")
    try:
        tokenizer = builders[kind](metadata, tokens)
    except ValueError:
        raise
    except Exception as error:  # tokenizers raises bare Exception for inconsistent vocabularies
        raise ValueError(f"the GGUF file's vocabulary is inconsistent: {error}") from error
    special = (TokenType.CONTROL, TokenType.UNKNOWN)
    tokenizer.add_tokens(
        [
            AddedToken(text, normalized=False, special=token_type in special)
            for text, token_type in zip(tokens, types)
            if text and token_type in (*special, TokenType.USER_DEFINED)
        ]
    )
    _add_post_processor(tokenizer, metadata, tokens)
    return tokenizer


def end_token_ids(metadata: Mapping[str, Any]) -> frozenset[int]:
    """Ids that end a generation: those the metadata names and control tokens known to end a turn."""
    named = (metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom"))
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata.get("tokenizer.ggml.token_type") or []
    known = {
        number
        for number, (text, token_type) in enumerate(zip(tokens, types))
        if token_type == TokenType.CONTROL and text in END_OF_TURN_TEXTS
    }
    return frozenset(known | {number for number in named if number is not None})


def token_text(metadata: Mapping[str, Any], name: str) -> str:
    """Text of the token that `tokenizer.ggml.<name>_token_id` names, empty when it names none."""
    number = metadata.get(f"tokenizer.ggml.{name}_token_id")
    tokens = metadata["tokenizer.ggml.tokens"]
    if number is None:
        return ""
    if not isinstance(number, int) or not 0 <= number < len(tokens):
        raise ValueError(f"tokenizer.ggml.{name}_token_id is {number!r}, outside the vocabulary of {len(tokens)}")
    return str(tokens[number])


def _byte_level_bpe(metadata: Mapping[str, Any], tokens: Sequence[str]) -> Tokenizer:
    kind = metadata.get("tokenizer.ggml.pre", "default")
    if kind not in _PRE_TOKENIZERS:
        supported = ", ".join(_PRE_TOKENIZERS)
        raise ValueError(f"GGUF pre-tokenizer {kind!r} is not supported; supported: {supported}")
    merges = [tuple(merge.split(" ", 1)) for merge in metadata.get("tokenizer.ggml.merges") or ()]
    if any(len(merge) != 2 for merge in merges):
        raise ValueError("an entry of tokenizer.ggml.merges is not two tokens apart by a space")
    vocabulary = {text: number for number, text in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=kind in _LLAMA3_KINDS))
    if kind in _NFC_KINDS:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _PRE_TOKENIZERS[kind]()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece_bpe(metadata: Mapping[str, Any], tokens: Sequence[str]) -> Tokenizer:
    scores = metadata.get("tokenizer.ggml.scores")
    if not scores or len(scores) != len(tokens):
        raise ValueError("the GGUF file has no tokenizer.ggml.scores for its tokens")
    vocabulary = {text: number for number, text in enumerate(tokens)}
    unknown = token_text(metadata, "unknown") or "<unk>"
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=_merges_by_score(vocabulary, scores),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    replace_space = normalizers.Replace(" ", "▁")
    decoding = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if metadata.get("tokenizer.ggml.add_space_prefix", True):
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace_space])
        decoding.append(decoders.Strip(content=" ", left=1))
    else:
        tokenizer.normalizer = replace_space
    tokenizer.decoder = decoders.Sequence(decoding)
    return tokenizer


def _merges_by_score(vocabulary: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """SentencePiece merges the pair whose result scores highest: every split of every piece, best result first."""
    merges: list[tuple[float, int, int, str, str]] = []
    for piece, number in vocabulary.items():
        for cut in range(1, len(piece)):
            left, right = vocabulary.get(piece[:cut]), vocabulary.get(piece[cut:])
            if left is not None and right is not None:
                merges.append((-scores[number], left, right, piece[:cut], piece[cut:]))
    merges.sort(key=lambda merge: merge[:3])
    return [(left, right) for _, _, _, left, right in merges]


def _add_post_processor(tokenizer: Tokenizer, metadata: Mapping[str, Any], tokens: Sequence[str]) -> None:
    adds_by_default = (
        metadata.get("tokenizer.ggml.model") == "llama" or metadata.get("tokenizer.ggml.pre") in _LLAMA3_KINDS
    )
    bos = token_text(metadata, "bos") if metadata.get("tokenizer.ggml.add_bos_token", adds_by_default) else ""
    eos = token_text(metadata, "eos") if metadata.get("tokenizer.ggml.add_eos_token", False) else ""
    if not bos and not eos:
        return
    ids = {text: number for number, text in enumerate(tokens)}
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[text for text in (bos, "$A", eos) if text],
        special_tokens=[(text, ids[text]) for text in (bos, eos) if text],
    )
