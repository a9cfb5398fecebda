"""Directives: where they go, who may have them, and that prompts have no say."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carbon.directives import (
    SPROUT_LEVELS,
    DirectiveLevel,
    DirectiveRefusedError,
    LevelSet,
    Reason,
    RequestTraits,
    TenantRules,
    allowed_probabilities,
    asked_directive,
    capped_tokens,
    insert_directive,
    permit,
)

BRIEF = SPROUT_LEVELS.levels[1]
contents = st.one_of(
    st.text(max_size=60),
    st.none(),
    st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": st.text(max_size=20)}), max_size=3),
)
messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "developer", "user", "assistant"]), "content": contents}),
    max_size=6,
)


@given(messages)
def test_every_word_of_the_client_stays_and_the_text_enters_once(conversation):
    before = copy.deepcopy(conversation)
    directed = insert_directive(conversation, BRIEF)
    assert conversation == before
    assert directed[0]["role"] in ("system", "developer")
    assert len(directed) - len(conversation) in (0, 1)
    assert directed[-len(conversation) + 1 :] == conversation[1:] or len(conversation) < 2
    flat = str(directed[0]["content"])
    assert BRIEF.text in flat
    if conversation and conversation[0]["role"] in ("system", "developer"):
        old, new = conversation[0]["content"], directed[0]["content"]
        assert len(directed) == len(conversation)
        if isinstance(old, str):
            assert new.startswith(old)
        elif isinstance(old, list):
            assert new[: len(old)] == old
    assert insert_directive(conversation, SPROUT_LEVELS.levels[0]) == conversation


def test_a_system_message_later_in_the_chat_is_left_alone():
    chat = [{"role": "user", "content": "hi"}, {"role": "system", "content": "be kind"}]
    assert insert_directive(chat, BRIEF) == [{"role": "system", "content": "Always answer briefly"}, *chat]


def test_odd_content_is_refused():
    with pytest.raises(ValueError, match="text or a list"):
        insert_directive([{"role": "system", "content": 5}], BRIEF)


@pytest.mark.parametrize(
    ("rules", "traits", "fixed", "reason"),
    [
        (TenantRules(), RequestTraits(), None, Reason.MIX),
        (TenantRules(), RequestTraits("off"), 0, Reason.OPTED_OUT),
        (TenantRules(pinning=False), RequestTraits("off"), 0, Reason.OPTED_OUT),
        (TenantRules(), RequestTraits("l2"), 2, Reason.PINNED),
        (TenantRules(pinning=False), RequestTraits("L0"), 0, Reason.PINNED),
        (TenantRules(enabled=False), RequestTraits(), 0, Reason.TENANT),
        (TenantRules(), RequestTraits(structured_output=True), 0, Reason.STRUCTURED_OUTPUT),
        (TenantRules(), RequestTraits(tools=True), 0, Reason.TOOLS),
        (TenantRules(structured_output=True, tools=True), RequestTraits("auto", True, True), None, Reason.MIX),
    ],
)
def test_permissions(rules, traits, fixed, reason):
    permission = permit(SPROUT_LEVELS, rules, traits)
    assert (permission.fixed, permission.reason) == (fixed, reason)
    assert permission.allowed[0]


@pytest.mark.parametrize(
    ("rules", "traits", "words"),
    [
        (TenantRules(), RequestTraits("L9"), "not known"),
        (TenantRules(), RequestTraits("Always answer briefly"), "not known"),
        (TenantRules(pinning=False), RequestTraits("L1"), "may not name"),
        (TenantRules(levels=frozenset({"L1"})), RequestTraits("L2"), "not allowed"),
        (TenantRules(), RequestTraits("L1", structured_output=True), "structured output"),
        (TenantRules(), RequestTraits("L1", tools=True), "tools"),
        (TenantRules(enabled=False), RequestTraits("L1"), "tenant"),
    ],
)
def test_refused_pins(rules, traits, words):
    with pytest.raises(DirectiveRefusedError, match=words):
        permit(SPROUT_LEVELS, rules, traits)


def test_field_and_header():
    assert asked_directive(None, None) == "auto"
    assert asked_directive("L1", None) == asked_directive(None, "L1") == asked_directive("L1", "l1") == "L1"
    with pytest.raises(DirectiveRefusedError, match="send one"):
        asked_directive("L1", "off")


@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=5), st.data())
def test_rules_never_make_an_answer_briefer(raw, data):
    shares = [value / sum(raw) for value in raw]
    allowed = [True, *data.draw(st.lists(st.booleans(), min_size=len(raw) - 1, max_size=len(raw) - 1))]
    moved = allowed_probabilities(shares, allowed)
    assert sum(moved) == pytest.approx(1.0)
    assert all(share == 0.0 for share, permitted in zip(moved, allowed) if not permitted)
    for cut in range(len(shares)):
        assert sum(moved[cut:]) <= sum(shares[cut:]) + 1e-9


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LevelSet(()), "first"),
        (lambda: LevelSet((DirectiveLevel("L0", "brief"),)), "first"),
        (lambda: LevelSet((DirectiveLevel("L0"), DirectiveLevel("l0", "x"))), "distinct"),
        (lambda: LevelSet((DirectiveLevel("L0"), DirectiveLevel("L1"))), "changes nothing"),
        (lambda: DirectiveLevel("auto"), "level id"),
        (lambda: DirectiveLevel("L1", " "), "characters"),
        (lambda: DirectiveLevel("L1", "x", 0), "max_tokens"),
    ],
)
def test_level_sets_are_checked(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_a_cap_only_lowers_what_was_asked():
    capped = DirectiveLevel("L3", max_tokens=100)
    assert [capped_tokens(asked, capped) for asked in (None, 50, 500)] == [100, 50, 100]
    assert capped_tokens(None, BRIEF) is None
