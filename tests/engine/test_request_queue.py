"""The waiting line: order, removal, and memory that follows what waits."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from engine.request import Request, SamplingParams
from engine.request_queue import RequestQueue, sort_key


def drain(queue: RequestQueue) -> list[Request]:
    order = []
    while queue:
        order.append(queue.head())
        queue.remove(order[-1])
    return order


def test_order_is_priority_then_arrival_then_insertion(make_request: Callable[..., Request]) -> None:
    late_urgent = make_request(priority=-1, arrival_s=9.0)
    early = make_request(arrival_s=1.0)
    tie = make_request(arrival_s=1.0)
    later = make_request(arrival_s=2.0)
    queue = RequestQueue()
    for request in (later, early, late_urgent, tie):
        queue.push(request)
    assert queue.oldest_arrival_s() == 1.0
    assert drain(queue) == [late_urgent, early, tie, later]
    assert queue.oldest_arrival_s() is None


def test_a_removed_request_may_come_back(make_request: Callable[..., Request]) -> None:
    queue = RequestQueue()
    first, second = make_request(5, arrival_s=1.0), make_request(3, arrival_s=2.0)
    queue.push(first)
    queue.push(second)
    queue.remove(first)
    first.token_ids.append(1)
    queue.push(first)
    assert queue.num_tokens == 9
    assert drain(queue) == [first, second]
    assert queue.num_tokens == 0


@given(
    st.lists(st.tuples(st.integers(-2, 2), st.integers(0, 9)), max_size=30),
    st.lists(st.integers(0, 29), max_size=60),
)
def test_head_and_oldest_agree_with_a_sorted_list(keys: list[tuple[int, int]], removals: list[int]) -> None:
    queue = RequestQueue()
    live = []
    for number, (priority, arrival) in enumerate(keys):
        request = Request(f"r{number}", (1,), SamplingParams(), float(arrival), priority)
        queue.push(request)
        live.append(request)
    for index in removals:
        if index < len(live):
            queue.remove(live.pop(index))
        assert len(queue) == len(live)
        assert queue.oldest_arrival_s() == min((request.arrival_s for request in live), default=None)
    assert drain(queue) == sorted(live, key=sort_key)


def test_memory_follows_what_waits(make_request: Callable[..., Request]) -> None:
    queue = RequestQueue()
    for _ in range(5):
        queue.push(make_request(priority=-1))
    for _ in range(2_000):
        request = make_request(1)
        queue.push(request)
        queue.remove(request)
    assert len(queue._by_priority) + len(queue._by_arrival) < 200
