"""What a request says, as token ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from engine.client_protocol import EngineInfo
from serving.openai_errors import BadRequestError
from serving.openai_requests import MAX_PROMPTS, AssistantMessage, Message, TextPart
from serving.text import TextProtocol


@dataclass(frozen=True, slots=True)
class Prompt:
    """`text` is what the client sent, or `None` when it sent token ids or messages."""

    token_ids: tuple[int, ...]
    text: str | None = None


TemplateMessages = list[dict[str, Any]]


def chat_prompt(
    text: TextProtocol,
    messages: Sequence[Message],
    info: EngineInfo,
    directed: Callable[[TemplateMessages], TemplateMessages] | None = None,
) -> Prompt:
    """The prompt of a conversation, ready to be answered; `directed` puts the server's directive into it.

    Raises `BadRequestError`.
    """
    token_ids = render_messages(text, messages, add_generation_prompt=True, directed=directed)
    check_prompt_length(len(token_ids), info, "messages")
    return Prompt(tuple(token_ids))


def render_messages(
    text: TextProtocol,
    messages: Sequence[Message],
    add_generation_prompt: bool,
    directed: Callable[[TemplateMessages], TemplateMessages] | None = None,
) -> list[int]:
    """Token ids by the chat template. Raises `BadRequestError` with the template's message."""
    rendered = [_template_message(message, position) for position, message in enumerate(messages)]
    if directed is not None:
        rendered = directed(rendered)
    try:
        return text.render_chat(rendered, add_generation_prompt=add_generation_prompt)
    except (ValueError, RecursionError) as error:
        raise BadRequestError(f"the chat template refuses these messages: {error}", "messages") from None


def _template_message(message: Message, position: int) -> dict[str, Any]:
    rendered: dict[str, Any] = {"role": message.role, "content": _joined(message.content)}
    if message.name:
        rendered["name"] = message.name
    if isinstance(message, AssistantMessage):
        if message.tool_calls:
            rendered["tool_calls"] = message.tool_calls
        elif message.content is None:
            raise BadRequestError("an assistant message needs content or tool_calls", f"messages[{position}].content")
        return rendered
    if message.role == "developer":
        rendered["role"] = "system"
    if message.tool_call_id:
        rendered["tool_call_id"] = message.tool_call_id
    return rendered


def _joined(content: str | list[TextPart] | None) -> str:
    """Parts stand on lines of their own."""
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(part.text for part in content)


def parse_prompts(value: Any) -> list[str | list[int]]:
    """The prompts of a text completion: a text, token ids, or a list of either. Raises `BadRequestError`."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise BadRequestError("prompt must be a text, a list of token ids, or a non-empty list of either", "prompt")
    if all(type(item) is int for item in value):
        return [value]
    if len(value) > MAX_PROMPTS:
        raise BadRequestError(f"at most {MAX_PROMPTS} prompts fit in one request, got {len(value)}", "prompt")
    if all(isinstance(item, str) for item in value):
        return list(value)
    for position, item in enumerate(value):
        if not (isinstance(item, list) and item and all(type(token_id) is int for token_id in item)):
            raise BadRequestError(
                "prompt must be a text, a list of token ids, or a list of only texts or only lists of token ids",
                f"prompt[{position}]",
            )
    return list(value)


def completion_prompt(text: TextProtocol, prompt: str | list[int], info: EngineInfo) -> Prompt:
    """Tokenise one prompt, or check its ids. Raises `BadRequestError`."""
    if isinstance(prompt, str):
        token_ids = text.encode(prompt)
        check_prompt_length(len(token_ids), info, "prompt")
        return Prompt(tuple(token_ids), prompt)
    check_prompt_length(len(prompt), info, "prompt")
    check_token_ids(prompt, info, "prompt")
    return Prompt(tuple(prompt))


def check_prompt_length(prompt_len: int, info: EngineInfo, param: str) -> None:
    """Raise `BadRequestError` unless a prompt leaves room for one token at least."""
    if prompt_len == 0:
        raise BadRequestError("the prompt is empty; send at least one token", param)
    if prompt_len >= info.max_model_len:
        raise BadRequestError(
            f"The prompt has {prompt_len} tokens; this model's context window is {info.max_model_len} tokens, "
            "prompt and answer together. Shorten the prompt.",
            param,
            "context_length_exceeded",
        )


def check_token_ids(token_ids: Sequence[int], info: EngineInfo, param: str) -> None:
    if token_ids and not (min(token_ids) >= 0 and max(token_ids) < info.vocab_size):
        raise BadRequestError(f"{param}: token ids go from 0 to {info.vocab_size - 1}", param)
