"""From a changed file to changed planes: what moves, what stays, and what is written down."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from power.controller import Mode
from power.model_shape import model_shape
from serving.control_plane import ControlPlane
from serving.ledger.engine import Location
from serving.ledger_access import Ledger, open_ledger
from serving.planes import build_power
from serving.steering import Steering

SHAPE = model_shape("llama-3.1-8b")
HEAD = "apiVersion: gridserve/v1\nkind: Policy\nmetadata: {name: test}\nspec:\n"
STATIC = "  mode: enforce\n  power: {{governor: static, static: {{clock_mhz: {clock}}}}}\n"
CARBON = "  carbon: {{zone: GB, feeds: [{{type: constant, g_per_kwh: {grams}, source: a test}}]}}\n"


class Rig:
    """A control plane over a simulated device, with a ledger and a policy file."""

    def __init__(self, folder: Path, *, can_act: bool = True, now: Callable[[], datetime] | None = None) -> None:
        self.path = folder / "policy.yaml"
        self.ledger: Ledger = open_ledger(Location(folder / "ledger"))
        self.steering = Steering()
        clock = now or (lambda: datetime.now(UTC))
        self.control = ControlPlane(self.steering, shape=SHAPE, can_act=can_act, ledger=self.ledger, clock=clock)
        self.control.alarms.on_new = self.control.on_new_alarm
        self.steering.power = build_power(
            "simulated:h100-sxm",
            SHAPE,
            None,
            grid=self.control.grid,
            max_running=8,
            max_step_tokens=512,
            on_audit=self.control.on_power_audit,
            on_alarm=self.control.on_power_alarm,
            mode=Mode.OBSERVE,
        )

    @property
    def power(self) -> Any:
        return self.steering.power

    def write(self, spec: str) -> None:
        """Replace the file as editors do."""
        partial = self.path.with_suffix(".new")
        partial.write_text(HEAD + spec)
        os.replace(partial, self.path)

    async def begin(self, spec: str) -> None:
        self.write(spec)
        self.control.open_policy(self.path)
        self.power.telemetry.tick()
        self.power.telemetry.start()
        await self.control.start()

    def alarms(self) -> str:
        return "\n".join(note.text for note in self.control.alarms.notes())

    def rows(self, kind: str) -> list[Any]:
        return list(self.ledger.reader.audit(kind=kind, limit=1000))


@pytest.fixture
async def make_rig(tmp_path: Path) -> AsyncIterator[Callable[..., Rig]]:
    rigs: list[Rig] = []

    def make(**options: Any) -> Rig:
        rigs.append(Rig(tmp_path / str(len(rigs)), **options)) if (tmp_path / str(len(rigs))).mkdir() is None else None
        return rigs[-1]

    yield make
    for rig in rigs:
        await rig.control.close()
        await asyncio.to_thread(rig.power.stop)
        rig.ledger.close()


async def until(condition: Callable[[], Any], what: str) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"never: {what}")


async def test_a_changed_file_moves_the_governor_and_leaves_an_audit_row(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    await rig.begin(STATIC.format(clock=1200))
    assert rig.power.controller.mode is Mode.ENFORCE
    rig.power.controller.tick()
    assert rig.power.controller.gpus[0].asked.sm_clock_mhz == 1200
    first = rig.control.active
    assert first is not None

    rig.write(STATIC.format(clock=900))
    await until(lambda: rig.control.applied and rig.control.applied[0].revision != first.revision, "the new policy")
    rig.power.controller.tick()
    assert rig.power.controller.gpus[0].asked.sm_clock_mhz == 900
    await until(lambda: len(rig.rows("policy")) == 2, "audit rows")
    row = rig.rows("policy")[0]
    assert (row["actor"], row["result"], row["policy_mode"]) == ("file", "applied", "enforce")
    assert rig.rows("actuation")[0]["read_back"] == "900.0"
    assert rig.ledger.reader.verify_audit().ok


async def test_a_bad_file_keeps_the_last_good_policy_and_says_so_until_it_is_mended(
    make_rig: Callable[..., Rig],
) -> None:
    rig = make_rig()
    await rig.begin(STATIC.format(clock=1200))
    good = rig.control.active
    rig.write("  mode: enforze\n")
    await until(lambda: "enforze" in rig.alarms() or "mode" in rig.alarms(), "an alarm")
    assert rig.control.active is good
    assert rig.control.mode == "enforce"
    rig.write(STATIC.format(clock=1200))
    await until(lambda: not rig.alarms(), "the alarm's end")


async def test_every_part_of_a_policy_moves(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    await rig.begin("  mode: observe\n")
    assert rig.control.carbon is None
    assert rig.power.controller.mode is Mode.OBSERVE
    assert rig.power.slo is None

    rig.write(
        STATIC.format(clock=1200)
        + CARBON.format(grams=300)
        + "  slo: {ttft_p99_ms: 500, tpot_p99_ms: 40}\n"
        + "  directives: {levels: [{id: L0}, {id: L1, text: Be brief}], optimizer: classed}\n"
    )
    await until(lambda: rig.control.carbon is not None and rig.control.mode == "enforce", "a carbon plane")
    plane = rig.control.carbon
    assert plane is not None
    await until(lambda: plane.reading().g_per_kwh == 300, "the intensity")
    assert (rig.power.slo.ttft_s, rig.power.slo.tpot_s) == (0.5, 0.04)
    assert plane.settings.enforce
    assert rig.steering.policy_revision == rig.control.active.policy.short_revision  # type: ignore[union-attr]

    rig.write(STATIC.format(clock=1200) + CARBON.format(grams=80))
    await until(lambda: plane.reading().g_per_kwh == 80, "the other feed")
    assert rig.control.carbon is plane
    assert len(plane.settings.levels) == 3, "without a section the published levels hold"

    rig.write("  mode: shadow\n  power: {governor: static, static: {clock_mhz: 1200}}\n")
    await until(lambda: rig.control.carbon is None, "no carbon plane")
    assert rig.power.controller.mode is Mode.SHADOW
    assert rig.control.grid() is None


async def test_rules_hold_when_their_time_comes(make_rig: Callable[..., Rig]) -> None:
    clock = {"now": datetime(2026, 1, 6, 15, 59, tzinfo=UTC)}
    rig = make_rig(now=lambda: clock["now"])
    await rig.begin(
        STATIC.format(clock=1800)
        + CARBON.format(grams=300)
        + "  directives: {levels: [{id: L0}, {id: L1, text: Be brief}], optimizer: classed}\n"
        + '  rules: [{name: peak, when: {between: "16:00-20:00", time_zone: UTC},'
        + " set: {clock_mhz: {max: 1000}, admit_low_priority: false, directive: L1}}]\n"
    )
    assert rig.control.admits_low_priority
    assert rig.steering.directive_of("anyone") == "auto"
    clock["now"] += timedelta(minutes=2)
    await rig.control.follow()
    assert not rig.control.admits_low_priority
    assert rig.steering.directive_of("anyone") == "L1"
    rig.power.controller.tick()
    assert rig.power.controller.gpus[0].asked.sm_clock_mhz <= 1000
    clock["now"] += timedelta(hours=5)
    await rig.control.follow()
    assert rig.control.admits_low_priority
    await until(lambda: len(rig.rows("policy")) == 3, "audit rows")
    assert [row["rule"] for row in rig.rows("policy")] == [None, "peak", None]


async def test_without_an_actuator_clocks_are_only_recorded_and_directives_still_given(
    make_rig: Callable[..., Rig],
) -> None:
    rig = make_rig(can_act=False)
    await rig.begin(STATIC.format(clock=1200) + CARBON.format(grams=300))
    assert rig.power.controller.mode is Mode.SHADOW
    assert "no actuator" in rig.alarms()
    assert rig.control.carbon is not None
    assert rig.control.carbon.settings.enforce
    rig.write("  mode: observe\n")
    await until(lambda: not rig.alarms(), "the alarm's end")


async def test_the_gate_holds_enforce_back_until_shadow_has_shown_itself(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    gate = "  promotion: {min_shadow_h: 0.0001, max_slo_violations: 0}\n  slo: {ttft_p99_ms: 500, tpot_p99_ms: 40}\n"
    await rig.begin(STATIC.format(clock=1200) + gate)
    assert rig.power.controller.mode is Mode.SHADOW
    assert "instead of enforce" in rig.alarms()
    rig.power.controller.tick()
    rig.control.rows.write_shadow()
    await until(lambda: len(rig.rows("decision")) >= 2, "decisions")
    assert rig.control.store is not None
    rig.control.store.review()
    await rig.control.follow()
    assert rig.power.controller.mode is Mode.ENFORCE
    assert not rig.alarms()


async def test_a_policy_whose_feed_cannot_be_built_is_refused_before_anything_moves(
    make_rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ELECTRICITY_MAPS_TOKEN", raising=False)
    rig = make_rig()
    await rig.begin(STATIC.format(clock=1200) + CARBON.format(grams=300))
    rig.write(STATIC.format(clock=900) + "  carbon: {zone: DE, feeds: [{type: electricity_maps}]}\n")
    await until(lambda: "ELECTRICITY_MAPS_TOKEN" in rig.alarms(), "an alarm")
    rig.power.controller.tick()
    assert rig.power.controller.gpus[0].asked.sm_clock_mhz == 1200


async def test_feed_values_and_alarms_are_written_down(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    await rig.begin(STATIC.format(clock=1200) + CARBON.format(grams=123))
    plane = rig.control.carbon
    assert plane is not None
    await until(lambda: plane.reading().g_per_kwh == 123, "the intensity")
    rig.control.rows.write_grid()
    rig.control.alarms.event("power", "a fan rattles")
    await until(lambda: rig.rows("alarm"), "an audit row")
    await until(lambda: rig.ledger.reader.feed_values("GB", 0, 2**62), "a feed row")
    (value,) = rig.ledger.reader.feed_values("GB", 0, 2**62)
    assert (value["g_per_kwh"], value["kind"]) == (123.0, "assumed")
