"""Generation directives: levels as data, who may get which, and how one enters a conversation.

A directive is a line of the operator's in the system message. Its level is reported with the answer, its text never.
Nothing a prompt says selects or changes it: selection sees the declared fields of a request, insertion only appends.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

AUTO = "auto"
OFF = "off"
SYSTEM_ROLES = frozenset({"system", "developer"})
MAX_TEXT = 2000

Message = Mapping[str, Any]


class DirectiveRefusedError(ValueError):
    """The request asked for a directive it may not have; answer 400 with the message."""


class Reason(enum.StrEnum):
    """Why a request got its level."""

    MIX = "mix"
    PINNED = "pinned"
    OPTED_OUT = "opted_out"
    TENANT = "tenant"
    STRUCTURED_OUTPUT = "structured_output"
    TOOLS = "tools"
    BUDGET = "budget"
    NO_INTENSITY = "no_intensity"
    NO_PLAN = "no_plan"
    OBSERVE_ONLY = "observe_only"


@dataclass(frozen=True, slots=True)
class DirectiveLevel:
    """`text` enters the system message; `max_tokens` caps the answer. The first level of a set has neither."""

    id: str
    text: str | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        if not self.id or not self.id.isascii() or self.id.lower() in (AUTO, OFF) or len(self.id) > 32:
            raise ValueError(f"{self.id!r} is not a level id; use up to 32 ASCII characters other than auto and off")
        if self.text is not None and not 0 < len(self.text.strip()) <= MAX_TEXT:
            raise ValueError(f"the text of level {self.id} must have 1 to {MAX_TEXT} characters")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"max_tokens of level {self.id} must be at least 1")


@dataclass(frozen=True, slots=True)
class LevelSet:
    """Levels from the longest answers to the briefest. The first is the undirected one."""

    levels: tuple[DirectiveLevel, ...]

    def __post_init__(self) -> None:
        if not self.levels or self.levels[0].text is not None or self.levels[0].max_tokens is not None:
            raise ValueError("the first directive level must be plain: no text and no max_tokens")
        if len({level.id.lower() for level in self.levels}) != len(self.levels):
            raise ValueError("directive levels must have distinct ids")
        plain = [level.id for level in self.levels[1:] if level.text is None and level.max_tokens is None]
        if plain:
            raise ValueError(f"level {plain[0]} changes nothing; give it a text or max_tokens")

    def __len__(self) -> int:
        return len(self.levels)

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(level.id for level in self.levels)

    def index(self, level_id: str) -> int:
        """Position of a level; raises `DirectiveRefusedError` for one there is not."""
        for number, level in enumerate(self.levels):
            if level.id.lower() == level_id.lower():
                return number
        raise DirectiveRefusedError(
            f"directive {level_id!r} is not known; use {AUTO}, {OFF} or one of {', '.join(self.ids)}"
        )


# The levels of SPROUT (Li et al., EMNLP 2024), from its published prompts.
SPROUT_LEVELS = LevelSet(
    (
        DirectiveLevel("L0"),
        DirectiveLevel("L1", "Always answer briefly"),
        DirectiveLevel("L2", "Always answer very briefly"),
    )
)


@dataclass(frozen=True, slots=True)
class TenantRules:
    """What a tenant allows. `levels`: ids it accepts besides the first (None: all). `pinning`: whether its requests
    may name a level themselves; opting out is always allowed."""

    enabled: bool = True
    levels: frozenset[str] | None = None
    structured_output: bool = False
    tools: bool = False
    pinning: bool = True


@dataclass(frozen=True, slots=True)
class RequestTraits:
    """The declared fields of a request that bear on directives. `directive`: the body field or header."""

    directive: str = AUTO
    structured_output: bool = False
    tools: bool = False


@dataclass(frozen=True, slots=True)
class Permission:
    """`fixed`: index of a level already decided, with its `reason`; None leaves the choice among `allowed`."""

    allowed: tuple[bool, ...]
    fixed: int | None = None
    reason: Reason = Reason.MIX


def asked_directive(body_field: str | None, header: str | None) -> str:
    """What a request asks for, from its body field or header. Raises `DirectiveRefusedError` when they disagree."""
    if body_field is not None and header is not None and body_field.lower() != header.lower():
        raise DirectiveRefusedError(f"the directive field says {body_field!r} and the header {header!r}; send one")
    return (body_field if body_field is not None else header) or AUTO


def permit(levels: LevelSet, rules: TenantRules, traits: RequestTraits) -> Permission:
    """Which levels a request may get. Raises `DirectiveRefusedError` for a pin that its tenant or form forbids."""
    allowed = [True] + [rules.levels is None or level.id in rules.levels for level in levels.levels[1:]]
    blocked = _blocked(rules, traits)
    if blocked is not None:
        allowed = [True] + [False] * (len(levels) - 1)
    asked = traits.directive.lower()
    if asked == OFF:
        return Permission(tuple(allowed), 0, Reason.OPTED_OUT)
    if asked != AUTO:
        pinned = levels.index(traits.directive)
        if pinned and not rules.pinning:
            raise DirectiveRefusedError("this tenant's requests may not name a directive level; leave it at auto")
        if not allowed[pinned]:
            why = f" ({blocked.value.replace('_', ' ')})" if blocked else ""
            raise DirectiveRefusedError(f"directive {levels.ids[pinned]} is not allowed for this request{why}")
        return Permission(tuple(allowed), pinned, Reason.PINNED)
    if blocked is not None:
        return Permission(tuple(allowed), 0, blocked)
    return Permission(tuple(allowed))


def _blocked(rules: TenantRules, traits: RequestTraits) -> Reason | None:
    if not rules.enabled:
        return Reason.TENANT
    if traits.structured_output and not rules.structured_output:
        return Reason.STRUCTURED_OUTPUT
    if traits.tools and not rules.tools:
        return Reason.TOOLS
    return None


def allowed_probabilities(probabilities: Sequence[float], allowed: Sequence[bool]) -> tuple[float, ...]:
    """Move the share of a level that is not allowed to the next longer one that is: a rule never makes an answer
    briefer than the optimizer wanted."""
    if not allowed[0]:
        raise ValueError("the plain level is always allowed")
    moved = [0.0] * len(probabilities)
    for number, share in enumerate(probabilities):
        target = number
        while not allowed[target]:
            target -= 1
        moved[target] += share
    return tuple(moved)


def insert_directive(messages: Sequence[Message], level: DirectiveLevel) -> list[dict[str, Any]]:
    """A copy of the conversation with the level's text in force; the caller's messages are not changed.

    An existing leading system (or developer) message keeps every word and gets the text as its last paragraph, because
    many chat templates know one system message only and only at the start. Otherwise a system message is put first.
    Later turns are left alone: the directive holds for the whole conversation and appears once.
    """
    copied = [dict(message) for message in messages]
    if level.text is None:
        return copied
    if not copied or copied[0].get("role") not in SYSTEM_ROLES:
        return [{"role": "system", "content": level.text}, *copied]
    content = copied[0].get("content")
    if isinstance(content, str):
        copied[0]["content"] = f"{content}\n\n{level.text}" if content else level.text
    elif isinstance(content, Sequence):
        copied[0]["content"] = [*content, {"type": "text", "text": level.text}]
    elif content is None:
        copied[0]["content"] = level.text
    else:
        raise ValueError(f"the system message's content must be text or a list of parts, got {type(content).__name__}")
    return copied


def capped_tokens(asked: int | None, level: DirectiveLevel) -> int | None:
    """`max_tokens` under the level's cap: the smaller of the two, None when neither says."""
    limits = [limit for limit in (asked, level.max_tokens) if limit is not None]
    return min(limits) if limits else None
