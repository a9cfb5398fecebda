"""The validator: messages, suggestions, revision, and that the names are those of the parts they configure."""

import dataclasses
import json
import pkgutil
import typing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import carbon.feeds
from serving.policy.carbon_section import Feed, WattTimeFeed
from serving.policy.feeds import feed_settings
from serving.policy.load import load_policy, parse_policy
from serving.policy.model import Policy
from serving.policy.power_section import CarbonFollow, GovernorName, PhaseAwareSettings, RowBudget, SloSlackSettings
from serving.policy.power_section import Stability as StabilitySection
from serving.policy.problems import PolicyError
from serving.policy.schema import policy_schema
from serving.policy.zones import ENTSOE_COUNTRIES

PLAN = """apiVersion: gridserve/v1
kind: Policy
metadata: {name: follow-the-grid, owner: platform}
spec:
  mode: enforce
  slo: {ttft_p99_ms: 1000, tpot_p99_ms: 50}
  power:
    governor: slo_slack
    clock_mhz: {min: 600, max: 1980}
    power_limit_w: {max: 650}
    row_budget: {watts: 5600, t1: 0.80, t2: auto, hysteresis: 0.05}
  carbon:
    zone: GB
    feeds: [{type: uk_grid}]
    stale_after_s: 3600
    pue: 1.2
    embodied: {kg: 164, lifetime_years: 4}
  directives:
    levels: [{id: L0}, {id: L1, text: "Always answer briefly"}, {id: L2, text: "Always answer very briefly"}]
    quality_floor: 0.98
    budget: {window_h: 720}
  tenants: [{name: research, carbon_budget_g_per_day: 500, on_exceed: brief}]
"""


def test_the_plan_of_the_policy_file_is_accepted():
    loaded = parse_policy(PLAN.encode())
    assert loaded.warnings == ()
    assert loaded.policy.spec.directives.chosen_optimizer == "quality_budget"
    assert loaded.policy.spec.power.row_budget.t2 == "auto"


def test_feeds_are_built_from_a_policy(tmp_path):
    build = pytest.importorskip("carbon.feeds.build", reason="the feeds are not part of this build")
    file = tmp_path / "gb.csv"
    file.write_text("start,g_per_kwh\n2026-01-01T00:00:00+00:00,100\n2026-01-01T01:00:00+00:00,120\n")
    feeds = (
        "{type: uk_grid}, {type: electricity_maps}, {type: entsoe, zone: NL}, {type: eia, zone: CISO},"
        " {type: watttime, signal: co2_aoer, zone: X}, {type: carbon_aware_sdk, url: 'http://localhost:8080'},"
        f" {{type: csv, path: {file}, replay_from: '2026-01-01T00:00:00Z'}},"
        " {type: constant, g_per_kwh: 5, source: s}"
    )
    policy = parse_policy(PLAN.replace("{type: uk_grid}", feeds).encode()).policy
    names = ("ELECTRICITY_MAPS_TOKEN", "ENTSOE_TOKEN", "EIA_API_KEY", "WATTTIME_USER", "WATTTIME_PASSWORD")
    built = [
        build.build_feed(settings, zone="GB", environment=dict.fromkeys(names, "k"))
        for settings in feed_settings(policy.spec.carbon)
    ]
    assert {str(feed.methodology.boundary) for feed in built} == {"direct"}
    assert {str(feed.methodology.basis) for feed in built} == {"average"}


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("kind: Policy", "kind: policy", "p.yaml:2:7: kind: \"policy\" is not one of Policy; did you mean 'Policy'?"),
        ("  mode: enforce", "  mode: enforced", '5:9: spec.mode: "enforced" is not one of observe, shadow, enforce'),
        ("  mode: enforce", "  mod: enforce", "5:3: spec.mod: unknown key; did you mean 'mode'?"),
        ("tpot_p99_ms: 50", "tpot_p99: 50", "6:28: spec.slo.tpot_p99: unknown key; did you mean 'tpot_p99_ms'?"),
        ("{ttft_p99_ms: 1000, tpot_p99_ms: 50}", "{ttft_p99_ms: 1000}", "6:8: spec.slo.tpot_p99_ms: is required"),
        ("ttft_p99_ms: 1000", 'ttft_p99_ms: "1000"', "6:22: spec.slo.ttft_p99_ms: input should be a valid number"),
        ("ttft_p99_ms: 1000", "ttft_p99_ms: -1", "6:22: spec.slo.ttft_p99_ms: input should be greater than 0, got -1"),
        ("ttft_p99_ms: 1000", "ttft_p99_ms: true", "6:22: spec.slo.ttft_p99_ms: input should be a valid number"),
        ("min: 600", "min: 600.5", "9:22: spec.power.clock_mhz.min: input should be a valid integer"),
        (
            "min: 600",
            "min: 2000",
            "9:16: spec.power.clock_mhz: the clock band is empty: min 2000 MHz",
        ),
        (
            "governor: slo_slack",
            "governor: row_budget",
            "8:15: spec.power.governor: row_budget is a section",
        ),
        ("t2: auto", "t2: soon", '11:45: spec.power.row_budget.t2: "soon" is not one of auto or should be'),
        ("t2: auto", "t2: 0.5", "11:17: spec.power.row_budget: t2 0.5 must lie between t1 0.8 and 1"),
        ("{type: uk_grid}", "{type: uk_gird}", "14:20: spec.carbon.feeds.0.type: 'uk_gird' is not one of uk_grid,"),
        ("{type: uk_grid}", "{typ: uk_grid}", "14:13: spec.carbon.feeds.0.type: is required"),
        ("{type: uk_grid}", "{type: csv, pth: a}", "spec.carbon.feeds.0.pth: unknown key; did you mean 'path'?"),
        ("pue: 1.2", "pue: 0.9", "16:10: spec.carbon.pue: input should be greater than or equal to 1"),
        ("on_exceed: brief", "on_exceed: briefly", "did you mean 'brief'?"),
    ],
)
def test_messages(problems_of, old, new, line):
    assert old in PLAN
    found = [str(problem) for problem in problems_of(PLAN.replace(old, new))]
    assert any(line in shown for shown in found), found


def test_all_problems_are_reported_at_once_in_the_order_of_the_file(problems_of):
    text = PLAN.replace("mode: enforce", "mode: go").replace("pue: 1.2", "pue: 0").replace("kind: Policy", "kind: X")
    assert [problem.line for problem in problems_of(text)] == [2, 5, 16]


def test_a_file_that_is_not_a_mapping(problems_of):
    assert "must be a mapping" in str(problems_of("- a\n- b\n")[0])


def test_revision_is_of_the_meaning():
    first = parse_policy(PLAN.encode()).policy
    reordered = parse_policy(PLAN.replace("{min: 600, max: 1980}", "{max: 1980, min: 600} # a remark").encode()).policy
    spelt_out = parse_policy(PLAN.replace("t1: 0.80", "t1: 0.8, reaction_s: 1").encode()).policy
    other = parse_policy(PLAN.replace("pue: 1.2", "pue: 1.3").encode()).policy
    assert first.revision == reordered.revision == spelt_out.revision != other.revision
    assert len(first.revision) == 64
    assert first.revision.startswith(first.short_revision)


def test_the_body_stays_the_same_from_shadow_to_enforce():
    enforced = parse_policy(PLAN.encode()).policy
    shadowed = parse_policy(PLAN.replace("mode: enforce", "mode: shadow").encode()).policy
    assert enforced.revision != shadowed.revision
    assert enforced.body_revision == shadowed.body_revision


def test_text_is_kept_only_by_consent():
    agreed = PLAN.replace("on_exceed: brief}", "on_exceed: brief, store_prompt_text: true}")
    policy = parse_policy(agreed.encode()).policy
    assert [policy.keeps_text(tenant) for tenant in ("research", "other", None)] == [True, False, False]
    assert not parse_policy(PLAN.encode()).policy.keeps_text("research")
    everyone = parse_policy((PLAN + "  ledger: {store_prompt_text: true}\n").encode()).policy
    assert everyone.keeps_text(None)


def test_policies_are_frozen():
    policy = parse_policy(PLAN.encode()).policy
    with pytest.raises(ValueError, match="frozen"):
        policy.spec.mode = "observe"


def test_canonical_json_round_trips():
    policy = parse_policy(PLAN.encode()).policy
    again = Policy.model_validate_json(policy.canonical_json())
    assert again == policy
    assert again.revision == policy.revision


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=150)
@given(st.data())
def test_a_policy_with_any_part_replaced_is_accepted_or_refused_in_words(data):
    plain = json.loads(parse_policy(PLAN.encode()).policy.canonical_json())
    node, path = plain, []
    while isinstance(node, dict | list) and node and data.draw(st.booleans() if path else st.just(True)):
        key = data.draw(st.sampled_from(list(node) if isinstance(node, dict) else list(range(len(node)))))
        path.append(key)
        node = node[key]
    target = plain
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = data.draw(JSON)
    assert all(problem.message and problem.line == 1 for problem in problems_in(json.dumps(plain).encode()))


def problems_in(raw):
    try:
        return parse_policy(raw, "p.yaml").warnings
    except PolicyError as error:
        return error.problems


def test_a_file_on_disk(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text(PLAN)
    assert load_policy(path).policy.metadata.name == "follow-the-grid"
    with pytest.raises(OSError, match="No such file"):
        load_policy(tmp_path / "none.yaml")


def defaults_of(kind: type) -> dict[str, object]:
    return {
        field.name: field.default
        for field in dataclasses.fields(kind)
        if field.default is not dataclasses.MISSING and field.name != "name"
    }


def test_parameters_and_defaults_are_those_of_the_governors():
    from power import governors
    from power.governors.rise import CONSERVATIVE_T2

    slack = defaults_of(governors.SloSlackGovernor)
    section = SloSlackSettings()
    assert slack.pop("trusted") == (section.trusted_min, section.trusted_max)
    assert slack == section.model_dump(exclude={"trusted_min", "trusted_max"})
    assert defaults_of(governors.PhaseAwareGovernor) == PhaseAwareSettings().model_dump()
    assert defaults_of(governors.Stability) == StabilitySection().model_dump()
    assert defaults_of(governors.CarbonFollow) == CarbonFollow().model_dump()
    row = defaults_of(governors.RowBudget)
    assert row == RowBudget(watts=1.0).model_dump(include=set(row))
    assert str(CONSERVATIVE_T2) in RowBudget.model_fields["min_history_s"].description
    singles = ("DefaultGovernor", "StaticGovernor", "SloSlackGovernor", "PhaseAwareGovernor")
    fields = [field for name in singles for field in dataclasses.fields(getattr(governors, name))]
    known = {field.default for field in fields if field.name == "name"}
    assert known == set(typing.get_args(GovernorName))


def test_feed_types_are_distinct():
    union = typing.get_args(typing.get_args(Feed)[0])
    tags = [typing.get_args(kind.model_fields["type"].annotation)[0] for kind in union]
    assert len(set(tags)) == len(tags) == 8


def test_feeds_and_zones_are_those_of_the_carbon_plane():
    """The feeds are optional here: they need packages that a policy check does without."""
    entsoe = pytest.importorskip("carbon.feeds.entsoe", reason="the feed is not part of this build")
    assert set(entsoe.BIDDING_ZONES) == ENTSOE_COUNTRIES
    watttime = pytest.importorskip("carbon.feeds.watttime", reason="the feed is not part of this build")
    signals = typing.get_args(WattTimeFeed.model_fields["signal"].annotation)
    assert set(watttime.SIGNALS) == set(signals)
    found = {module.name for module in pkgutil.iter_modules(carbon.feeds.__path__)}
    tags = [
        typing.get_args(kind.model_fields["type"].annotation)[0] for kind in typing.get_args(typing.get_args(Feed)[0])
    ]
    assert {"recorded" if tag == "csv" else tag for tag in tags} <= found


def test_schema_is_draft_7_and_the_committed_one(shipped):
    schema = policy_schema()
    text = json.dumps(schema)
    assert "draft-07" in schema["$schema"]
    assert "prefixItems" not in text
    assert "$defs" not in text
    assert json.loads((shipped / "policy.schema.json").read_text()) == schema, "run: gridserve policy schema"


def test_schema_accepts_the_shipped_policies_and_refuses_a_wrong_key(shipped):
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema comes with schemathesis")
    from serving.policy.document import read_document

    validator = jsonschema.Draft7Validator(policy_schema())
    for path in shipped.glob("*.yaml"):
        data = read_document(path.read_bytes(), path.name).data
        assert list(validator.iter_errors(data)) == []
        data["spec"]["mood"] = "good"
        assert list(validator.iter_errors(data))
