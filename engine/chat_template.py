"""Chat templates: Jinja text that ships with a model and turns messages into one prompt.

Rendering follows Hugging Face (`utils/chat_template_utils.py` of huggingface/transformers): the same environment
flags and helpers, in Jinja's immutable sandbox.

**Special tokens in users' text.** A message that contains `<|im_end|>` must not end its own turn. Before rendering,
every special token written out in a message gets a mark (a Unicode noncharacter) after its first character, and a
message that ends in the beginning of one gets a mark at its end. So whatever special token stands unbroken in the
rendered text was written by the template. `Tokenizer.encode_chat` parses those alone and drops the marks. The limit:
a template that rewrites content (changes its case, cuts parts out of its middle) could still join one together.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
MAX_RENDERED_CHARACTERS = 1 << 24
MAX_LOOP_RANGE = 100_000
MAX_DEPTH = 64
MAX_PRODUCT = 1 << 20
MARKS = tuple(chr(code) for code in range(0xFDD0, 0xFDF0))  # noncharacters: no text for interchange has them


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A rendered chat. `marked_text` has `mark` inside what merely looks like a special token."""

    marked_text: str
    mark: str

    @property
    def marked(self) -> bool:
        return self.mark in self.marked_text

    @property
    def text(self) -> str:
        """The prompt as it reads; not safe to parse for special tokens when `marked`."""
        return self.marked_text.replace(self.mark, "")


class ChatTemplate:
    """A compiled template. Raises `ValueError` when the source is not valid Jinja."""

    def __init__(
        self, source: str, bos_token: str = "", eos_token: str = "", special_tokens: Iterable[str] = ()
    ) -> None:
        self.source = source
        self._variables = {"bos_token": bos_token, "eos_token": eos_token}
        breakable = [token for token in special_tokens if len(token) > 1]
        self._special_pattern = special_pattern(breakable)
        self._beginnings = frozenset(token[:size] for token in breakable for size in range(1, len(token)))
        self._longest_beginning = max(map(len, self._beginnings), default=0)
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise ValueError(f"the model's chat template is not valid: {error}") from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        template_variables: Mapping[str, Any] | None = None,
    ) -> ChatPrompt:
        """The prompt for `messages` (OpenAI's form: role, content, perhaps tool_calls).

        `template_variables` are further names some templates know, such as `enable_thinking`.
        Raises `ValueError` with the template's own words when it refuses the messages.
        """
        plain = [_plain_message(message) for message in messages]
        if not plain:
            raise ValueError("messages must hold at least one message")
        mark = _unused_mark((plain, tools, template_variables))

        def neutral(text: str) -> str:
            return self._neutralise(text, mark)

        variables = {
            **self._variables,
            **_map_strings(dict(template_variables or {}), neutral),
            "messages": _map_strings(plain, neutral),
            "tools": _map_strings(tools, neutral) if tools else None,
            "add_generation_prompt": add_generation_prompt,
            "range": _LoopBudget(MAX_LOOP_RANGE),
        }
        return ChatPrompt(self._generate(variables), mark)

    def _generate(self, variables: dict[str, Any]) -> str:
        parts: list[str] = []
        size = 0
        try:
            for part in self._template.generate(variables):
                parts.append(part)
                size += len(part)
                if size > MAX_RENDERED_CHARACTERS:
                    raise ValueError(f"the chat template wrote more than {MAX_RENDERED_CHARACTERS} characters")
        except jinja2.TemplateError as error:
            raise ValueError(f"the chat template refused the messages: {error.message}") from error
        except (TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError, MemoryError) as error:
            raise ValueError(f"the chat template failed on the messages: {error}") from error
        return "".join(parts)

    def _neutralise(self, text: str, mark: str) -> str:
        while self._special_pattern.search(text):
            text = self._special_pattern.sub(lambda found: found[0][0] + mark + found[0][1:], text)
        body = text.rstrip()
        if any(body[-size:] in self._beginnings for size in range(1, self._longest_beginning + 1)):
            text = body + mark + text[len(body) :]
        return text


def special_pattern(special_tokens: Iterable[str]) -> re.Pattern[str]:
    """Matches any of the tokens, the longest first; nothing when there are none."""
    longest_first = sorted(special_tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _plain_message(message: Mapping[str, Any]) -> dict[str, Any]:
    role = message.get("role")
    if role not in ROLES:
        raise ValueError(f"role {role!r} is not known; use one of {', '.join(ROLES)}")
    plain = dict(message)
    content = plain.get("content")
    if isinstance(content, Sequence) and not isinstance(content, str):
        plain["content"] = "\n".join(_part_text(part) for part in content)
    elif content is not None and not isinstance(content, str):
        raise ValueError(f"content must be text or a list of text parts, got {type(content).__name__}")
    return plain


def _part_text(part: Any) -> str:
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise ValueError(f"content part {kind!r} is not supported; supported: text")


def _map_strings(value: Any, change: Callable[[str], str], depth: int = 0) -> Any:
    """A copy of JSON-like data with every string, keys included, changed."""
    if depth > MAX_DEPTH:
        raise ValueError(f"messages and tools may be nested {MAX_DEPTH} levels deep")
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(str(key)): _map_strings(entry, change, depth + 1) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_map_strings(entry, change, depth + 1) for entry in value]
    return value


def _unused_mark(data: Any) -> str:
    used: set[str] = set()

    def note(text: str) -> str:
        used.update(mark for mark in MARKS if mark in text)
        return text

    _map_strings(data, note)
    for mark in MARKS:
        if mark not in used:
            return mark
    raise ValueError("the messages hold every Unicode noncharacter from U+FDD0 to U+FDEF; remove them")


class _LoopBudget:
    """`range` for templates: all ranges of one rendering together may hold so many numbers."""

    def __init__(self, budget: int) -> None:
        self._left = budget

    def __call__(self, *bounds: int) -> range:
        numbers = range(*bounds)
        self._left -= len(numbers)
        if self._left < 0:
            raise jinja2.TemplateRuntimeError(f"loops over more than {MAX_LOOP_RANGE} numbers")
        return numbers


class _Sandbox(ImmutableSandboxedEnvironment):
    """The sandbox with products and powers bounded, so that a template cannot fill the memory with one operator."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and (abs(left) > MAX_PRODUCT or abs(right) > 64):
            raise jinja2.TemplateRuntimeError("a power is too large")
        for repeated, times in ((left, right), (right, left)):
            if isinstance(repeated, (str, list, tuple)) and len(repeated) * times > MAX_PRODUCT:
                raise jinja2.TemplateRuntimeError("a repeated text or list is too long")
        return super().call_binop(context, operator, left, right)


class _GenerationTag(Extension):
    """`{% generation %}` marks the assistant's tokens for training; serving renders what is inside."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _GenerationTag])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(layout: str) -> str:
    return datetime.datetime.now().astimezone().strftime(layout)
