"""Governors: bounds, pacing, what they do when unsure, and that slack is turned into lower clocks."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from power.device import PowerLimits, Reading
from power.governors import (
    Bounds,
    CarbonFollow,
    DefaultGovernor,
    EngineView,
    GridSignal,
    Memory,
    Observation,
    Phase,
    PhaseAwareGovernor,
    Setpoint,
    Slo,
    SloSlackGovernor,
    Stability,
    StaticGovernor,
)
from power.governors.base import DRIVER_DEFAULT
from power.governors.prediction import forecast
from power.profile import load_profile

CLOCKS = load_profile("h100-sxm").clocks_mhz
LIMITS = PowerLimits(200.0, 700.0, 700.0)
SLO = Slo(ttft_s=1.0, tpot_s=0.05)
LIGHT = EngineView(running=16, kv_tokens=16 * 500, prompt_tokens_per_s=500.0, output_tokens_per_s=1000.0)
HEAVY = EngineView(running=250, kv_tokens=250 * 900, prompt_tokens_per_s=9000.0, output_tokens_per_s=9000.0)


def observation(**changes):
    base = Observation(time_s=100.0, clocks_mhz=CLOCKS, limits=LIMITS, slo=SLO, engine=LIGHT, reading=Reading(100.0))
    return replace(base, **changes)


def run(governor, views, period_s=0.1):
    """Let a governor drive for a while; the setpoints it asked for, with times."""
    current, since, memory, asked = DRIVER_DEFAULT, float("-inf"), Memory(), []
    for tick, view in enumerate(views):
        now = 100.0 + tick * period_s
        seen = view if isinstance(view, Observation) else observation(engine=view)
        seen = replace(seen, time_s=now, current=current, since_s=since, memory=memory)
        decision = governor.decide(seen)
        memory = decision.memory
        if decision.setpoint != current:
            if decision.setpoint.sm_clock_mhz != current.sm_clock_mhz:
                since = now
            current = decision.setpoint
            asked.append((now, current))
    return asked


def final_clock(asked):
    return asked[-1][1].sm_clock_mhz if asked else None


def test_default_leaves_the_driver_alone():
    assert DefaultGovernor().decide(observation()).setpoint == DRIVER_DEFAULT


def test_default_still_carries_the_guarding_cap():
    assert DefaultGovernor(Bounds(power_limit_w=450.0)).decide(observation()).setpoint.power_limit_w == 450.0


def test_static_snaps_to_a_supported_clock():
    clock = StaticGovernor(1001).decide(observation()).setpoint.sm_clock_mhz
    assert clock == min(mhz for mhz in CLOCKS if mhz >= 1001)


def test_slack_lowers_the_clock_and_load_raises_it_at_once(twin):
    governor = SloSlackGovernor(twin)
    asked = run(governor, [LIGHT] * 80)
    low = final_clock(asked)
    assert low is not None
    assert low < 1300
    last = observation(
        time_s=200.0, engine=HEAVY, current=Setpoint(low), since_s=190.0, memory=Memory(lower_wish_since_s=1.0)
    )
    raised = governor.decide(last).setpoint.sm_clock_mhz
    assert raised is None or raised > low + 300


def test_lowering_is_slow_and_in_steps(twin):
    stability = Stability()
    asked = run(SloSlackGovernor(twin, stability=stability), [LIGHT] * 80)
    clocks = [CLOCKS[-1], *(setpoint.sm_clock_mhz for _, setpoint in asked)]
    times = [when for when, _ in asked]
    assert times[0] >= 100.0 + stability.lower_after_s
    assert all(later - earlier >= stability.dwell_s for earlier, later in pairwise(times))
    assert all(above - below <= stability.max_lower_mhz for above, below in pairwise(clocks))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"engine": None, "memory": Memory(long_prompt=900.0)}, "engine"),
        ({"slo": None}, "SLO"),
        ({"memory": Memory(step_correction=5.0)}, "times the predicted"),
        ({"engine": replace(LIGHT, tpot_p99_s=0.056), "memory": Memory(caution=2.0)}, "TPOT"),
        ({"engine": replace(LIGHT, ttft_p99_s=1.2), "memory": Memory(caution=2.0)}, "TTFT"),
        ({"engine": replace(LIGHT, waiting_tokens=500, oldest_wait_s=0.99)}, "waited"),
        ({"slo": Slo(0.0001, 0.0001)}, "no clock"),
    ],
)
def test_unsure_means_driver_default(twin, changes, word):
    seen = observation(current=Setpoint(1005), since_s=0.0, **changes)
    decision = SloSlackGovernor(twin).decide(seen)
    assert decision.setpoint.sm_clock_mhz is None
    assert word in decision.reason


def test_a_latency_near_the_slo_raises_caution_and_only_a_worse_one_is_heard_while_it_is_remembered(twin):
    near, governor = replace(LIGHT, tpot_p99_s=0.0499), SloSlackGovernor(twin)
    first = governor.decide(observation(engine=near))
    assert first.memory.caution == pytest.approx(governor.alarm)
    when = first.memory.deaf_until_s
    soon = governor.decide(observation(time_s=when - 0.1, engine=near, memory=first.memory))
    assert soon.memory.caution == first.memory.caution
    again = governor.decide(observation(time_s=when, engine=near, memory=first.memory))
    assert again.memory.caution == pytest.approx(first.memory.caution * governor.alarm)
    clear = replace(LIGHT, tpot_p99_s=0.056)
    worse = governor.decide(observation(time_s=when - 0.1, engine=clear, memory=first.memory))
    assert worse.memory.caution == pytest.approx(first.memory.caution * governor.alarm**2)
    waits = replace(LIGHT, waiting_tokens=500, oldest_wait_s=0.99)
    assert (
        governor.decide(observation(time_s=when - 0.1, engine=waits, memory=first.memory)).setpoint.sm_clock_mhz is None
    )


def test_a_breach_raises_the_clock_at_once_and_the_default_is_the_last_resort(twin):
    governor, at_low = SloSlackGovernor(twin), {"current": Setpoint(360), "since_s": 0.0}
    clear = replace(LIGHT, tpot_p99_s=0.056)
    calm = governor.decide(observation(**at_low)).setpoint.sm_clock_mhz
    careful = governor.decide(observation(engine=clear, memory=Memory(caution=1.6), **at_low)).setpoint.sm_clock_mhz
    assert calm < careful < CLOCKS[-1]
    last = governor.decide(observation(engine=clear, memory=Memory(caution=1.95), **at_low))
    assert last.setpoint.sm_clock_mhz is None
    assert last.memory.guard_until_s == 100.0 + governor.guard_s


def test_after_a_gap_it_goes_on_with_what_it_had_learnt(twin):
    """The first requests after a gap: no answer has ended yet, and the only prompt seen is short."""
    governor = SloSlackGovernor(twin)
    busy = replace(LIGHT, prompt_p99_tokens=4000, output_tokens_per_s=1000.0)
    learnt = governor.decide(observation(engine=busy)).memory
    assert (learnt.long_prompt, learnt.output_share) == (4000.0, 2.0)
    first = replace(LIGHT, running=1, kv_tokens=200, prompt_tokens_per_s=50.0, prompt_p99_tokens=200)
    first = replace(first, output_tokens_per_s=None)
    seen, _ = governor.with_load(first, learnt)
    assert seen.prompt_p99_tokens > 3900
    assert seen.output_tokens_per_s == 100.0
    after = governor.decide(observation(engine=first, current=Setpoint(705), since_s=0.0, memory=learnt))
    assert after.setpoint.sm_clock_mhz <= 705


def test_at_rest_it_lowers_at_once_and_awaits_the_first_request_at_the_lowest_voltage(twin):
    governor = SloSlackGovernor(twin)
    before = governor.decide(observation(engine=None)).setpoint.sm_clock_mhz
    knee_mhz = twin.gpu.voltage_knee * CLOCKS[-1]
    assert knee_mhz - 15 <= before <= knee_mhz
    resting = replace(LIGHT, running=0, kv_tokens=0, phase=Phase.IDLE)
    assert governor.decide(observation(engine=resting)).setpoint.sm_clock_mhz < 1005
    for busy in (LIGHT, replace(resting, phase=Phase.PREFILL)):
        assert governor.decide(observation(engine=busy)).setpoint.sm_clock_mhz is None


def test_requests_that_wait_may_use_more_of_their_slo_than_a_prompt_to_come(twin):
    governor = SloSlackGovernor(twin)
    waiting = replace(LIGHT, waiting=4, waiting_tokens=12_000, prompt_p99_tokens=400)
    chosen = governor.choose(observation(), waiting, SLO, 1.0)
    assert governor.margin < chosen.ttft_s / SLO.ttft_s <= governor.waiting_margin
    assert chosen.fresh_s <= governor.margin * SLO.ttft_s


def test_idle_power_does_not_make_a_lone_request_race(twin):
    """Idle power is paid at any clock: at batch 1 nothing above the lowest voltage is worth it."""
    lone = replace(LIGHT, running=1, kv_tokens=500, prompt_tokens_per_s=20.0, output_tokens_per_s=5.0)
    assert SloSlackGovernor(twin).choose(observation(), lone, SLO, 1.0).clock_mhz < 800


def test_a_batch_held_up_does_not_make_a_higher_clock_look_cheap(twin):
    """Energy is that of the load, not of the sequences that happen to run now."""
    held = replace(LIGHT, running=60, kv_tokens=60 * 500, output_tokens_per_s=600.0)
    usual = replace(LIGHT, running=6, kv_tokens=6 * 500, output_tokens_per_s=600.0)
    for clock in (705, 1005, 1410):
        mine, other = (forecast(twin, engine, clock, 600.0, 1.0) for engine in (held, usual))
        assert mine.joules_per_token == pytest.approx(other.joules_per_token, rel=0.1)
        assert mine.tpot_s > other.tpot_s


def test_the_correction_follows_measured_steps(twin):
    slow = replace(LIGHT, step_s=0.030)
    governor = SloSlackGovernor(twin)
    memory = Memory()
    for _ in range(30):
        memory = governor.decide(observation(engine=slow, memory=memory)).memory
    assert memory.step_correction > 1.5


def test_a_slower_engine_gets_a_higher_clock(twin):
    governor = SloSlackGovernor(twin)
    quick = governor.choose(observation(), LIGHT, SLO, 1.0)
    slow = governor.choose(observation(), LIGHT, SLO, 2.5)
    assert quick.tpot_s <= governor.margin * SLO.tpot_s
    assert slow.tpot_s <= governor.margin * SLO.tpot_s
    assert slow.clock_mhz > quick.clock_mhz


def test_lowering_that_saves_too_little_is_not_worth_the_switch():
    stability = Stability(lower_after_s=0.0)
    seen = observation(current=Setpoint(1500), since_s=0.0)
    held = stability.settle(seen, Setpoint(1005), Memory(), "test", Bounds(), saving_w=1.0)
    moved = stability.settle(seen, Setpoint(1005), Memory(), "test", Bounds(), saving_w=100.0)
    assert held.setpoint.sm_clock_mhz == 1500
    assert moved.setpoint.sm_clock_mhz < 1500


def test_phase_aware_ignores_short_prefills_and_raises_for_long_ones(twin):
    governor = PhaseAwareGovernor(twin, decode_mhz=1005)
    short = replace(LIGHT, waiting_tokens=300)
    long = replace(LIGHT, waiting_tokens=60_000)
    at_decode = {"current": Setpoint(1005), "since_s": 0.0}
    assert governor.decide(observation(engine=short, **at_decode)).setpoint.sm_clock_mhz == 1005
    assert governor.decide(observation(engine=long, **at_decode)).setpoint.sm_clock_mhz is None


def test_carbon_narrows_the_band_and_a_stale_signal_does_not():
    governor = CarbonFollow(DefaultGovernor(), floor_fraction=0.6)
    clean, dirty = GridSignal(100.0, 100.0, 300.0), GridSignal(300.0, 100.0, 300.0)
    assert governor.decide(observation(grid=clean)).setpoint.sm_clock_mhz is None
    capped = governor.decide(observation(grid=dirty)).setpoint.sm_clock_mhz
    assert capped == min(mhz for mhz in CLOCKS if mhz >= 0.6 * CLOCKS[-1])
    assert governor.decide(observation(grid=replace(dirty, stale=True))).setpoint.sm_clock_mhz is None
    assert governor.budget_w(1000.0, dirty) == pytest.approx(750.0)
    assert governor.budget_w(1000.0, None) == 1000.0


def test_a_device_without_clocks_is_left_alone(twin):
    seen = observation(clocks_mhz=(), limits=None)
    for governor in (DefaultGovernor(), StaticGovernor(1005), SloSlackGovernor(twin), PhaseAwareGovernor(twin)):
        assert governor.decide(seen).setpoint == DRIVER_DEFAULT


VIEWS = st.builds(
    EngineView,
    running=st.integers(0, 256),
    kv_tokens=st.integers(0, 400_000),
    waiting_tokens=st.integers(0, 100_000),
    oldest_wait_s=st.floats(0, 3),
    prompt_tokens_per_s=st.floats(0, 20_000),
    output_tokens_per_s=st.none() | st.floats(0, 20_000),
    step_s=st.none() | st.floats(0.001, 0.5),
    tpot_p99_s=st.none() | st.floats(0.001, 0.2),
)
OBSERVATIONS = st.builds(
    observation,
    engine=VIEWS,
    clock_ceiling_mhz=st.none() | st.integers(300, 2100),
    grid=st.none() | st.builds(GridSignal, st.floats(0, 900), st.just(100.0), st.just(400.0), st.booleans()),
)
BOUNDS = st.builds(
    Bounds,
    min_mhz=st.none() | st.integers(300, 1000),
    max_mhz=st.none() | st.integers(1000, 2000),
    power_limit_w=st.none() | st.floats(100, 900),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(OBSERVATIONS, min_size=3, max_size=40), BOUNDS, st.sampled_from(["slack", "phase", "carbon", "static"]))
def test_never_outside_constraints_and_never_too_many_switches(twin, seen, bounds, kind):
    stability = Stability()
    slack = SloSlackGovernor(twin, bounds, stability)
    governor = {
        "slack": slack,
        "phase": PhaseAwareGovernor(twin, 1500, None, bounds=bounds, stability=stability),
        "carbon": CarbonFollow(slack),
        "static": StaticGovernor(1200, bounds),
    }[kind]
    current, since, memory, switches = DRIVER_DEFAULT, float("-inf"), Memory(), []
    for tick, each in enumerate(seen):
        each = replace(each, time_s=tick * 0.05, current=current, since_s=since, memory=memory)
        decision = governor.decide(each)
        memory, setpoint = decision.memory, decision.setpoint
        ceiling = min(filter(None, [bounds.max_mhz, each.clock_ceiling_mhz]), default=None)
        if setpoint.sm_clock_mhz is not None:
            assert setpoint.sm_clock_mhz in CLOCKS
            assert ceiling is None or setpoint.sm_clock_mhz <= max(ceiling, CLOCKS[0])
        else:
            assert ceiling is None or ceiling >= CLOCKS[-1]
        if setpoint.power_limit_w is not None:
            assert LIMITS.min_w <= setpoint.power_limit_w <= LIMITS.max_w
            assert bounds.power_limit_w is not None
        if setpoint.sm_clock_mhz != current.sm_clock_mhz:
            over = ceiling is not None and each.current_mhz > ceiling
            if not over:
                switches.append(each.time_s)
            since = each.time_s
        current = setpoint
    for start in switches:
        assert sum(start <= when < start + 1.0 for when in switches) <= stability.max_switches_per_s + 1
