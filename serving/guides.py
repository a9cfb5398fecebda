"""Constraints on the generated text: from the request's fields to the engine's `Guide`, checked before it leaves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from engine.guides import validate_guide
from engine.request import Guide, GuideKind
from serving.openai_errors import BadRequestError
from serving.openai_requests import GenerationBody

MAX_GUIDE_BYTES = 64 * 1024
MAX_SCHEMA_DEPTH = 64


def asks_guide(body: GenerationBody) -> bool:
    """Whether a request sets a constraint; checking one takes milliseconds."""
    formed = body.response_format is not None and body.response_format.type != "text"
    fields = (body.structured_outputs, body.guided_json, body.guided_regex, body.guided_choice)
    return formed or any(field is not None for field in fields)


def guide_of(body: GenerationBody) -> Guide | None:
    """The one constraint a request sets, or `None`. Raises `BadRequestError` for two, and for one that is not sound."""
    found = list(_asked(body))
    if len(found) > 1:
        names = ", ".join(param for param, _ in found)
        raise BadRequestError(f"only one constraint on the text is possible, got {names}", found[1][0])
    if not found:
        return None
    param, guide = found[0]
    _check(guide, param)
    return guide


def _asked(body: GenerationBody) -> Iterator[tuple[str, Guide]]:
    form = body.response_format
    if form is not None and form.type == "json_object":
        yield "response_format", Guide(GuideKind.JSON_OBJECT)
    if form is not None and form.type == "json_schema":
        if form.json_schema is None:
            raise BadRequestError("response_format of type 'json_schema' needs json_schema.schema", "response_format")
        yield "response_format.json_schema.schema", _schema(form.json_schema.schema_, "response_format")
    if body.guided_json is not None:
        yield "guided_json", _schema(body.guided_json, "guided_json")
    if body.guided_regex is not None:
        yield "guided_regex", Guide(GuideKind.REGEX, body.guided_regex)
    if body.guided_choice is not None:
        yield "guided_choice", _choice(body.guided_choice)
    wanted = body.structured_outputs
    if wanted is None:
        return
    if wanted.regex is not None:
        yield "structured_outputs.regex", Guide(GuideKind.REGEX, wanted.regex)
    if wanted.json_ is not None:
        yield "structured_outputs.json", _schema(wanted.json_, "structured_outputs.json")
    if wanted.json_object:
        yield "structured_outputs.json_object", Guide(GuideKind.JSON_OBJECT)
    if wanted.choice is not None:
        yield "structured_outputs.choice", _choice(wanted.choice)


def _choice(texts: list[str]) -> Guide:
    return Guide(GuideKind.REGEX, "|".join(f"({re.escape(text)})" for text in texts))


def _schema(schema: dict[str, Any] | str, param: str) -> Guide:
    if isinstance(schema, str):
        try:
            schema = msgspec.json.decode(schema, type=dict[str, Any])
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise BadRequestError(f"the JSON schema is not a JSON object: {error}", param) from None
    if _deeper_than(schema, MAX_SCHEMA_DEPTH):
        raise BadRequestError(f"the JSON schema nests deeper than {MAX_SCHEMA_DEPTH} levels", param)
    return Guide(GuideKind.JSON_SCHEMA, msgspec.json.encode(schema).decode())


def _deeper_than(value: Any, levels: int) -> bool:
    layer = [value]
    for _ in range(levels):
        layer = [child for node in layer for child in _children(node)]
    return bool(layer)


def _children(node: Any) -> list[Any]:
    if isinstance(node, dict):
        return list(node.values())
    return node if isinstance(node, list) else []


def _check(guide: Guide, param: str) -> None:
    if len(guide.text.encode()) > MAX_GUIDE_BYTES:
        raise BadRequestError(f"the constraint is larger than {MAX_GUIDE_BYTES} bytes", param)
    try:
        validate_guide(guide)
    except ValueError as problem:
        raise BadRequestError(f"the constraint cannot be used: {str(problem)[:500]}", param) from None
