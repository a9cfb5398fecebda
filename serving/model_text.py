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
        self.encode = tokenizer.encode
        self.decode = tokenizer.decode
        self.token_bytes = tokenizer.token_bytes
        self.token_text = tokenizer.token_text
        # Filled now: computed at the first use it would delay the first answer.
        tokenizer.vocabulary_bytes()
        tokenizer.encode("")

    @property
    def eos_token_ids(self) -> frozenset[int]:
        return self._tokenizer.eos_token_ids

    def render_chat(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True) -> list[int]:
        template = self._tokenizer.chat_template
        if template is None:
            raise ValueError("this model has no chat template; use /v1/completions")
        return self._tokenizer.encode_chat(template.render(messages, add_generation_prompt=add_generation_prompt))

    def detokenizer(
        self,
        stop: Sequence[str],
        *,
        include_stop_str_in_output: bool,
        skip_special_tokens: bool,
        min_tokens: int,
    ) -> IncrementalDetokenizer:
        return IncrementalDetokenizer(
            self._tokenizer,
            stop,
            include_stop_str_in_output=include_stop_str_in_output,
            skip_special_tokens=skip_special_tokens,
            min_tokens=min_tokens,
        )
