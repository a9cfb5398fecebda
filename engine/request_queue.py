"""Requests that wait for admission, in order of (priority, arrival)."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from engine.request import Request

_Entry = tuple[int, float, int, Request]


def sort_key(request: Request) -> tuple[int, float]:
    """Who goes first: the lower priority number, then the earlier arrival."""
    return request.priority, request.arrival_s


class RequestQueue:
    """A priority queue with removal from the middle; every operation is O(log n) amortised.

    Removed requests stay in the heaps until they surface or outnumber the live ones. `num_tokens` is the sum of
    the known tokens of all that wait: the prefill backlog.
    """

    def __init__(self) -> None:
        self.num_tokens = 0
        self._tickets: dict[Request, int] = {}
        self._next_ticket = 0
        self._by_priority: list[_Entry] = []
        self._by_arrival: list[tuple[float, int, Request]] = []

    def __len__(self) -> int:
        return len(self._tickets)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._tickets)

    def __contains__(self, request: Request) -> bool:
        return request in self._tickets

    def push(self, request: Request) -> None:
        assert request not in self._tickets, "queued twice"
        ticket = self._next_ticket
        self._next_ticket += 1
        self._tickets[request] = ticket
        self.num_tokens += request.num_tokens
        heapq.heappush(self._by_priority, (*sort_key(request), ticket, request))
        heapq.heappush(self._by_arrival, (request.arrival_s, ticket, request))

    def head(self) -> Request:
        """The next request to admit; the queue must not be empty."""
        while True:
            *_, ticket, request = self._by_priority[0]
            if self._tickets.get(request) == ticket:
                return request
            heapq.heappop(self._by_priority)

    def oldest_arrival_s(self) -> float | None:
        """Arrival of the request that waits longest, whatever its priority; `None` when none waits."""
        while self._by_arrival:
            arrival_s, ticket, request = self._by_arrival[0]
            if self._tickets.get(request) == ticket:
                return arrival_s
            heapq.heappop(self._by_arrival)
        return None

    def remove(self, request: Request) -> None:
        del self._tickets[request]
        self.num_tokens -= request.num_tokens
        if len(self._by_priority) + len(self._by_arrival) > 4 * len(self._tickets) + 64:
            self._compact()

    def _compact(self) -> None:
        live = self._tickets
        self._by_priority = [entry for entry in self._by_priority if live.get(entry[-1]) == entry[-2]]
        self._by_arrival = [entry for entry in self._by_arrival if live.get(entry[-1]) == entry[-2]]
        heapq.heapify(self._by_priority)
        heapq.heapify(self._by_arrival)
