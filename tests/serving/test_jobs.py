"""Background jobs: counted, cut off when late, and never in each other's way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from serving.jobs import Jobs


async def until(condition: Callable[[], Any], what: str) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"never: {what}")


async def test_a_job_that_works_fails_or_hangs_says_so() -> None:
    told: list[tuple[str, str | None]] = []
    jobs = Jobs(lambda name, text: told.append((name, text)))
    broken = {"yes": True}

    async def good() -> None:
        return None

    async def flaky() -> None:
        if broken["yes"]:
            raise RuntimeError("no route to the feed")

    async def hangs() -> None:
        await asyncio.Event().wait()

    jobs.add("good", good, every_s=60, timeout_s=1)
    jobs.add("flaky", flaky, every_s=0.05, timeout_s=1)
    jobs.add("hangs", hangs, every_s=60, timeout_s=0.05)
    jobs.start()
    records = jobs.records
    await until(lambda: records["good"].last_success_unix_s, "a success")
    await until(lambda: records["flaky"].failures, "a failure")
    await until(lambda: records["hangs"].failures, "a timeout")
    assert records["flaky"].last_error == "no route to the feed"
    assert "longer than 0.05 s" in (records["hangs"].last_error or "")
    assert ("flaky", "job flaky: no route to the feed") in told
    broken["yes"] = False
    await until(lambda: records["flaky"].last_success_unix_s, "it works again")
    assert records["flaky"].last_error is None
    assert ("flaky", None) in told
    assert jobs.next_run_unix_s("good") is not None
    jobs.stop()


async def test_a_job_does_not_overtake_itself() -> None:
    jobs = Jobs()
    running = {"now": 0, "most": 0}

    async def slow() -> None:
        running["now"] += 1
        running["most"] = max(running["most"], running["now"])
        await asyncio.sleep(0.2)
        running["now"] -= 1

    jobs.add("slow", slow, every_s=0.05, timeout_s=5)
    jobs.start()
    await until(lambda: jobs.records["slow"].skipped and jobs.records["slow"].last_success_unix_s, "a skipped turn")
    assert running["most"] == 1
    jobs.stop()
