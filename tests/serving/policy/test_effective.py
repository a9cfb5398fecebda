"""Rules, schedules, bands and tenants; reachability against brute force."""

import json
from datetime import UTC, datetime, timedelta

import pytest
import time_machine
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.policy.effective import BandState, Situation, band_at, effective
from serving.policy.load import parse_policy
from serving.policy.model import Policy
from serving.policy.reach import dead_settings, settings_of
from serving.policy.rules import DAYS, Condition, Rule

HEAD = {"apiVersion": "gridserve/v1", "kind": "Policy", "metadata": {"name": "p"}}
MONDAY = datetime(2026, 1, 12, tzinfo=UTC)


def policy_of(spec: dict) -> Policy:
    return Policy.model_validate_json(json.dumps({**HEAD, "spec": spec}))


def rule(name: str, when: dict | None = None, **change: object) -> dict:
    return {"name": name, "when": when or {}, "set": change}


def test_the_first_rule_that_sets_it_wins_for_each_setting():
    policy = policy_of(
        {
            "rules": [
                rule("a", admit_low_priority=False),
                rule("b", admit_low_priority=True, clock_mhz={"max": 900}),
            ]
        }
    )
    found = effective(policy, Situation(MONDAY))
    assert (found.admit_low_priority, found.clock_max_mhz) == (False, 900)
    assert found.rules == {"admit_low_priority": "a", "clock_mhz": "b"}


def test_a_tenants_own_settings_change_only_by_rules_that_name_it():
    levels = [{"id": "L0"}, {"id": "L1", "text": "x"}]
    rules = [
        rule("named", {"tenants": ["exact"]}, tolerance=0.0),
        rule("all", directive="L1", quality_floor=0.8),
    ]
    policy = policy_of(
        {
            "directives": {"levels": levels, "optimizer": "off", "quality_floor": 0.9},
            "tenants": [{"name": "exact", "directive": "off", "quality_floor": 1.0}, {"name": "plain"}],
            "rules": rules,
        }
    )
    exact = effective(policy, Situation(MONDAY, tenant="exact"))
    plain = effective(policy, Situation(MONDAY, tenant="plain"))
    assert (exact.directive, exact.quality_floor, exact.tolerance) == ("off", 1.0, 0.0)
    assert (plain.directive, plain.quality_floor, plain.tolerance) == ("L1", 0.8, 0.1)


def test_a_rule_ends_when_it_expires():
    spec = {"rules": [{**rule("x", admit_low_priority=False), "expires_at": "2026-01-12T12:00:00+00:00"}]}
    policy = policy_of(spec)
    assert not effective(policy, Situation(MONDAY + timedelta(hours=11, minutes=59))).admit_low_priority
    assert effective(policy, Situation(MONDAY + timedelta(hours=12))).admit_low_priority


def test_schedules_follow_the_clock_of_the_machine():
    when = {"days": ["mon"], "between": "09:00-10:00", "time_zone": "Europe/London"}
    policy = policy_of({"rules": [rule("x", when, admit_low_priority=False)]})
    with time_machine.travel(datetime(2026, 7, 13, 7, 59, 59, tzinfo=UTC), tick=False) as traveller:
        admitted = []
        for _ in range(3):
            admitted.append(effective(policy, Situation(datetime.now(UTC))).admit_low_priority)
            traveller.shift(timedelta(minutes=30, seconds=1))
        traveller.shift(timedelta(minutes=1))
        admitted.append(effective(policy, Situation(datetime.now(UTC))).admit_low_priority)
    assert admitted == [True, False, True, True]


@pytest.mark.parametrize(
    ("utc", "holds"),
    [
        # 29 March 2026: London's clocks skip 01:00-02:00.
        (datetime(2026, 3, 29, 0, 59, tzinfo=UTC), False),
        (datetime(2026, 3, 29, 1, 0, tzinfo=UTC), False),
        # 25 October 2026: 01:00-02:00 occurs twice.
        (datetime(2026, 10, 25, 0, 30, tzinfo=UTC), True),
        (datetime(2026, 10, 25, 1, 30, tzinfo=UTC), True),
        (datetime(2026, 10, 25, 2, 0, tzinfo=UTC), False),
    ],
)
def test_nights_on_which_the_clocks_change(utc, holds):
    condition = Condition(days=("sun",), between="01:00-02:00", time_zone="Europe/London")
    assert condition.holds_at(utc) is holds


def test_a_situation_needs_a_time_with_a_zone():
    with pytest.raises(ValueError, match="has no zone"):
        Situation(datetime(2026, 1, 1))


CARBON = {
    "zone": "GB",
    "feeds": [{"type": "uk_grid"}],
    "bands": [{"name": "low", "to_g_per_kwh": 100}, {"name": "high", "from_g_per_kwh": 100}],
    "band_hysteresis_g_per_kwh": 20,
    "band_min_dwell_s": 600,
}


@given(st.lists(st.none() | st.floats(0, 300), min_size=1, max_size=60), st.integers(1, 900))
def test_bands_never_change_within_their_dwell_nor_inside_the_hysteresis(values, step_s):
    carbon = policy_of({"carbon": CARBON}).spec.carbon
    state, now = None, MONDAY
    for value in values:
        now += timedelta(seconds=step_s)
        found = band_at(carbon, Situation(now, g_per_kwh=value, band=state))
        if value is None:
            assert found.name == "unknown"
        elif state is not None and state.name in ("low", "high") and found != state:
            assert (now - state.since).total_seconds() >= 600
            assert value >= 120 if state.name == "low" else value < 80
        state = found


def test_the_edge_of_a_band_belongs_to_the_upper_one():
    carbon = policy_of({"carbon": CARBON}).spec.carbon
    assert band_at(carbon, Situation(MONDAY, g_per_kwh=100)).name == "high"
    assert band_at(carbon, Situation(MONDAY, g_per_kwh=99.9)).name == "low"
    assert band_at(None, Situation(MONDAY, g_per_kwh=99.9)) == BandState("unknown", MONDAY)


conditions = st.fixed_dictionaries(
    {},
    optional={
        "bands": st.lists(st.sampled_from(["a", "b", "unknown"]), min_size=1, unique=True),
        "zones": st.lists(st.sampled_from(["GB", "DE"]), min_size=1, unique=True),
        "tenants": st.lists(st.sampled_from(["x", "y"]), min_size=1, unique=True),
        "days": st.lists(st.sampled_from(DAYS), min_size=1, unique=True),
        "between": st.sampled_from(["00:00-24:00", "08:00-20:00", "20:00-08:00", "00:00-12:00", "12:00-24:00"]),
    },
).map(lambda when: {**when, "time_zone": "UTC"} if {"days", "between"} & set(when) else when)
changes = st.sampled_from([{"tolerance": 0.1}, {"directive": "off"}, {"tolerance": 0.2, "directive": "auto"}])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(conditions, changes), min_size=1, max_size=5))
def test_dead_settings_are_those_that_brute_force_never_sees(drawn):
    rules = [
        Rule.model_validate_json(json.dumps({"name": f"r{i}", "when": when, "set": change}))
        for i, (when, change) in enumerate(drawn)
    ]
    seen = set()
    for hours in range(0, 168, 4):
        moment = MONDAY + timedelta(hours=hours)
        for band in ("a", "b", "unknown"):
            for zone in ("GB", "DE", "FR"):
                for tenant in ("x", "y", None):
                    decided = set()
                    for index, one in enumerate(rules):
                        if one.holds(moment, zone, tenant, band):
                            fresh = {(index, name) for name in settings_of(one) if name not in decided}
                            seen |= fresh
                            decided |= {name for _, name in fresh}
    expected = {
        index: dead
        for index, one in enumerate(rules)
        if (dead := [name for name in settings_of(one) if (index, name) not in seen])
    }
    assert dead_settings(rules, ["a", "b"]) == expected


def test_a_rule_that_outlives_the_one_before_it_is_reachable():
    text = (
        "apiVersion: gridserve/v1\nkind: Policy\nmetadata: {name: p}\nspec:\n  rules:\n"
        "    - {name: a, set: {admit_low_priority: false}, expires_at: 2026-02-01T00:00:00Z}\n"
        "    - {name: b, set: {admit_low_priority: true}}\n"
    )
    assert parse_policy(text.encode()).warnings == ()
