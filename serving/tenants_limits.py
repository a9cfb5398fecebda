"""Rate limits of a tenant in requests, tokens and joules a minute.

Token buckets that hold a minute's worth. A request takes one from the first at once; its tokens and joules are known
only when it has ended, so these buckets may fall below 0, and the next request waits until they are filled again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

MINUTE_S = 60.0
MAX_TENANTS = 10_000


@dataclass(frozen=True, slots=True)
class Rates:
    """A minute's limits; None: none."""

    requests: float | None = None
    tokens: float | None = None
    joules: float | None = None


class Bucket:
    """Fills at `rate` a second up to `rate * 60`."""

    __slots__ = ("_filled_s", "level", "per_minute")

    def __init__(self, per_minute: float, now_s: float) -> None:
        self.per_minute = per_minute
        self.level = per_minute
        self._filled_s = now_s

    def fill(self, now_s: float) -> None:
        gained = (now_s - self._filled_s) * self.per_minute / MINUTE_S
        self.level = min(self.per_minute, self.level + gained)
        self._filled_s = now_s

    def wait_s(self, amount: float, now_s: float) -> float:
        """Seconds until `amount` may be taken; 0.0 for now. More than the bucket holds needs a full one."""
        self.fill(now_s)
        missing = min(amount, self.per_minute) - self.level
        return max(0.0, missing * MINUTE_S / self.per_minute)


@dataclass(slots=True)
class _Buckets:
    rates: Rates
    requests: Bucket | None
    tokens: Bucket | None
    joules: Bucket | None


@dataclass(frozen=True, slots=True)
class Refusal:
    """`what`: requests, tokens or joules."""

    what: str
    per_minute: float
    wait_s: float


class RateLimits:
    """`rates_of`: a tenant's limits, read at each request, so that a changed key holds at once."""

    def __init__(self, rates_of: Callable[[str], Rates], clock: Callable[[], float] = time.monotonic) -> None:
        self._rates_of = rates_of
        self._clock = clock
        self._buckets: dict[str, _Buckets] = {}

    def enter(self, tenant: str) -> Refusal | None:
        """Take a request's place, or say why not and when again."""
        buckets, now = self._of(tenant), self._clock()
        if buckets is None:
            return None
        for what, bucket, amount in (
            ("requests", buckets.requests, 1.0),
            ("tokens", buckets.tokens, 1e-9),
            ("joules", buckets.joules, 1e-9),
        ):
            if bucket is not None and (wait_s := bucket.wait_s(amount, now)) > 0.0:
                return Refusal(what, bucket.per_minute, wait_s)
        if buckets.requests is not None:
            buckets.requests.level -= 1.0
        return None

    def charge(self, tenant: str, tokens: int, joules: float | None) -> None:
        """What a request used, once it is known."""
        buckets, now = self._of(tenant), self._clock()
        if buckets is None:
            return
        for bucket, amount in ((buckets.tokens, float(tokens)), (buckets.joules, joules)):
            if bucket is not None and amount is not None:
                bucket.fill(now)
                bucket.level -= amount

    def _of(self, tenant: str) -> _Buckets | None:
        rates, known, now = self._rates_of(tenant), self._buckets.get(tenant), self._clock()
        if rates == Rates():
            self._buckets.pop(tenant, None)
            return None
        if known is None or known.rates != rates:
            if known is None and len(self._buckets) >= MAX_TENANTS:
                return None
            made = [
                Bucket(limit, now) if limit is not None else None
                for limit in (rates.requests, rates.tokens, rates.joules)
            ]
            known = self._buckets[tenant] = _Buckets(rates, *made)
        return known
