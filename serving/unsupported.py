"""Fields that would change the answer and are not supported: refused by name, never dropped in silence."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from serving.openai_errors import BadRequestError

logger = logging.getLogger(__name__)

_MAX_NAMES_LOGGED = 20

# Field -> the values that ask for nothing, beside null, so that clients which send defaults are served.
REFUSED_UNLESS: Mapping[str, tuple[Any, ...]] = {
    "add_generation_prompt": (True,),
    "add_special_tokens": (True,),
    "allowed_token_ids": (),
    "audio": (),
    "bad_words": ([],),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "documents": ([],),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "guided_decoding_backend": (),
    "guided_grammar": (),
    "kv_transfer_params": (),
    "length_penalty": (1, 1.0),
    "logits_processors": ([],),
    "modalities": (["text"],),
    "mm_processor_kwargs": ({},),
    "moderation": (),
    "prediction": (),
    "prompt_embeds": (),
    "prompt_logprobs": (),
    "reasoning_effort": ("none",),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "service_tier": ("auto", "default"),
    "spaces_between_special_tokens": (True,),
    "store": (False,),
    "structural_tag": (),
    "thinking": (),
    "thinking_token_budget": (),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "verbosity": ("medium",),
    "web_search_options": (),
}

# Extensions of other servers and newer OpenAI hints that change no answer of ours: accepted without a word.
HARMLESS = frozenset(
    {"detailed", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
     "request_id", "safety_identifier"}
)  # fmt: skip


def refuse_unsupported(body: BaseModel) -> None:
    """Raise `BadRequestError` for a field that cannot be honoured; log the unknown rest once, by name."""
    unknown: list[str] = []
    for name, value in (body.model_extra or {}).items():
        if name in REFUSED_UNLESS:
            if value is not None and not any(_same(value, harmless) for harmless in REFUSED_UNLESS[name]):
                raise BadRequestError(f"{name!r} is not supported by this server; leave it out.", name)
        elif name not in HARMLESS:
            unknown.append(name)
    if unknown:
        _report(len(unknown), ", ".join(ascii(name[:64]) for name in unknown[:_MAX_NAMES_LOGGED]))


@functools.lru_cache(maxsize=256)
def _report(count: int, names: str) -> None:
    """One line for each set of names, not for each request."""
    logger.warning("ignored %d unknown request field(s): %s", count, names)


def _same(value: Any, harmless: Any) -> bool:
    return isinstance(value, bool) == isinstance(harmless, bool) and bool(value == harmless)
