"""Block contents: what makes two equal."""

from __future__ import annotations

from engine.prefix_hash import BlockContent, hash_block


def chain(*blocks: tuple[int, ...], salt: str = "", hasher=hash_block) -> BlockContent:
    content = None
    for token_ids in blocks:
        content = BlockContent(content, token_ids, salt, hasher)
    assert content is not None
    return content


def test_equal_chains_have_equal_keys_and_match() -> None:
    one, other = chain((1, 2), (3, 4)), chain((1, 2), (3, 4))
    assert one.key == other.key
    assert one.matches(other)


def test_matching_chains_are_joined_so_that_the_next_comparison_is_short() -> None:
    one, other = chain((1, 2), (3, 4), (5, 6)), chain((1, 2), (3, 4), (5, 6))
    assert one.parent is not other.parent
    assert one.matches(other)
    assert other.parent is one.parent


def test_the_whole_chain_and_the_salt_are_compared_whatever_the_keys_say() -> None:
    def collide(parent_key: int, token_ids: tuple[int, ...], salt: str) -> int:
        return 5

    base = chain((1, 2), (3, 4), hasher=collide)
    for other in (
        chain((1, 2), (3, 5), hasher=collide),
        chain((1, 9), (3, 4), hasher=collide),
        chain((3, 4), hasher=collide),
        chain((0, 0), (1, 2), (3, 4), hasher=collide),
        chain((1, 2), (3, 4), salt="tenant", hasher=collide),
    ):
        assert base.key == other.key
        assert not base.matches(other)
        assert not other.matches(base)


def test_keys_depend_on_parent_tokens_and_salt() -> None:
    keys = {
        chain((1, 2)).key,
        chain((2, 1)).key,
        chain((0,), (1, 2)).key,
        chain((1, 2), salt="tenant").key,
        chain((1, 2), (1, 2)).key,
    }
    assert len(keys) == 5
