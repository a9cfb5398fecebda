"""Text to token ids and back, with control over which text may become a special token.

Text that users write must not turn into special tokens: `encode` treats `<|im_end|>` in a prompt as those ten
characters unless asked otherwise, and `encode_chat` parses special tokens only where the chat template wrote them.
Added tokens that the model does not call special (`<think>`, `<tool_call>`) are recognised in any text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from engine import gguf_tokenizer
from engine.chat_template import ChatPrompt, ChatTemplate, special_pattern
from engine.gguf_file import GgufFile
from engine.token_bytes import bytes_of_token


class Tokenizer:
    """A `tokenizers.Tokenizer` with the model's end tokens and chat template.

    Attributes:
        eos_token_ids: ids that end a generation.
        chat_template: None when the model has none; it then serves completions only.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        eos_token_ids: Iterable[int],
        chat_template: str | None = None,
        bos_token: str = "",
        eos_token: str = "",
    ) -> None:
        self.eos_token_ids = frozenset(eos_token_ids)
        self._backend = backend
        # The same tokenizer with special tokens encoded as ordinary text.
        self._literal = tokenizers.Tokenizer.from_str(backend.to_str())
        self._literal.encode_special_tokens = True
        added = backend.get_added_tokens_decoder()
        self._vocabulary_bytes = _vocabulary_bytes(backend, {number: token.content for number, token in added.items()})
        self.special_token_ids = frozenset(number for number, token in added.items() if token.special)
        self._special_ids = {added[number].content: number for number in sorted(self.special_token_ids)}
        self._special_pattern = special_pattern(self._special_ids)
        self.chat_template = (
            None if chat_template is None else ChatTemplate(chat_template, bos_token, eos_token, self._special_ids)
        )
        out_of_range = [number for number in self.eos_token_ids if not 0 <= number < self.vocab_size]
        if out_of_range:
            raise ValueError(f"end tokens {out_of_range} are outside the vocabulary of {self.vocab_size}")

    @property
    def vocab_size(self) -> int:
        """Tokens the tokenizer knows; the model's logits may have more rows, padded for alignment."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, *, add_special_tokens: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids of `text`.

        Args:
            add_special_tokens: let the model's post-processor add what it adds to a prompt, usually BOS.
            parse_special: recognise special tokens written out in `text`; only for text that is trusted.
        """
        backend = self._backend if parse_special else self._literal
        return _encode(backend, text, add_special_tokens)

    def encode_chat(self, prompt: ChatPrompt) -> list[int]:
        """Token ids of a rendered chat: special tokens from the template's own text, none from users' text.

        Where users' text holds something like a special token, the text is encoded piecewise between the
        template's special tokens; their `lstrip`/`rstrip` flags and a metaspace prefix are then not applied.
        """
        if not prompt.marked:
            return self.encode(prompt.text, add_special_tokens=False, parse_special=True)
        ids: list[int] = []
        end = 0
        for found in self._special_pattern.finditer(prompt.marked_text):
            ids += self._encode_literal(prompt, end, found.start())
            ids.append(self._special_ids[found.group()])
            end = found.end()
        return ids + self._encode_literal(prompt, end, len(prompt.marked_text))

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        self._check_ids(token_ids)
        return str(self._backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens))

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for: part of a character at times; special tokens give their written form."""
        return self._vocabulary_bytes[token_id] if 0 <= token_id < len(self._vocabulary_bytes) else b""

    def token_text(self, token_id: int) -> str:
        """The token as text for display; bytes that are no whole character become U+FFFD."""
        return self.token_bytes(token_id).decode("utf-8", errors="replace")

    def vocabulary_bytes(self) -> tuple[bytes, ...]:
        """Bytes of every token, by id; ids that no token has are empty."""
        return self._vocabulary_bytes

    def to_json(self) -> str:
        """The tokenizer in the format of `tokenizer.json`."""
        return str(self._backend.to_str())

    def _encode_literal(self, prompt: ChatPrompt, start: int, end: int) -> list[int]:
        return _encode(self._literal, prompt.marked_text[start:end].replace(prompt.mark, ""), add_special_tokens=False)

    def _check_ids(self, token_ids: Sequence[int]) -> None:
        if any(not 0 <= number < 1 << 32 for number in token_ids):
            raise ValueError("token ids must be whole numbers from 0")


def _vocabulary_bytes(backend: tokenizers.Tokenizer, added: Mapping[int, str]) -> tuple[bytes, ...]:
    bytes_of = bytes_of_token(backend)
    vocabulary = backend.get_vocab(with_added_tokens=True)
    table = [b""] * (max(vocabulary.values(), default=-1) + 1)
    for text, number in vocabulary.items():
        table[number] = text.encode() if number in added else bytes_of(text)
    return tuple(table)


def load_gguf_tokenizer(file: GgufFile) -> Tokenizer:
    """The tokenizer and chat template in a GGUF file's metadata."""
    metadata = file.metadata
    backend = gguf_tokenizer.build_tokenizer(metadata)
    return Tokenizer(
        backend,
        gguf_tokenizer.end_token_ids(metadata),
        metadata.get("tokenizer.chat_template"),
        gguf_tokenizer.token_text(metadata, "bos"),
        gguf_tokenizer.token_text(metadata, "eos"),
    )


def load_hf_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a Hugging Face folder: `tokenizer.json` and the files that go with it."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ValueError(f"{folder} has no tokenizer.json; save the model with a fast tokenizer")
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise ValueError(f"{path} is not a valid tokenizer: {error}") from error
    backend.no_truncation()
    backend.no_padding()
    settings = read_json(folder / "tokenizer_config.json")
    bos, eos = _token_content(settings.get("bos_token")), _token_content(settings.get("eos_token"))
    ends = _hf_eos_ids(folder)
    eos_id = backend.token_to_id(eos) if eos else None
    if eos_id is not None:
        ends.add(eos_id)
    return Tokenizer(backend, ends, _hf_chat_template(folder, settings), bos, eos)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, empty when there is no such file."""
    if not path.is_file():
        return {}
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{path} must hold a JSON object")
    return fields


def _encode(backend: tokenizers.Tokenizer, text: str, add_special_tokens: bool) -> list[int]:
    try:
        return list(backend.encode(text, add_special_tokens=add_special_tokens).ids)
    except (TypeError, UnicodeEncodeError):
        raise ValueError("the text holds half of a surrogate pair; send valid Unicode") from None


def _token_content(token: Any) -> str:
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")


def _hf_eos_ids(folder: Path) -> set[int]:
    for name in ("generation_config.json", "config.json"):
        ends = read_json(folder / name).get("eos_token_id")
        if ends is not None:
            return {int(end) for end in (ends if isinstance(ends, list) else [ends])}
    return set()


def _hf_chat_template(folder: Path, settings: dict[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = read_json(folder / "chat_template.json").get("chat_template", settings.get("chat_template"))
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("default")
    return None if template is None else str(template)
