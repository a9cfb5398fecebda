"""What-if over real ledger rows, through the real simulator in its own process."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from serving.ledger.rows import RequestRow
from serving.what_if import whole_hours
from tests.serving.test_admin_api import POLICY, TOKEN, Admin, admin, until

__all__ = ["admin"]
TOP = POLICY.replace("{governor: static, static: {clock_mhz: 1200}}", "{governor: default}")


def row(number: int, at_s: float) -> RequestRow:
    return RequestRow(
        request_id=f"r-{number}",
        arrived_us=round(at_s * 1e6),
        finished_us=round((at_s + 1) * 1e6),
        model="fake/model",
        prompt_tokens=400,
        completion_tokens=200,
        choices=1,
        directive="L0",
        status=200,
    )


async def traffic(admin: Admin, count: int = 60) -> None:
    ledger = admin.parts.ledger
    assert ledger is not None
    began = time.time() - 300
    for number in range(count):
        assert ledger.writer.put(row(number, began + number))
    assert ledger.writer.put(replace(row(count, began + 10), completion_tokens=0))
    await until(lambda: len(ledger.reader.requests(limit=200)) == count + 1, "the rows")


async def ask(admin: Admin, text: str, **more: Any) -> dict[str, Any]:
    answer = await admin.post("/api/v1/what-if", {"text": text, "window_s": 600.0} | more)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_a_lower_clock_costs_fewer_joules_and_more_time(admin: Admin) -> None:
    await traffic(admin)
    found = await ask(admin, TOP)
    slow, fast = found["in_force"], found["proposed"]
    assert found["method"] == "simulated"
    assert slow["requests"] == fast["requests"] == 60
    assert slow["energy_j"] < fast["energy_j"]
    assert slow["tpot_p50_s"] > fast["tpot_p50_s"] > 0
    assert slow["actuations"] >= 1
    assert fast["actuations"] == 0
    # The grid is a constant 300 g/kWh, and the policy's PUE is 1.
    assert fast["grams"] == pytest.approx(fast["energy_j"] / 3.6e6 * 300, rel=1e-6)
    assert any("1 requests without tokens" in note for note in found["notes"])


async def test_the_policy_in_force_against_itself_is_the_same(admin: Admin) -> None:
    await traffic(admin, 20)
    found = await ask(admin, POLICY)
    assert found["in_force"] == found["proposed"]


async def test_brief_directives_shorten_the_answers(admin: Admin) -> None:
    await traffic(admin, 20)
    sprout = POLICY.replace("optimizer: classed", "optimizer: sprout")
    found = await ask(admin, sprout)
    assert found["proposed"]["energy_j"] <= found["in_force"]["energy_j"]
    assert any("estimated" in note for note in found["notes"])


async def test_what_cannot_be_answered_says_why(admin: Admin) -> None:
    none = await admin.post("/api/v1/what-if", {"text": TOP})
    assert none.status_code == 404
    assert "no request" in none.json()["detail"]
    await traffic(admin, 2)
    broken = await admin.post("/api/v1/what-if", {"text": "spec: ["})
    assert broken.status_code == 422
    assert (await admin.post("/api/v1/what-if", {"text": TOP, "window_s": -1.0})).status_code == 422
    unknown = await admin.post("/api/v1/what-if", {"text": TOP, "gpu": "abacus"})
    assert unknown.status_code == 404
    assert "abacus" in unknown.json()["detail"]
    assert (await admin.post("/api/v1/what-if", {"text": TOP}, token=TOKEN[:-1])).status_code == 401


def test_a_series_reaches_to_whole_hours() -> None:
    assert whole_hours([(1800.0, 3600.0, 1.0), (3600.0, 5400.0, 2.0)]) == [(0.0, 3600.0, 1.0), (3600.0, 7200.0, 2.0)]
    assert whole_hours([]) == []
