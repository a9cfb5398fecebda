"""What the front end needs from the tokenizer, the chat template and the detokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol


class DetokenizerProtocol(Protocol):
    """Turns the tokens of one sequence into text, piece by piece; the pieces join to the whole text.

    Text that may yet change (an incomplete UTF-8 character) or be cut (the beginning of a stop string) is held
    back until it is certain.
    """

    @property
    def stop_reason(self) -> str | None:
        """The stop string that was found; the text ends before it, or behind it when it was asked for."""
        ...

    def feed(self, token_ids: Iterable[int]) -> str:
        """The text that became certain with these tokens."""
        ...

    def finish(self) -> str:
        """The text still held back, once no token follows."""
        ...


class TextProtocol(Protocol):
    """Text to tokens and back. Its methods are called from several threads at once."""

    @property
    def eos_token_ids(self) -> frozenset[int]: ...

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str: ...

    def render_chat(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True) -> list[int]:
        """The chat template's prompt as tokens. Raises `ValueError` with the template's own message."""
        ...

    def detokenizer(
        self,
        stop: Sequence[str],
        *,
        include_stop_str_in_output: bool,
        skip_special_tokens: bool,
        min_tokens: int,
    ) -> DetokenizerProtocol:
        """A fresh detokenizer. Stop strings are looked for only in the text behind the first `min_tokens` tokens."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for: part of a character at times; empty for an id no token has."""
        ...

    def token_text(self, token_id: int) -> str:
        """The token as text for display; bytes that are no whole character become U+FFFD."""
        ...
