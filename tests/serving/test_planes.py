"""From policy files to planes: every shipped policy builds, and says there what it says in the file."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import pytest

from carbon.plan_values import Strategy
from engine.config import EngineConfig
from power.controller import Mode
from power.governors import CarbonFollow, DefaultGovernor, SloSlackGovernor, StaticGovernor
from power.model_shape import model_shape
from serving.composition import boards
from serving.planes import build_power, governor_of
from serving.planes_carbon import GridView, build_carbon, undirected_classes
from serving.policy.load import load_policy, parse_policy
from serving.policy.model import Policy
from serving.policy.power_section import Power
from serving.server_options import ServerOptions
from serving.settings import ApiSettings

POLICIES = sorted(Path("policies").glob("*.yaml"))
SERIES = Path("traces/data/intensity_synthetic_wind.csv")
NOW = datetime(2026, 1, 6, 12, 30, tzinfo=UTC)


def policy(spec: str) -> Policy:
    text = f"apiVersion: gridserve/v1\nkind: Policy\nmetadata: {{name: test}}\nspec:\n{spec}"
    return parse_policy(text.encode()).policy


@pytest.mark.parametrize("path", POLICIES, ids=lambda path: path.stem)
def test_every_shipped_policy_builds_both_planes(path: Path) -> None:
    loaded = load_policy(path).policy
    plane = build_power("simulated:h100-sxm", model_shape("llama-3.1-8b"), loaded, max_running=64, max_step_tokens=2048)
    assert plane is not None
    assert plane.controller.mode is Mode(loaded.spec.mode)
    plane.stop()
    carbon = build_carbon(loaded, now=lambda: NOW)
    assert (carbon is None) == (loaded.spec.carbon is None)
    if carbon is not None:
        assert loaded.spec.carbon is not None
        assert carbon.settings.pue == loaded.spec.carbon.pue
        assert carbon.settings.enforce == (loaded.spec.mode == "enforce")


def test_governors_take_their_parameters_from_the_policy() -> None:
    plane = build_power("simulated:h100-sxm", model_shape("llama-3.1-8b"), None, max_running=8, max_step_tokens=256)
    assert plane is not None
    twin = plane.devices[0].twin  # type: ignore[attr-defined]
    plane.stop()
    band = {"clock_mhz": {"min": 700, "max": 1500}, "power_limit_w": {"max": 600.0}}
    static = governor_of(Power.model_validate({"governor": "static", "static": {"clock_mhz": 1200}} | band), twin)
    assert isinstance(static, StaticGovernor)
    assert (static.clock_mhz, static.bounds.min_mhz, static.bounds.power_limit_w) == (1200, 700, 600.0)
    slack = governor_of(
        Power.model_validate({"governor": "slo_slack", "slo_slack": {"margin": 0.5, "trusted_max": 2.0}} | band), twin
    )
    assert isinstance(slack, SloSlackGovernor)
    assert (slack.margin, slack.trusted, slack.bounds.max_mhz) == (0.5, (0.3, 2.0), 1500)
    assert isinstance(governor_of(Power(), twin), DefaultGovernor)
    with pytest.raises(ValueError, match="static"):
        governor_of(Power.model_validate({"governor": "static"}), twin)


def test_every_rank_has_a_board() -> None:
    plane = build_power(
        "simulated:h100-sxm", model_shape("llama-3.1-8b"), None, max_running=8, max_step_tokens=1, gpus=2
    )
    assert plane is not None
    plane.stop()
    assert len({device.info.uuid for device in plane.devices}) == 2

    def options(power_device: str, compute: str) -> ServerOptions:
        engine = EngineConfig("m", "m", device=compute, tensor_parallel=2)
        return ServerOptions(engine, ApiSettings(), 0, power_device=power_device)

    assert boards(options("nvml", "auto")) == 2
    assert boards(options("simulated:h100-sxm", "cpu")) == 2
    assert boards(options("auto", "cpu")) == 1, "ranks on a CPU share one machine, whose energy is one figure"


def test_nothing_to_measure_on_is_no_plane_and_a_wrong_name_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown power device"):
        build_power("toaster", model_shape("llama-3.1-8b"), None, max_running=8, max_step_tokens=256)


CARBON = f"""
  mode: enforce
  carbon:
    zone: GB
    feeds: [{{type: csv, path: {SERIES}, replay_from: "2026-01-06T00:00:00Z"}}]
    zone_mean_g_per_kwh: 150
    pue: 1.3
    embodied: {{kg: 100, lifetime_years: 5, source: a data sheet}}
"""


async def test_a_recorded_feed_gives_grams_with_their_provenance() -> None:
    plane = build_carbon(policy(CARBON), now=lambda: NOW)
    assert plane is not None
    await plane.start()
    reading = plane.reading()
    assert str(reading.tier) == "live"
    assert reading.intensity is not None
    assert reading.intensity.source == f"file:{SERIES.name}"
    assert plane.embodied_g_per_s == pytest.approx(100_000 / (5 * 365.25 * 86_400), rel=1e-2)
    await plane.close()


async def test_the_zone_mean_stands_in_and_is_named_so() -> None:
    plane = build_carbon(policy(CARBON.replace("2026-01-06T00", "2020-01-06T00")), now=lambda: NOW)
    assert plane is not None
    await plane.start()
    reading = plane.reading()
    assert (str(reading.tier), reading.g_per_kwh) == ("zone_mean", 150.0)
    await plane.close()


async def test_the_grid_is_judged_by_the_policys_range_or_the_window() -> None:
    fixed = policy(CARBON + "    range: {low_g_per_kwh: 50, high_g_per_kwh: 250}\n")
    for loaded, fixed_range in ((fixed, True), (policy(CARBON), False)):
        plane = build_carbon(loaded, now=lambda: NOW)
        assert plane is not None
        before = GridView(plane, loaded)()
        # The zone's mean is all there is yet: within a fixed range a stale signal, without a window none at all.
        assert (before is not None and before.stale) if fixed_range else before is None
        await plane.start()
        ticking = GridView(plane, loaded)
        signal = ticking()
        assert signal is not None
        assert not signal.stale
        if fixed_range:
            assert (signal.low_g_per_kwh, signal.high_g_per_kwh) == (50, 250)
        else:
            assert signal.low_g_per_kwh <= signal.high_g_per_kwh
        await plane.close()
        await asyncio.sleep(0)


DIRECTIVES = """
  directives:
    levels: [{id: L0}, {id: L1, text: Always answer briefly}]
    optimizer: %s
    quality_floor: 0.97
    budget: {window_h: 24, quality_target: 0.99}
    classes: [{name: code, directed: false}, {name: chat}]
  tenants: [{name: research, carbon_budget_g_per_day: 50, on_exceed: refuse, soft_share: 0.5}]
"""


def test_directives_tenants_and_undirected_classes_reach_the_plane() -> None:
    loaded = policy(CARBON + DIRECTIVES % "quality_budget")
    plane = build_carbon(loaded, now=lambda: NOW)
    assert plane is not None
    plan = plane.settings.plan
    assert (plan.strategy, plan.quality_floor, plan.target, plan.window_h) == (Strategy.BUDGETED, 0.97, 0.99, 24.0)
    assert plane.settings.levels.ids == ("L0", "L1")
    budget = plane.settings.tenants["research"].budget
    assert budget is not None
    assert (budget.hard_g, budget.soft_g) == (50, 25)
    assert undirected_classes(loaded) == {"code"}
    assert undirected_classes(None) == frozenset()


def test_every_optimizer_of_the_policy_is_carried_out() -> None:
    budgeted = policy(CARBON + (DIRECTIVES % "carbon_budget").replace("quality_target: 0.99", "grams: 10"))
    plane = build_carbon(budgeted, now=lambda: NOW)
    assert plane is not None
    assert (plane.settings.plan.strategy, plane.settings.plan.budget_g) == (Strategy.CARBON_BUDGET, 10.0)
    mix = "fixed\n    mix: [{level: L1, share: 0.25}, {level: L0, share: 0.75}]"
    fixed = build_carbon(policy(CARBON + DIRECTIVES % mix), now=lambda: NOW)
    assert fixed is not None
    assert fixed.settings.plan.shares == (0.75, 0.25)


def test_a_static_governor_under_carbon_follow_keeps_both(tmp_path: Path) -> None:
    loaded = policy(
        CARBON + "  power: {governor: static, static: {clock_mhz: 1400}, carbon_follow: {floor_fraction: 0.5}}\n"
    )
    plane = build_power("simulated:h100-sxm", model_shape("llama-3.1-8b"), loaded, max_running=8, max_step_tokens=256)
    assert plane is not None
    governor = plane.controller.gpus[0].governor
    assert isinstance(governor, CarbonFollow)
    assert isinstance(governor.inner, StaticGovernor)
    assert governor.floor_fraction == 0.5
    plane.stop()
