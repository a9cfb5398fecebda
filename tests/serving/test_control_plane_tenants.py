"""Keys, rate limits, budgets and the gate: who may run, and when."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.deferral import HourAhead, run_now
from serving.ledger.reader import Usage
from serving.ledger.rows import DAY_US
from serving.openai_errors import ApiError
from serving.openai_requests import ChatCompletionRequest
from serving.policy.directives_section import Tenant
from serving.service import Caller
from serving.tenants_budgets import BudgetBook
from serving.tenants_gate import TenantGate
from serving.tenants_keys import KeyRing, open_keys
from serving.tenants_limits import RateLimits, Rates

DAY = 20_000 * DAY_US


def finished(tenant: str | None = "lab", tokens: int = 10) -> Any:
    return SimpleNamespace(tenant=tenant, prompt_tokens=tokens, completion_tokens=tokens)


def usage(joules: float | None, grams: float | None = None) -> Any:
    return SimpleNamespace(energy_joules=joules, operational_grams=grams, embodied_grams=None)


def body(**fields: Any) -> ChatCompletionRequest:
    return ChatCompletionRequest.model_validate({"messages": [{"role": "user", "content": "hello"}]} | fields)


def caller(tenant: str | None = "lab") -> Caller:
    return Caller(tenant, 0.0, 10)


# Keys


def test_a_key_is_known_by_its_secret_alone(tmp_path: Path) -> None:
    ring = KeyRing(tmp_path / "keys.json")
    entry, secret = ring.create("lab", ("inference",))
    assert ring.owner(secret) == "lab"
    for wrong in (
        "",
        "gs__",
        secret[:-1],
        secret + "0",
        f"gs_{entry.key_id}_",
        f"gs_00000000_{secret[-48:]}",
        "gs_a_b_c",
    ):
        assert ring.owner(wrong) is None
    assert oct(ring.path.stat().st_mode & 0o777) == "0o600"
    again = open_keys(ring.path)
    assert again.owner(secret) == "lab"
    with pytest.raises(ValueError, match="scopes"):
        ring.create("lab", ("root",))
    with pytest.raises(ValueError, match="above 0"):
        ring.create("lab", ("inference",), joules_per_minute=0)


def test_a_key_ends_when_it_expires_and_remembers_its_last_use(tmp_path: Path) -> None:
    now = {"s": 1000.0}
    ring = KeyRing(tmp_path / "keys.json", wall=lambda: now["s"])
    _, secret = ring.create("lab", ("inference",), expires_in_s=60)
    now["s"] = 1059.0
    assert ring.owner(secret) == "lab"
    ring.save_used()
    assert KeyRing(ring.path).entries[0].last_used_unix_s == 1059.0
    now["s"] = 1060.0
    assert ring.owner(secret) is None


def test_a_ring_that_another_process_changed_is_read_again_and_a_broken_one_is_not(tmp_path: Path) -> None:
    ring = KeyRing(tmp_path / "keys.json")
    _, secret = KeyRing(ring.path).create("lab", ("inference",))
    assert ring.owner(secret) == "lab"
    ring.path.write_text("{")
    assert ring.owner(secret) == "lab"
    with pytest.raises(ValueError, match="not a key file"):
        KeyRing(ring.path)


# Rates


@given(
    st.floats(1, 1000),
    st.lists(st.tuples(st.floats(0, 30), st.integers(0, 500)), max_size=60),
)
def test_no_minute_admits_more_than_its_rate_and_a_minute_before(rate: float, steps: list[tuple[float, int]]) -> None:
    """Tokens are charged after the fact: what enters on a full bucket may overdraw it once, and pays it back."""
    now = {"s": 0.0}
    limits = RateLimits(lambda _: Rates(requests=rate), clock=lambda: now["s"])
    entered: list[float] = []
    for wait_s, _ in steps:
        now["s"] += wait_s
        if limits.enter("lab") is None:
            entered.append(now["s"])
    for start in entered:
        within = [one for one in entered if start <= one < start + 60]
        assert len(within) <= 2 * rate + 1


def test_tokens_and_joules_are_paid_back_before_the_next_request() -> None:
    now = {"s": 0.0}
    limits = RateLimits(lambda _: Rates(tokens=60.0, joules=600.0), clock=lambda: now["s"])
    assert limits.enter("lab") is None
    limits.charge("lab", 90, 100.0)
    refusal = limits.enter("lab")
    assert refusal is not None
    assert (refusal.what, round(refusal.wait_s)) == ("tokens", 30)
    now["s"] = 31.0
    assert limits.enter("lab") is None
    limits.charge("lab", 0, 10_000.0)
    refusal = limits.enter("lab")
    assert refusal is not None
    assert refusal.what == "joules"


# Budgets


def test_a_budget_counts_a_day_and_begins_anew() -> None:
    now = {"us": DAY + 1}
    tenant = Tenant.model_validate({"name": "lab", "energy_budget_j_per_day": 100.0, "carbon_budget_g_per_day": 10.0})
    book = BudgetBook(lambda name: tenant if name == "lab" else None, now_us=lambda: now["us"])
    book.take_up([Usage("lab", DAY, 3, 50.0, 1.0, 0, 0), Usage("lab", DAY - DAY_US, 9, 900.0, 90.0, 0, 0)])
    verdict = book.verdict("lab")
    assert verdict is not None
    assert (verdict.state, verdict.what, verdict.share) == ("within", "energy", 0.5)
    book.settled(finished(), usage(35.0, 0.1))
    assert book.verdict("lab").state == "soft"  # type: ignore[union-attr]
    book.settled(finished(), usage(15.0, 0.1))
    assert book.verdict("lab").state == "hard"  # type: ignore[union-attr]
    book.settled(finished(), usage(None, None))
    assert (book.used("lab").without_joules, book.used("lab").without_grams) == (1, 1)
    assert book.verdict("lab").reopens_s == pytest.approx(86_400, abs=1)  # type: ignore[union-attr]
    now["us"] = DAY + DAY_US
    assert book.verdict("lab").share == 0.0  # type: ignore[union-attr]
    assert book.verdict("nobody") is None


# The gate


def make_gate(tenant: Tenant | None = None, **options: Any) -> tuple[TenantGate, BudgetBook, dict[str, Any]]:
    state: dict[str, Any] = {"run": True, "better": False, "enforced": True, "wall": 1000.0}
    book = BudgetBook(lambda _: tenant, now_us=lambda: DAY)
    gate = TenantGate(
        book,
        lambda _: tenant,
        options.get("keys"),
        enforced=lambda: state["enforced"],
        may_run=lambda: state["run"],
        better_moment=lambda until: state["better"],
        wall=lambda: state["wall"],
    )
    return gate, book, state


async def test_low_priority_waits_and_others_do_not() -> None:
    gate, _, state = make_gate()
    state["run"] = False
    await gate.enter(body(), caller())
    waiting = asyncio.create_task(gate.enter(body(priority=1), caller()))
    await asyncio.sleep(0.15)
    assert (waiting.done(), gate.waiting) == (False, 1)
    state["run"] = True
    await asyncio.wait_for(waiting, 5)
    assert gate.waiting == 0


async def test_deferrable_work_waits_for_a_better_moment_or_its_deadline() -> None:
    gate, _, state = make_gate()
    waiting = asyncio.create_task(gate.enter(body(deferrable_until=1100.0), caller()))
    await asyncio.sleep(0.15)
    assert not waiting.done()
    state["wall"] = 1100.0
    await asyncio.wait_for(waiting, 5)
    state["better"], state["wall"] = True, 1000.0
    await asyncio.wait_for(gate.enter(body(deferrable_until=2000.0), caller()), 5)
    for wrong in (True, "x", float(10**9)):
        with pytest.raises(ApiError) as caught:
            await gate.enter(body(deferrable_until=wrong), caller())
        assert caught.value.status == 400


async def test_a_used_up_budget_is_refused_only_where_the_policy_may_act() -> None:
    tenant = Tenant.model_validate({"name": "lab", "energy_budget_j_per_day": 10.0, "on_exceed": "refuse"})
    gate, book, state = make_gate(tenant)
    book.settled(finished(), usage(11.0))
    with pytest.raises(ApiError) as caught:
        await gate.enter(body(), caller())
    assert (caught.value.status, caught.value.code) == (429, "energy_budget_exceeded")
    assert int(caught.value.headers["Retry-After"]) == 86_400
    state["enforced"] = False
    await gate.enter(body(), caller())


async def test_the_tightest_key_of_a_tenant_limits_it(tmp_path: Path) -> None:
    ring = KeyRing(tmp_path / "keys.json")
    ring.create("lab", ("inference",), requests_per_minute=100)
    ring.create("lab", ("inference",), requests_per_minute=1)
    gate, _, _ = make_gate(keys=ring)
    await gate.enter(body(), caller())
    with pytest.raises(ApiError) as caught:
        await gate.enter(body(), caller())
    assert caught.value.code == "rate_limit_exceeded"
    assert gate.refused["rate"] == 1
    await gate.enter(body(), caller("another"))


# Deferral


@given(
    st.floats(0, 1e6),
    st.floats(0, 1e6),
    st.one_of(st.none(), st.floats(0, 1000)),
    st.lists(st.floats(0, 1000), max_size=48),
)
def test_work_is_never_held_past_its_reserve(
    now: float, deadline: float, g_per_kwh: float | None, ahead: list[float]
) -> None:
    hours = [HourAhead(now + 3600 * n, now + 3600 * (n + 1), value) for n, value in enumerate(ahead)]
    if deadline - now <= 120 or g_per_kwh is None:
        assert run_now(now, deadline, g_per_kwh, hours, None)


def test_the_cleanest_hour_before_the_deadline_is_waited_for() -> None:
    ahead = [HourAhead(3600.0 * n, 3600.0 * (n + 1), value) for n, value in enumerate([300, 250, 100, 400, 10])]
    assert not run_now(10.0, 4 * 3600.0, 300.0, ahead, None)
    assert run_now(2 * 3600.0 + 10, 4 * 3600.0, 100.0, ahead, None)
    assert run_now(10.0, 3600.0, 300.0, ahead, None), "no cleaner hour comes before the deadline"
    assert not run_now(10.0, 1e6, 300.0, [], 200.0)
    assert run_now(10.0, 1e6, 150.0, [], 200.0)
