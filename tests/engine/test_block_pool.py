"""Block tables, reference counts, the prefix cache, and the checks that watch over them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from engine.block_pool import BlockPool, CachedPrefix, IntegrityError
from engine.request import Request

MakeRequest = Callable[..., Request]


def run_through(pool: BlockPool, request: Request) -> CachedPrefix:
    """Admit and compute all known tokens, as the scheduler does; the request keeps its blocks."""
    prefix = pool.find_prefix(request)
    assert pool.fits(request.num_tokens, prefix)
    pool.admit(request, prefix)
    request.num_computed_tokens = request.num_tokens
    pool.publish(request, request.num_tokens)
    return prefix


def check(pool: BlockPool, *live: Request) -> None:
    pool.check_integrity(live)
    pool.check_cache_integrity()


@pytest.mark.parametrize(("num_blocks", "block_size"), [(0, 4), (4, 0), (-1, 4)])
def test_sizes_must_be_positive(num_blocks: int, block_size: int) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        BlockPool(num_blocks, block_size)


def test_admission_gives_distinct_blocks_and_free_returns_all(make_request: MakeRequest) -> None:
    pool = BlockPool(8, 4)
    first, second = make_request(9), make_request(4)
    run_through(pool, first)
    run_through(pool, second)
    assert len(first.block_table) == 3
    assert len(second.block_table) == 1
    assert not set(first.block_table) & set(second.block_table)
    assert (pool.num_used, pool.num_free) == (4, 4)
    check(pool, first, second)
    pool.free(first)
    pool.free(second)
    assert first.block_table == []
    assert pool.num_free == 8
    check(pool)


def test_freeing_twice_changes_nothing(make_request: MakeRequest) -> None:
    pool = BlockPool(4, 4)
    request = make_request(8)
    run_through(pool, request)
    pool.free(request)
    pool.free(request)
    assert pool.num_free == 4
    check(pool)


def test_grow_takes_a_block_only_at_the_boundary_and_fails_whole(make_request: MakeRequest) -> None:
    pool = BlockPool(3, 4)
    request = make_request(4)
    run_through(pool, request)
    assert pool.grow(request, 4)
    assert len(request.block_table) == 1
    assert pool.grow(request, 5)
    assert len(request.block_table) == 2
    assert not pool.grow(request, 17)
    assert len(request.block_table) == 2
    check(pool, request)


def test_hit_shares_full_blocks_only(make_request: MakeRequest) -> None:
    pool = BlockPool(8, 4)
    prompt = list(range(10))
    first = make_request(prompt)
    run_through(pool, first)
    second = make_request([*prompt, 50, 51])
    prefix = run_through(pool, second)
    assert prefix.num_tokens == 8
    assert second.block_table[:2] == first.block_table[:2]
    assert second.block_table[2] != first.block_table[2]
    check(pool, first, second)


@pytest.mark.parametrize(("length", "hit"), [(8, 4), (9, 8), (4, 0), (5, 4), (3, 0), (1, 0)])
def test_a_full_hit_leaves_a_token_to_compute(make_request: MakeRequest, length: int, hit: int) -> None:
    pool = BlockPool(8, 4)
    run_through(pool, make_request(list(range(length))))
    assert pool.find_prefix(make_request(list(range(length)))).num_tokens == hit


def test_blocks_are_found_only_after_their_tokens_were_computed(make_request: MakeRequest) -> None:
    pool = BlockPool(8, 4)
    prompt = list(range(13))
    first = make_request(prompt)
    pool.admit(first, pool.find_prefix(first))
    assert pool.find_prefix(make_request(prompt)).num_tokens == 0
    pool.publish(first, 3)
    assert pool.find_prefix(make_request(prompt)).num_tokens == 0
    pool.publish(first, 7)
    assert pool.find_prefix(make_request(prompt)).num_tokens == 4
    pool.publish(first, 13)
    assert pool.find_prefix(make_request(prompt)).num_tokens == 12


def test_generated_tokens_are_cached_too(make_request: MakeRequest) -> None:
    pool = BlockPool(8, 4)
    first = make_request([1, 2, 3, 4, 5, 6])
    run_through(pool, first)
    first.token_ids += [7, 8]
    pool.publish(first, 8)
    pool.free(first)
    assert pool.find_prefix(make_request([1, 2, 3, 4, 5, 6, 7, 8, 9])).num_tokens == 8


def test_the_same_tokens_after_other_tokens_are_no_hit(make_request: MakeRequest) -> None:
    pool = BlockPool(8, 2)
    run_through(pool, make_request([1, 2, 3, 4, 5]))
    assert pool.find_prefix(make_request([9, 9, 3, 4, 5])).num_tokens == 0
    assert pool.find_prefix(make_request([3, 4, 5])).num_tokens == 0


def test_salts_separate_tenants(make_request: MakeRequest) -> None:
    pool = BlockPool(8, 4)
    prompt = list(range(9))
    run_through(pool, make_request(prompt, cache_salt="a"))
    assert pool.find_prefix(make_request(prompt, cache_salt="b")).num_tokens == 0
    assert pool.find_prefix(make_request(prompt)).num_tokens == 0
    run_through(pool, make_request(prompt, cache_salt="b"))
    # Both are kept side by side.
    assert pool.find_prefix(make_request(prompt, cache_salt="a")).num_tokens == 8
    assert pool.find_prefix(make_request(prompt, cache_salt="b")).num_tokens == 8


def test_a_freed_block_stays_findable_until_it_is_reused(make_request: MakeRequest) -> None:
    pool = BlockPool(4, 4)
    first = make_request(list(range(9)))
    run_through(pool, first)
    pool.free(first)
    again = make_request(list(range(9)))
    prefix = pool.find_prefix(again)
    assert (prefix.num_tokens, prefix.num_idle) == (8, 2)
    other = make_request(16)
    assert pool.grow(other, 16)
    assert pool.find_prefix(again).num_tokens == 0
    check(pool, other)


def test_eviction_takes_blanks_then_the_oldest_and_tails_before_heads(make_request: MakeRequest) -> None:
    pool = BlockPool(6, 2)
    old, new = make_request([1, 2, 3, 4, 5]), make_request([6, 7, 8, 9, 10])
    for request in (old, new):
        run_through(pool, request)
        pool.free(request)
    taker = make_request(1)

    def hits() -> tuple[int, int]:
        return (
            pool.find_prefix(make_request([1, 2, 3, 4, 5])).num_tokens,
            pool.find_prefix(make_request([6, 7, 8, 9, 10])).num_tokens,
        )

    seen = []
    for num_tokens in range(2, 13, 2):
        assert pool.grow(taker, num_tokens)
        seen.append(hits())
        check(pool, taker)
    assert seen == [(4, 4), (4, 4), (2, 4), (0, 4), (0, 2), (0, 0)]


def test_a_hit_renews_a_prefix(make_request: MakeRequest) -> None:
    pool = BlockPool(4, 2)
    for prompt in ([1, 2, 3], [4, 5, 6], [1, 2, 3]):
        request = make_request(prompt)
        run_through(pool, request)
        pool.free(request)
    taker = make_request(1)
    assert pool.grow(taker, 6)
    assert pool.find_prefix(make_request([1, 2, 3])).num_tokens == 2
    assert pool.find_prefix(make_request([4, 5, 6])).num_tokens == 0


def test_idle_hits_count_as_blocks_taken(make_request: MakeRequest) -> None:
    pool = BlockPool(4, 4)
    first = make_request(list(range(13)))
    run_through(pool, first)
    pool.free(first)
    longer = make_request(list(range(16)))
    prefix = pool.find_prefix(longer)
    assert prefix.num_idle == 3
    assert pool.fits(16, prefix)
    assert not pool.fits(16, prefix, spare_blocks=1)
    assert not pool.fits(17, prefix)


def test_two_requests_computing_the_same_prefix_share_it_afterwards(make_request: MakeRequest) -> None:
    pool = BlockPool(12, 4)
    prompt = list(range(9))
    first, second = make_request(prompt), make_request(prompt)
    for request in (first, second):
        pool.admit(request, pool.find_prefix(request))
    for request in (first, second):
        pool.publish(request, 9)
    check(pool, first, second)
    assert not set(first.block_table) & set(second.block_table)
    third = make_request(prompt)
    run_through(pool, third)
    assert third.block_table[:2] == first.block_table[:2]
    # What the second one generates goes on from the shared chain and can be found.
    second.token_ids += [77, 78, 79]
    pool.publish(second, 12)
    assert pool.find_prefix(make_request([*prompt, 77, 78, 79, 80])).num_tokens == 12
    check(pool, first, second, third)


def test_a_chain_whose_head_was_evicted_and_computed_again_is_found_whole(make_request: MakeRequest) -> None:
    pool = BlockPool(5, 2)
    tail_owner = make_request([1, 2, 3, 4, 5])
    first = make_request([1, 2, 9])
    # Both compute block [1, 2], the first publishes it; of the second only [3, 4] is published.
    pool.admit(tail_owner, pool.find_prefix(tail_owner))
    run_through(pool, first)
    pool.publish(tail_owner, 5)
    pool.free(first)
    assert pool.grow(make_request(1), 4)
    assert pool.find_prefix(make_request([1, 2, 3, 4, 5])).num_tokens == 0
    pool.free(tail_owner)
    again = make_request([1, 2, 8])
    run_through(pool, again)
    assert pool.find_prefix(make_request([1, 2, 3, 4, 5])).num_tokens == 4


def test_equal_prefixes_are_held_in_memory_once(make_request: MakeRequest) -> None:
    pool = BlockPool(12, 4)
    prompt = list(range(9))
    first, hitting, twin = make_request(prompt), make_request(prompt), make_request(prompt)
    pool.admit(twin, pool.find_prefix(twin))
    run_through(pool, first)
    run_through(pool, hitting)
    pool.publish(twin, 9)
    for request in (hitting, twin):
        for mine, shared in zip(pool._chains[request].contents, pool._chains[first].contents, strict=True):
            assert mine is shared


def test_a_hash_collision_is_a_miss_never_a_wrong_hit(make_request: MakeRequest) -> None:
    pool = BlockPool(12, 2, hasher=lambda parent, tokens, salt: 7)
    first = make_request([1, 2, 3, 4, 5])
    run_through(pool, first)
    assert pool.find_prefix(make_request([6, 7, 8])).num_tokens == 0
    # Equal tokens in a colliding block do not make up for another parent or tenant.
    assert pool.find_prefix(make_request([1, 2, 1, 2, 5])).num_tokens == 2
    assert pool.find_prefix(make_request([1, 2, 3], cache_salt="b")).num_tokens == 0
    second = make_request([6, 7, 8, 9, 5])
    run_through(pool, second)
    check(pool, first, second)
    assert pool.find_prefix(make_request([1, 2, 9])).num_tokens == 2


def test_a_colliding_parent_does_not_pass_for_the_right_one(make_request: MakeRequest) -> None:
    # First blocks collide, second blocks differ only by what stands before them.
    pool = BlockPool(12, 2, hasher=lambda parent, tokens, salt: 1 if parent == 0 else hash((parent, tokens)))
    run_through(pool, make_request([1, 2, 5, 6, 9]))
    assert pool.find_prefix(make_request([3, 4, 5, 6, 9])).num_tokens == 0
    other = make_request([3, 4, 5, 6, 9])
    run_through(pool, other)
    assert pool.find_prefix(make_request([1, 2, 5, 6, 9])).num_tokens == 4


def test_a_collision_does_not_lend_its_parent_to_what_follows(make_request: MakeRequest) -> None:
    pool = BlockPool(12, 2, hasher=lambda parent, tokens, salt: 1 if parent == 0 else hash((parent, tokens)))
    run_through(pool, make_request([1, 2, 9]))
    # [3, 4] cannot be published, [5, 6] after it can; it must not be found after [1, 2].
    run_through(pool, make_request([3, 4, 5, 6, 9]))
    assert pool.find_prefix(make_request([1, 2, 5, 6, 9])).num_tokens == 2


def test_statistics_count_tokens_of_first_admissions(make_request: MakeRequest) -> None:
    pool = BlockPool(16, 4)
    run_through(pool, make_request(list(range(9))))
    run_through(pool, make_request(list(range(10))))
    assert (pool.query_tokens, pool.hit_tokens) == (19, 8)
    for _ in range(3):
        pool.find_prefix(make_request(list(range(9))))
    assert (pool.query_tokens, pool.hit_tokens) == (19, 8)
    again = make_request(list(range(9)))
    again.num_preemptions = 1
    run_through(pool, again)
    assert (pool.query_tokens, pool.hit_tokens) == (19, 8)


def test_reset_forgets_and_running_requests_publish_no_more(make_request: MakeRequest) -> None:
    pool = BlockPool(8, 4)
    prompt = list(range(9))
    done, running = make_request(prompt), make_request(9)
    run_through(pool, done)
    run_through(pool, running)
    pool.free(done)
    waiting = make_request(prompt)
    pool.find_prefix(waiting)
    pool.reset_prefix_cache()
    check(pool, running)
    assert pool.find_prefix(waiting).num_tokens == 0
    # The head of the running request is computed anew by another one; its own tail is still of the old time.
    successor = make_request([*running.prompt_token_ids, 5])
    run_through(pool, successor)
    running.token_ids += [1, 2, 3]
    pool.publish(running, 12)
    assert pool.find_prefix(make_request([*running.token_ids, 4])).num_tokens == 8
    pool.free(successor)
    run_through(pool, waiting)
    assert pool.find_prefix(make_request(prompt)).num_tokens == 8
    check(pool, running, waiting)


def test_prefix_caching_can_be_off(make_request: MakeRequest) -> None:
    pool = BlockPool(8, 4, prefix_caching=False)
    first = make_request(list(range(9)))
    run_through(pool, first)
    pool.free(first)
    assert pool.find_prefix(make_request(list(range(9)))) == CachedPrefix()
    assert (pool.query_tokens, pool.hit_tokens) == (0, 0)
    check(pool)


def test_integrity_check_finds_a_leak(make_request: MakeRequest) -> None:
    pool = BlockPool(8, 4)
    request = make_request(8)
    run_through(pool, request)
    with pytest.raises(IntegrityError, match="leak"):
        pool.check_integrity([])


def test_integrity_check_finds_a_wrong_reference_count(make_request: MakeRequest) -> None:
    pool = BlockPool(8, 4)
    first, second = make_request(8), make_request(8)
    run_through(pool, first)
    run_through(pool, second)
    second.block_table[0] = first.block_table[0]
    with pytest.raises(IntegrityError, match="stands in 2 tables, its reference count is 1"):
        pool.check_integrity([first, second])


def test_integrity_check_finds_a_shared_writable_block(make_request: MakeRequest) -> None:
    pool = BlockPool(8, 4)
    prompt = list(range(9))
    first, second = make_request(prompt), make_request(prompt)
    run_through(pool, first)
    run_through(pool, second)
    pool._chains[second].num_read_only = 1
    with pytest.raises(IntegrityError, match="is written by request"):
        pool.check_integrity([first, second])


def test_integrity_check_finds_a_referenced_free_block_and_a_double_free() -> None:
    pool = BlockPool(8, 4)
    pool._references[3] = 1
    with pytest.raises(IntegrityError, match="free block"):
        pool.check_integrity([])
    pool._references[3] = 0
    pool._blank[0] = pool._blank[1]
    with pytest.raises(IntegrityError, match="twice"):
        pool.check_cache_integrity()
