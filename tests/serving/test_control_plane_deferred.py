"""The queue of deferred requests: kept before acknowledged, run in order of deadlines, taken up after a restart."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serving.deferral_queue import KEEP_S, DeferralQueue
from serving.openai_errors import ApiError
from serving.service import InferenceService
from serving.settings import ApiSettings

BODY = json.dumps({"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}).encode()


@pytest.fixture
def make_queue(tmp_path: Path, fake: Any, fake_text: Any) -> Callable[..., tuple[DeferralQueue, dict[str, Any], Any]]:
    def make(**engine: Any) -> tuple[DeferralQueue, dict[str, Any], Any]:
        state: dict[str, Any] = {"due": False, "now": 1000.0}
        chosen = fake(**engine)
        service = InferenceService(chosen, fake_text, ApiSettings())
        queue = DeferralQueue(tmp_path / "deferred", service, lambda until: state["due"], wall=lambda: state["now"])
        queue.load()
        return queue, state, chosen

    return make


async def until(condition: Callable[[], Any], what: str) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"never: {what}")


async def test_work_waits_survives_a_restart_and_runs(make_queue: Any, tmp_path: Path) -> None:
    queue, _, _ = make_queue()
    kept = await queue.accept(BODY, 2000.0, "lab")
    assert queue.find(kept.id, "lab") is kept
    assert queue.find(kept.id, "another") is None
    assert queue.find(kept.id, None) is None

    again, state, _ = make_queue()
    assert again.counts()["waiting"] == 1
    running = asyncio.create_task(again.run())
    await asyncio.sleep(0.6)
    assert again.counts()["waiting"] == 1
    state["due"] = True
    file = tmp_path / "deferred" / f"{kept.id}.json"
    await until(lambda: json.loads(file.read_text())["status"] == "done", "an answer")
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    third, state, _ = make_queue()
    found = third.find(kept.id, "lab")
    assert found is not None
    assert json.loads(bytes(found.answer))["usage"]["completion_tokens"] == 4
    state["now"] = 1000.0 + KEEP_S + 1
    await third._forget_old()
    assert third.find(kept.id, "lab") is None
    assert make_queue()[0].counts()["done"] == 0


async def test_work_that_was_cut_off_runs_again(make_queue: Any, hold: Any) -> None:
    queue, state, engine = make_queue(step=hold)
    kept = await queue.accept(BODY, 2000.0, None)
    state["due"] = True
    running = asyncio.create_task(queue.run())
    await until(lambda: engine.active, "it runs")
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await until(lambda: not engine.active, "it was aborted")
    again, state, _ = make_queue()
    assert again.find(kept.id, None).status == "waiting"


async def test_the_earliest_deadline_runs_first(make_queue: Any) -> None:
    queue, state, engine = make_queue()
    for until_s, limit in ((3000.0, 3), (1500.0, 1), (2000.0, 2)):
        await queue.accept(BODY.replace(b'"max_tokens": 4', f'"max_tokens": {limit}'.encode()), until_s, None)
    state["due"] = True
    queue._begin_due()
    await asyncio.gather(*queue._running)
    assert [one.sampling.max_tokens for one in engine.generations] == [1, 2, 3]


@pytest.mark.parametrize(
    ("raw", "until_s"),
    [(b"{", 2000.0), (BODY, 999.0), (BODY, 1e12), (BODY.replace(b"}]", b'}], "stream": true'), 2000.0)],
)
async def test_what_cannot_be_kept_is_refused(make_queue: Any, raw: bytes, until_s: float) -> None:
    queue, _, _ = make_queue()
    with pytest.raises(ApiError) as caught:
        await queue.accept(raw, until_s, None)
    assert caught.value.status == 400
    assert queue.counts()["waiting"] == 0


async def test_a_failure_is_told_and_a_damaged_file_left_alone(make_queue: Any, tmp_path: Path) -> None:
    queue, state, _ = make_queue(error_after=1)
    kept = await queue.accept(BODY, 2000.0, None)
    state["due"] = True
    queue._begin_due()
    await asyncio.gather(*queue._running)
    assert (kept.status, kept.error is not None) == ("failed", True)
    (tmp_path / "deferred" / "x.json").write_text("{")
    assert make_queue()[0].counts()["failed"] == 1
    assert (tmp_path / "deferred" / "x.json").exists()
