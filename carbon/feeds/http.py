"""HTTP for feeds: https to named hosts only, no redirects, bounded in size and time, patient with errors.

Messages never hold query parameters or headers, which carry keys.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from carbon.feeds.feed import FeedError

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
RETRIED = frozenset({408, 425, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """`total_s`: of one attempt, body included. A `Retry-After` up to `patience_s` is waited out on the spot; a longer
    one is handed to the caller."""

    total_s: float = 10.0
    max_bytes: int = 8 * 1024 * 1024
    attempts: int = 3
    backoff_s: float = 0.5
    max_backoff_s: float = 8.0
    patience_s: float = 5.0


class FeedHttp:
    """GET against one base address.

    `allowed_hosts`: where it may go; the base address must be among them. Plain http is accepted for loopback only.
    `transport` replaces the network (tests). Raises `ValueError` for an address that is not allowed.
    """

    def __init__(
        self,
        base_url: str,
        *,
        allowed_hosts: frozenset[str],
        limits: HttpLimits = HttpLimits(),
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        url = httpx.URL(base_url)
        if url.host not in allowed_hosts:
            raise ValueError(f"host {url.host!r} is not allowed; allowed: {', '.join(sorted(allowed_hosts))}")
        if url.scheme != "https" and not (url.scheme == "http" and url.host in LOOPBACK):
            raise ValueError(f"{url.scheme}://{url.host} is not encrypted; use https (http is for loopback only)")
        self._host = url.host
        self._limits = limits
        self._sleep = sleep
        self._jitter = jitter
        self._client = httpx.AsyncClient(
            base_url=base_url,
            timeout=httpx.Timeout(limits.total_s),
            follow_redirects=False,
            transport=transport,
            trust_env=False,
            headers={"accept-encoding": "gzip", "user-agent": "gridserve"},
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def get_json(
        self, path: str, params: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None
    ) -> Any:
        body = await self.get_bytes(path, params, headers)
        try:
            return json.loads(body, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            raise FeedError(f"{self._host} answered {path} with something that is not JSON") from None

    async def get_bytes(
        self, path: str, params: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None
    ) -> bytes:
        """The body of a 200. Raises `FeedError` for everything else, after retries where they can help."""
        limits = self._limits
        for attempt in range(limits.attempts):
            try:
                return await self._attempt(path, params, headers)
            except FeedError as error:
                wait = error.retry_after_s
                if wait is None:
                    ceiling = min(limits.max_backoff_s, limits.backoff_s * 2**attempt)
                    wait = ceiling * (0.5 + 0.5 * self._jitter())
                if error.permanent or wait > limits.patience_s or attempt == limits.attempts - 1:
                    raise
            await self._sleep(wait)
        raise AssertionError("unreachable: the last attempt raises")

    async def _attempt(self, path: str, params: Mapping[str, str] | None, headers: Mapping[str, str] | None) -> bytes:
        try:
            async with asyncio.timeout(self._limits.total_s):
                async with self._client.stream("GET", path, params=params, headers=headers) as response:
                    self._check_status(path, response)
                    return await self._read(path, response)
        except TimeoutError:
            raise FeedError(f"{self._host} did not answer {path} within {self._limits.total_s:g} s") from None
        except httpx.HTTPError as error:
            raise FeedError(f"{self._host} cannot be reached for {path}: {type(error).__name__}") from None

    def _check_status(self, path: str, response: httpx.Response) -> None:
        status = response.status_code
        if status == 200:
            return
        where = f"{self._host} answered {path} with status {status}"
        if status in (401, 403):
            raise AccessError(f"{where}: check the key and its access to the zone")
        if status == 429 or (status == 503 and "retry-after" in response.headers):
            raise FeedError(f"{where}: too many requests", retry_after_s=retry_after_s(response.headers) or 60.0)
        if status in RETRIED:
            raise FeedError(where)
        if response.is_redirect:
            raise FeedError(f"{where}: redirects are not followed", permanent=True)
        raise FeedError(where, permanent=True)

    async def _read(self, path: str, response: httpx.Response) -> bytes:
        body = bytearray()
        async for piece in response.aiter_bytes():
            body += piece
            if len(body) > self._limits.max_bytes:
                raise FeedError(f"{self._host} answered {path} with more than {self._limits.max_bytes} bytes")
        return bytes(body)


class AccessError(FeedError):
    """401 or 403: the key is wrong, expired, or may not see the zone."""

    def __init__(self, message: str) -> None:
        super().__init__(message, permanent=True)


def retry_after_s(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Seconds to wait by a `Retry-After` header in either of its forms; None when absent or unreadable."""
    text = headers.get("retry-after")
    if text is None:
        return None
    try:
        return max(0.0, float(int(text)))
    except ValueError:
        pass
    try:
        moment = parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - (now or datetime.now(UTC))).total_seconds())


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
