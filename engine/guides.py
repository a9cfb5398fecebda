"""Guides as llguidance's grammars: what the front end checks and the engine compiles."""

from __future__ import annotations

import json

from llguidance import LLMatcher

from engine.request import Guide, GuideKind

# One space after separators and none elsewhere: a small model cannot wander off into white space.
_JSON_STYLE = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}


def grammar_of(guide: Guide) -> str:
    """Raises `ValueError` for a JSON schema that is no JSON object."""
    if guide.kind is GuideKind.REGEX:
        return str(LLMatcher.grammar_from_regex(guide.text))
    schema = '{"type": "object"}' if guide.kind is GuideKind.JSON_OBJECT else guide.text
    try:
        parsed = json.loads(schema)
    except ValueError as error:
        raise ValueError(f"the JSON schema is not JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise ValueError(f"the JSON schema must be an object, got {type(parsed).__name__}")
    return str(LLMatcher.grammar_from_json_schema(parsed, _JSON_STYLE))


def validate_guide(guide: Guide) -> None:
    """Raise `ValueError` with llguidance's reason when the schema or expression cannot be compiled."""
    failed, messages = LLMatcher.validate_grammar_with_warnings(grammar_of(guide))
    if failed:
        raise ValueError(" ".join(messages))
