"""The series of the last quarter of an hour, as the admin API gives them."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import httpx
from fastapi import FastAPI

from serving.admin_auth import AdminAccess
from serving.admin_records import records_router
from serving.live_series import LiveSeries

TOKEN = "a-token-of-the-series-tests"


async def test_streams_have_their_turn_between_the_series_of_one_answer() -> None:
    live, now = LiveSeries(), time.time()
    for second in range(900):
        live.put(now - 900 + second, {"power_w": 100.0 + second})
    app = FastAPI()
    parts: Any = SimpleNamespace(access=AdminAccess(TOKEN), sampler=SimpleNamespace(series=live), ledger=None)
    app.include_router(records_router(parts))
    turns = 0

    async def stream() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    other, taken = asyncio.create_task(stream()), []
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        for number in (1, 16):
            before = turns
            answer = await client.get("/api/v1/series/data", params={"name": ["power_w"] * number}, headers=headers)
            assert [one["name"] for one in answer.json()["series"]] == ["power_w"] * number
            taken.append(turns - before)
    other.cancel()
    assert taken[1] >= taken[0] + 15, "one turn after each series"
