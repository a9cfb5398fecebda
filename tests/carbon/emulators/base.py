"""An ASGI application that answers like a provider, with every fault of the trade behind a switch."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime, timedelta
from urllib.parse import parse_qsl

# Faults that a shared front handles before the provider's own logic.
FRONT = {
    "unauthorized": 401,
    "forbidden": 403,
    "throttled": 429,
    "throttled_long": 429,
    "server_error": 500,
    "redirect": 302,
    "not_found": 404,
}
BODIES = {
    "not_json": b"<html>maintenance</html>",
    "empty_object": b"{}",
    "json_list": b"[1, 2]",
    "not_a_number": b'{"data": NaN}',
    "deep": b"[" * 100_000,
}


class Emulator:
    """`now`: the provider's clock. `faults`: names switched on. `once`: faults that pass after one answer."""

    def __init__(self, now: datetime, zone: str, step: timedelta) -> None:
        self.now = now
        self.zone = zone
        self.step = step
        self.faults: set[str] = set()
        self.once: set[str] = set()
        self.requests: list[tuple[str, dict[str, str]]] = []

    async def __call__(self, scope, receive, send) -> None:
        assert scope["type"] == "http"
        path = scope["path"]
        query = dict(parse_qsl(scope["query_string"].decode()))
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.requests.append((path, query))
        status, body, extra = await self._answer(path, query, headers)
        raw = [(name.encode(), value.encode()) for name, value in extra.items()]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": body})

    def _has(self, fault: str) -> bool:
        if fault in self.once:
            self.once.discard(fault)
            return True
        return fault in self.faults

    async def _answer(self, path, query, headers):
        for fault, status in FRONT.items():
            if self._has(fault):
                extra = {"throttled": {"retry-after": "1"}, "throttled_long": {"retry-after": "600"}}.get(fault, {})
                extra = {"location": "https://elsewhere.example/"} if fault == "redirect" else extra
                return status, b'{"error": "refused"}', extra
        if self._has("timeout"):
            await asyncio.Event().wait()
        for fault, body in BODIES.items():
            if self._has(fault):
                return 200, body, {}
        if self._has("too_big"):
            return 200, b'{"data": []}' + b" " * (9 * 1024 * 1024), {}
        answer = self.answer(path, query, headers)
        if isinstance(answer, tuple):
            status, payload = answer
            return status, payload if isinstance(payload, bytes) else json.dumps(payload).encode(), {}
        return 200, answer if isinstance(answer, bytes) else json.dumps(answer).encode(), {}

    def answer(self, path: str, query: dict[str, str], headers: dict[str, str]):
        raise NotImplementedError

    def returned_zone(self) -> str:
        return "ELSEWHERE-XXXXXX" if self._has("wrong_zone") else self.zone

    def floor(self, moment: datetime) -> datetime:
        midnight = moment.replace(hour=0, minute=0, second=0, microsecond=0)
        return midnight + (moment - midnight) // self.step * self.step

    def moments(self, start: datetime, end: datetime) -> list[datetime]:
        """Starts of intervals in `[start, end)`, disturbed as the faults say."""
        skew = timedelta(days=2) if self._has("clock_skew") else timedelta(0)
        first = self.floor(start)
        found = []
        while first < end:
            found.append(first)
            first += self.step
        if self._has("missing_last_hours"):
            found = [moment for moment in found if moment < self.now - timedelta(hours=3)]
        if self._has("gap"):
            found = [moment for moment in found if moment.hour != 4]
        if self._has("disordered"):
            found = [*found[::-1], *found[:3]]
        return [moment + skew for moment in found]

    def number(self, value: float):
        """A JSON value for an intensity, disturbed as the faults say."""
        if self._has("null_value"):
            return None
        if self._has("string_number"):
            return str(value)
        if self._has("units_changed"):
            return value * 1000.0
        if self._has("negative"):
            return -value
        return value


def wave(moment: datetime) -> float:
    """The grid of every emulator: g/kWh by hour of day."""
    return 100.0 + 5.0 * moment.hour + moment.minute / 60.0


def iso(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.000Z")
