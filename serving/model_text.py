"""The served model's tokenizer, chat template and detokenizer, as the inference API uses them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine.detokenizer import IncrementalDetokenizer
from engine.tokenizer import Tokenizer


class ModelText:
    """`serving.text.TextProtocol` over `engine.tokenizer`; safe to call from several threads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    @property
    def eos_token_ids(self) -> frozenset[int]:
        return self._tokenizer.eos_token_ids

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def decode(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=False)

    def render_chat(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True) -> list[int]:
        template = self._tokenizer.chat_template
        if template is None:
            raise ValueError("this model has no chat template; use /v1/completions")
        return self._tokenizer.encode_chat(template.render(messages, add_generation_prompt=add_generation_prompt))

    def token_text(self, token_id: int) -> tuple[str, bytes]:
        return self._tokenizer.token_text(token_id), self._tokenizer.token_bytes(token_id)

    def detokenizer(
        self, *, skip_special_tokens: bool, stop: Sequence[str], include_stop: bool, min_tokens: int
    ) -> Detokenizer:
        return Detokenizer(
            self._tokenizer,
            stop,
            include_stop_str_in_output=include_stop,
            skip_special_tokens=skip_special_tokens,
            min_tokens=min_tokens,
        )


class Detokenizer(IncrementalDetokenizer):
    """`serving.text.DetokenizerProtocol`'s names for the engine's detokenizer."""

    @property
    def stopped(self) -> str | None:
        return self.stop_reason

    def flush(self) -> str:
        return self.finish()
