"""The prefill throttle from the policy file to the engine process and back, with real processes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from power.governors import Pool
from tests.serving.test_admin_live import Up, until
from tests.serving.test_control_plane import Rig, make_rig  # noqa: F401  a fixture

POLICY = """apiVersion: gridserve/v1
kind: Policy
metadata: {{name: braked}}
spec:
  mode: {mode}
  power:
    row_budget: {{watts: {watts}, relax_dwell_s: 0.2}}
    carbon_follow: {{budget_floor: 0.4}}
    {throttle}
  carbon:
    zone: GB
    feeds: [{{type: constant, g_per_kwh: 300, source: a test}}]
    range: {{low_g_per_kwh: 50, high_g_per_kwh: 250}}
"""
THROTTLE = "prefill_throttle: {min_step_tokens: 16, react_s: 0.2, relax_s: 0.4}"


def text(watts: int = 200, mode: str = "enforce", throttle: str = THROTTLE) -> str:
    """On a dirty grid 200 W become 80 W, less than the board draws at rest: the row brakes whatever happens."""
    return POLICY.format(watts=watts, mode=mode, throttle=throttle)


def write(path: Path, policy: str) -> None:
    partial = path.with_suffix(".new")
    partial.write_text(policy)
    os.replace(partial, path)


@pytest.mark.e2e
def test_a_braking_row_lowers_the_engines_budget_until_the_policy_gives_more(tiny_model: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    write(data / "policy.yaml", text())
    up = Up(tiny_model, data)
    try:

        def budgets() -> tuple[Any, Any]:
            state = up.get("state")
            return state["engine"]["token_budget"], state["power"]["step_tokens"]

        assert budgets() == (256, None)
        assert up.get("state")["engine"]["max_num_batched_tokens"] == 256
        assert up.ask().status_code == 200
        until(lambda: budgets() == (64, 64), "the lowest budget: the engine's 64 places")
        answer = up.ask(messages=[{"role": "user", "content": "word " * 60}], max_tokens=4).json()
        assert answer["usage"]["completion_tokens"] == 4
        rows = [row for row in up.get("audit", kind="actuation")["rows"] if "step_tokens" in row["asked"]]
        assert rows, "audited"
        assert all("the row is at its budget" in row["reason"] for row in rows)
        assert {row["actor"] for row in rows} == {"governor prefill_throttle"}

        write(data / "policy.yaml", text(watts=2000))
        until(lambda: budgets() == (256, None), "the engine's own budget again")

        write(data / "policy.yaml", text())
        until(lambda: budgets() == (64, 64), "the lowest budget again")
        write(data / "policy.yaml", text(mode="shadow"))
        until(lambda: budgets()[0] == 256, "lifted where nothing may act")
    finally:
        assert up.stop() == 0


async def test_the_policys_pools_reach_the_row(make_rig: Callable[..., Rig]) -> None:  # noqa: F811
    rig = make_rig()
    controller = rig.power.controller
    uuid = controller.gpus[0].info.uuid
    row = "  mode: enforce\n  power: {{row_budget: {{watts: 400, low_priority_gpus: [GPU-of-another-server{also}]}}}}\n"
    await rig.begin(row.format(also=f", {uuid}"))
    assert controller.gpus[0].pool is Pool.LOW
    rig.write(row.format(also=""))
    rig.control.store.reload("file", "a test")  # type: ignore[union-attr]
    await rig.control.follow()
    assert controller.gpus[0].pool is Pool.HIGH


async def test_the_policys_section_sets_and_unsets_the_throttle(make_rig: Callable[..., Rig]) -> None:  # noqa: F811
    rig = make_rig()
    spec = "  mode: enforce\n  power: {clock_mhz: {min: 700}, prefill_throttle: {min_step_tokens: 99}}\n"
    await rig.begin(spec)
    throttle = rig.power.controller.throttle
    assert (throttle.policy.min_step_tokens, throttle.policy.floor_mhz) == (99, 700)
    rig.write("  mode: enforce\n")
    rig.control.store.reload("file", "a test")  # type: ignore[union-attr]
    await rig.control.follow()
    assert throttle.policy is None
