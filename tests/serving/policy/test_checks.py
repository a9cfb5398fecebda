"""Cross-checks: each finds its fault, at its place, and is silent on the sound policies."""

# ruff: noqa: E501 - one fault, one line

import pytest

from power.profile import load_profile
from serving.policy.checks import DeviceRange

GPU = load_profile("h100-sxm")
H100 = DeviceRange(GPU.name, GPU.clocks_mhz, GPU.limit_min_w, GPU.limit_max_w)

GB = "  carbon:\n    zone: GB\n    feeds: [{type: uk_grid}]\n"
LEVELS = "  directives:\n    levels: [{id: L0}, {id: L1, text: Be brief}]\n"


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        # SLO, governors and their parameters
        ("  power: {governor: slo_slack}\n", "5:21: spec.power.governor: slo_slack chooses clocks by SLO slack, and the SLO is"),
        ("  power: {governor: phase_aware}\n", "phase_aware chooses clocks by SLO slack, and the SLO is missing"),
        ("  power: {governor: static}\n", "5:21: spec.power.governor: static needs its clock; add power.static.clock_mhz"),
        ("  power: {static: {clock_mhz: 1200}}\n", "warning: spec.power.static: does nothing"),
        ("  power: {phase_aware: {worth: 5}}\n", "warning: spec.power.phase_aware: does nothing"),
        ("  promotion: {min_shadow_h: 1}\n", "spec.promotion: counts violations of an SLO that is missing"),
        ("  power: {carbon_follow: {}}\n", "spec.power.carbon_follow: follows a grid that is missing"),
        (
            "  power: {governor: static, static: {clock_mhz: 500}, clock_mhz: {min: 600}}\n",
            "spec.power.static.clock_mhz: 500 MHz is outside power.clock_mhz (600 to the highest)",
        ),
        # carbon
        ("  carbon: {zone: UK, feeds: [{type: uk_grid}]}\n", "5:18: spec.carbon.zone: feed uk_grid has no zone 'UK'; did you mean 'GB'?"),
        ("  carbon: {zone: US-CAL-CSIO, feeds: [{type: electricity_maps}]}\n", "did you mean 'US-CAL-CISO'?"),
        ("  carbon: {zone: DE, feeds: [{type: entsoe, zone: DEE}]}\n", "5:51: spec.carbon.feeds.0.zone: feed entsoe has no zone"),
        ("  carbon: {zone: ZZ, feeds: [{type: constant, g_per_kwh: 1, source: x}]}\n", "warning: spec.carbon.zone: unknown zone 'ZZ'"),
        (
            "  carbon: {zone: GB, feeds: [{type: uk_grid}, {type: watttime, zone: UK}]}\n",
            "spec.carbon.feeds.1: feed watttime counts marginal intensity, the others average; the two cannot be mixed",
        ),
        (
            "  carbon: {zone: GB, boundary: lifecycle, feeds: [{type: uk_grid}]}\n",
            "spec.carbon.feeds.0: feed uk_grid counts direct intensity, the others lifecycle",
        ),
        (GB + "    bands: [{name: a, to_g_per_kwh: 100}, {name: b, from_g_per_kwh: 90}]\n", "8:43: spec.carbon.bands.1: band 'b' from 90 overlaps 'a' up to 100"),
        (GB + "    bands: [{name: a}, {name: b, from_g_per_kwh: 90}]\n", "band 'b' from 90 overlaps 'a' without end"),
        (GB + "    bands: [{name: a, to_g_per_kwh: 100}, {name: b, from_g_per_kwh: 110}]\n", "warning: spec.carbon.bands.1: no band covers 100 to 110"),
        (GB + "    bands: [{name: unknown}]\n", "unknown is the name of an intensity that is absent"),
        (GB + "    bands: [{name: a, to_g_per_kwh: 5}]\n", "hysteresis 10 g/kWh is as wide as the narrowest band"),
        (GB + "    bands: [{name: a, from_g_per_kwh: 5, to_g_per_kwh: 5}]\n", "band 'a' is empty"),
        (GB + "    range: {low_g_per_kwh: 5}\n", "give both low_g_per_kwh and high_g_per_kwh"),
        (
            "  carbon: {zone: GB, feeds: [{type: constant, g_per_kwh: 1, source: x}, {type: uk_grid}]}\n",
            "warning: spec.carbon.feeds.1: is never asked: the constant feed before it always answers",
        ),
        ("  carbon: {zone: GB, feeds: [{type: csv, path: nowhere.csv}]}\n", "warning: spec.carbon.feeds.0.path: nowhere.csv is not a file here"),
        # directives and tenants
        (LEVELS, "spec.directives.optimizer: classed weighs levels by grams, and the grid is missing"),
        (GB + LEVELS + "    quality_floor: 1.1\n", "10:20: spec.directives.quality_floor: infeasible: a floor of 1.1"),
        (GB + LEVELS + "  tenants: [{name: a, quality_floor: 1.1}]\n", "spec.tenants.0.quality_floor: infeasible"),
        ("  directives: {optimizer: 'off', levels: [{id: L1, text: x}]}\n", "the first level is the undirected answer"),
        ("  directives: {optimizer: 'off', levels: [{id: L0}, {id: L1}]}\n", "level 'L1' needs its text"),
        ("  directives: {optimizer: 'off', levels: [{id: L0}, {id: L0, text: x}]}\n", "level 'L0' exists already"),
        ("  directives: {optimizer: 'off', levels: [{id: auto}]}\n", "'auto' is a word of the API"),
        (LEVELS + "    optimizer: fixed\n", "fixed needs directives.mix"),
        (LEVELS + "    optimizer: fixed\n    mix: [{level: L0, share: 0.5}]\n", "the shares sum to 0.5, not to 1"),
        (LEVELS + "    optimizer: fixed\n    mix: [{level: L9, share: 1.0}]\n", "8:19: spec.directives.mix.0.level: no level 'L9'"),
        (
            "  directives:\n    levels: [{id: L0}, {id: L1, text: x, quality: 0.8}]\n    optimizer: fixed\n"
            "    mix: [{level: L0, share: 0.5}, {level: L1, share: 0.5}]\n    quality_floor: 0.95\n",
            "8:10: spec.directives.mix: infeasible: this mix keeps 0.900 of L0's quality, below 0.95",
        ),
        (GB + LEVELS + "    optimizer: carbon_budget\n    budget: {window_h: 24}\n", "carbon_budget needs budget.grams"),
        (GB + LEVELS + "    optimizer: quality_budget\n", "quality_budget needs directives.budget"),
        (GB + LEVELS + "    optimizer: sprout\n    budget: {window_h: 24}\n", "warning: spec.directives.budget: does nothing"),
        ("  tenants: [{name: a}, {name: a}]\n", "5:31: spec.tenants.1.name: tenant 'a' exists already"),
        ("  tenants: [{name: a, directive: L1}]\n", "spec.tenants.0.directive: no level 'L1'"),
        ("  tenants: [{name: a, carbon_budget_g_per_day: 5}]\n", "grams cannot be counted without a grid"),
        ("  tenants: [{name: a, energy_budget_j_per_day: 5, on_exceed: brief}]\n", "brief needs a brief level"),
        ("  tenants: [{name: a, on_exceed: refuse}]\n", "warning: spec.tenants.0.on_exceed: does nothing without a budget"),
        # rules
        ("  rules: [{name: r, set: {row_budget_w: 5}}]\n", "there is no row budget to change"),
        ("  rules: [{name: r, set: {governor: slo_slack}}]\n", "spec.rules.0.set.governor: slo_slack chooses clocks by SLO slack"),
        ("  rules: [{name: r, when: {tenants: [a]}, set: {clock_mhz: {max: 900}}}]\n", "a rule for tenants cannot set clocks"),
        ("  rules: [{name: r, when: {bands: [dirt]}, set: {directive: 'off'}}]\n", "5:36: spec.rules.0.when.bands.0: no band 'dirt'"),
        ("  rules: [{name: r, when: {zones: [GB]}, set: {directive: 'off'}}]\n", "there is no zone to compare with"),
        ("  rules: [{name: r, set: {directive: L1}}]\n", "spec.rules.0.set.directive: no level 'L1'"),
        ("  rules: [{name: r, when: {days: [mon]}, set: {directive: 'off'}}]\n", "days and between need time_zone"),
        ("  rules: [{name: r, when: {time_zone: UTC}, set: {directive: 'off'}}]\n", "time_zone does nothing without days"),
        ("  rules: [{name: r, when: {days: [mon], time_zone: Europe/Londn}, set: {directive: 'off'}}]\n", "unknown time zone 'Europe/Londn'"),
        (
            "  rules:\n    - {name: a, set: {directive: 'off'}}\n    - {name: a, when: {days: [mon], time_zone: UTC}, set: {directive: auto}}\n",
            "7:7: spec.rules.1: rule 'a' is unreachable: earlier rules set all it sets",
        ),
        ("  rules:\n    - {name: a, set: {directive: 'off'}}\n    - {name: a, set: {tolerance: 0.1}}\n", "rule 'a' exists already as number 1"),
    ],
)  # fmt: skip
def test_finds(spec_problems, spec, line):
    found = spec_problems(spec)
    assert any(line in shown for shown in found), found


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        ("  power: {clock_mhz: {max: 2100}}\n", "5:28: spec.power.clock_mhz.max: 2100 MHz is outside what h100-sxm can be locked to (345 to 1980 MHz)"),
        ("  power: {clock_mhz: {min: 100}}\n", "100 MHz is outside"),
        ("  power: {governor: static, static: {clock_mhz: 1000}}\n", "warning: spec.power.static.clock_mhz: h100-sxm has no clock of 1000 MHz"),
        ("  power: {power_limit_w: {max: 150}}\n", "150 W is below the least limit h100-sxm takes (200 W)"),
        ("  power: {power_limit_w: {max: 900}}\n", "warning: spec.power.power_limit_w.max: 900 W is above what h100-sxm may draw"),
        ("  power: {row_budget: {watts: 100}}\n", "100 W is less than one h100-sxm needs"),
        ("  rules: [{name: r, set: {clock_mhz: {max: 2100}}}]\n", "spec.rules.0.set.clock_mhz.max: 2100 MHz is outside"),
        ("  rules: [{name: r, set: {power_limit_w: {max: 100}}}]\n", "spec.rules.0.set.power_limit_w.max: 100 W is below"),
    ],
)  # fmt: skip
def test_finds_on_a_device(spec_problems, spec, line):
    found = spec_problems(spec, H100)
    assert any(line in shown for shown in found), found
    assert not any("MHz is outside" in shown or "limit h100" in shown for shown in spec_problems(spec))


def test_the_shipped_policies_have_nothing_to_find(shipped, problems_of):
    paths = sorted(shipped.glob("*.yaml"))
    assert [path.stem for path in paths] == ["follow-the-grid", "observe-only", "power-capped-row", "save-energy"]
    for path in paths:
        assert problems_of(path.read_bytes(), H100) == []
        assert sum(line.lstrip().startswith("#") for line in path.read_text().splitlines()) >= 5
