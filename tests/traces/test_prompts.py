"""Prompts: exact counts, shared beginnings, and nothing shared where nothing should be."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from traces.prompts import WORDS, PromptMaker
from traces.request import TraceRequest

POOL = tuple(range(1000, 1300))


def shared(one: list[int], other: list[int]) -> int:
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other)))


@given(st.integers(0, 700), st.lists(st.integers(0, 5), max_size=6), st.none() | st.integers(1, 200))
def test_the_count_is_exact_whatever_the_ids_cover(count: int, ids: list[int], block: int | None) -> None:
    request = TraceRequest(0.0, max(1, count), 1, prefix_ids=tuple(ids), block_tokens=block)
    made = PromptMaker(1).pieces(request, 0, count, POOL)
    assert len(made) == count
    assert set(made) <= set(POOL)


def test_equal_leading_ids_share_exactly_their_blocks() -> None:
    maker = PromptMaker(3)
    one = maker.pieces(TraceRequest(0.0, 100, 1, prefix_ids=(7, 8, 9), block_tokens=32), 0, 100, POOL)
    other = maker.pieces(TraceRequest(5.0, 90, 1, prefix_ids=(7, 8, 10), block_tokens=32), 1, 90, POOL)
    assert 64 <= shared(one, other) <= 66
    assert (
        PromptMaker(3, "none").pieces(TraceRequest(0.0, 100, 1, prefix_ids=(7,), block_tokens=32), 0, 100, POOL) != one
    )


def test_a_short_last_block_is_the_beginning_of_the_whole_one() -> None:
    maker = PromptMaker(3)
    whole = maker.pieces(TraceRequest(0.0, 64, 1, prefix_ids=(1, 2), block_tokens=32), 0, 64, POOL)
    part = maker.pieces(TraceRequest(0.0, 40, 1, prefix_ids=(1, 2), block_tokens=32), 1, 40, POOL)
    assert whole[:40] == part


def test_turns_of_a_session_share_all_of_the_shorter_prompt_only_if_asked() -> None:
    turns = [TraceRequest(0.0, 50, 1, session_id="s"), TraceRequest(9.0, 80, 1, session_id="s")]
    together = [PromptMaker(1, "sessions").pieces(turn, i, turn.input_tokens, POOL) for i, turn in enumerate(turns)]
    apart = [PromptMaker(1, "ids").pieces(turn, i, turn.input_tokens, POOL) for i, turn in enumerate(turns)]
    assert shared(*together) == 50
    assert shared(*apart) <= 2


def test_ids_without_a_block_size_share_nothing() -> None:
    made = [PromptMaker(1).pieces(TraceRequest(0.0, 50, 1, prefix_ids=(1, 2)), i, 50, POOL) for i in range(2)]
    assert shared(*made) <= 2


def test_content_depends_on_the_seed_alone() -> None:
    request = TraceRequest(0.0, 50, 1)
    assert PromptMaker(1).pieces(request, 4, 50, POOL) == PromptMaker(1).pieces(request, 4, 50, POOL)
    assert PromptMaker(1).pieces(request, 4, 50, POOL) != PromptMaker(2).pieces(request, 4, 50, POOL)


def test_a_small_pool_is_refused() -> None:
    with pytest.raises(ValueError, match="too small"):
        PromptMaker(1).pieces(TraceRequest(0.0, 5, 1), 0, 5, POOL[:10])


def test_words_are_distinct_and_plain() -> None:
    assert len(set(WORDS)) == len(WORDS) > 200
    assert all(word.isascii() and word.islower() for word in WORDS)
