"""Fewer prompt tokens a step: only with clocks at their floor, in bounds, and lifted whatever ends it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from power.client import LocalActuator
from power.controller import Controller, GpuControl, Inputs, Mode
from power.device import ClockReason, Reading
from power.governors import (
    DefaultGovernor,
    EngineView,
    Observation,
    PrefillThrottle,
    RowBudget,
    Setpoint,
    StaticGovernor,
    ThrottleMemory,
)
from power.messages import HoldMode
from power.row import RowControl
from power.telemetry import Telemetry
from power.throttle import LEASE_S, EngineThrottle

CLOCKS = (210, 600, 1200, 1980)
ENGINE = EngineView(running=20, kv_tokens=9000, max_step_tokens=2048, max_running=64)


def seen(*reasons, clock_mhz=1980.0, asked_mhz=None):
    reading = Reading(0.0, power_w=500.0, sm_clock_mhz=clock_mhz, clock_reasons=frozenset(reasons))
    return Observation(0.0, CLOCKS, None, Setpoint(asked_mhz), reading=reading)


@pytest.mark.parametrize(
    ("observation", "braking", "words"),
    [
        (seen(), False, None),
        (seen(), True, None),
        (seen(asked_mhz=600), True, "the row is at its budget with clocks held at 600 MHz"),
        (seen(asked_mhz=600), False, None),
        (seen(ClockReason.THERMAL), False, "slows itself down (sw_thermal)"),
        (seen(ClockReason.POWER_BRAKE, ClockReason.IDLE), False, "slows itself down (hw_power_brake)"),
        (seen(ClockReason.POWER_CAP, clock_mhz=1200.0), False, None),
        (seen(ClockReason.POWER_CAP, clock_mhz=600.0), False, "at its floor, 600 MHz"),
        (replace(seen(), reading=None), False, None),
        (replace(seen(), reading=Reading(0.0)), False, None),
    ],
)
def test_what_presses(observation, braking, words):
    found = PrefillThrottle(floor_mhz=600).pressure(observation, braking=braking)
    assert found is None if words is None else words in found


def test_without_a_band_the_floor_is_the_devices_lowest_clock():
    assert PrefillThrottle().pressure(seen(ClockReason.POWER_CAP, clock_mhz=600.0), braking=False) is None
    assert PrefillThrottle().pressure(seen(ClockReason.POWER_CAP, clock_mhz=210.0), braking=False) is not None


def test_it_halves_under_pressure_and_doubles_in_quiet():
    throttle, memory, now, found = PrefillThrottle(200, react_s=1.0, relax_s=5.0), ThrottleMemory(), 0.0, []
    for turn in range(100):
        now = 0.5 * turn
        decision = throttle.decide(now, "heat" if now < 6.0 else None, 2048, 64, memory)
        memory = decision.memory
        if not found or found[-1][1] != decision.tokens:
            found.append((now, decision.tokens))
    assert found == [
        (0.0, 1024), (1.0, 512), (2.0, 256), (3.0, 200), (10.5, 400), (15.5, 800), (20.5, 1600), (25.5, None)
    ]  # fmt: skip


@given(
    st.lists(st.tuples(st.floats(0.01, 8.0), st.booleans()), max_size=60),
    st.integers(1, 4096),
    st.integers(1, 4096),
    st.integers(1, 512),
)
def test_every_running_request_keeps_a_token_and_the_budget_is_never_raised(turns, least, most, running):
    throttle, memory, now, changed = PrefillThrottle(least), ThrottleMemory(), 0.0, float("-inf")
    for seconds, pressed in turns:
        now += seconds
        before = memory.tokens
        memory = throttle.decide(now, "heat" if pressed else None, most, running, memory).memory
        if memory.tokens is not None:
            assert min(most, max(least, running)) <= memory.tokens < most
        if memory.tokens != before:
            assert now - changed >= 1.0
            changed = now
    quiet = throttle.decide(now + 5.0, None, most, running, memory)
    for _ in range(15):
        now += 6.0
        quiet = throttle.decide(now, None, most, running, quiet.memory)
    assert quiet.tokens is None


@pytest.mark.parametrize("bad", [{"min_step_tokens": 0}, {"react_s": 0.0}, {"relax_s": -1.0}])
def test_settings_that_make_no_sense_are_refused(bad):
    with pytest.raises(ValueError, match="prefill throttle needs"):
        PrefillThrottle(**bad)


class Rig:
    """A controller over one simulated board, ticked by hand; `told` is what the engine hears."""

    def __init__(self, simulated, clock, *, budget_w=50.0, mode=Mode.ENFORCE, governor=None):
        from power.actuator import Actuator

        self.clock, self.told, self.records = clock, [], []
        self.engine = ENGINE
        self.telemetry = Telemetry([simulated], lambda sample, foreign: None, clock=clock)
        self.actuator = Actuator([simulated], None, clock=clock)
        self.controller = Controller(
            [GpuControl(simulated.info, governor or DefaultGovernor())],
            self.telemetry,
            Inputs(lambda now: self.engine, lambda: None),
            LocalActuator(self.actuator, holder="test"),
            mode=mode,
            row=RowControl(budget_w, RowBudget()),
            throttle=EngineThrottle(PrefillThrottle(), lambda tokens, seconds: self.told.append((tokens, seconds))),
            clock=clock,
            on_audit=self.records.append,
        )

    def run(self, seconds):
        for _ in range(round(seconds / 0.2)):
            self.clock.now_s += 0.2
            self.telemetry.tick()
            self.controller.tick()
            self.actuator.tick()

    def steps(self):
        return [record for record in self.records if record.action == "step_tokens"]


def test_the_rows_brake_lowers_the_engines_budget_and_its_end_restores_it(simulated, clock):
    rig = Rig(simulated, clock)
    rig.run(6.0)
    assert [tokens for tokens, _ in rig.told][:3] == [1024, 512, 256]
    assert set(rig.told[2:]) == {(256, LEASE_S)}
    assert len(rig.told) > 3, "a limit in force is renewed"
    first = rig.steps()[0]
    assert (first.asked, first.outcome, first.governor) == (1024, "applied", "prefill_throttle")
    assert "the row is at its budget" in first.reason
    assert first.inputs["current_mhz"] is not None
    assert rig.controller.throttle.step_tokens == 256

    rig.controller.row = RowControl(5000.0, RowBudget())
    rig.run(30.0)
    assert rig.told[-1] == (None, LEASE_S)
    assert rig.controller.throttle.step_tokens is None
    assert [record.asked for record in rig.steps()] == [1024, 512, 256, 512, 1024, None]


def test_the_clocks_come_first(simulated, clock):
    """The turn that first sees the brake moves the clocks; prompts are throttled only with those in force."""
    rig = Rig(simulated, clock)
    rig.run(0.2)
    assert [record.action for record in rig.records] == ["lock_clocks", "step_tokens"]
    assert rig.records[1].inputs["current_mhz"] == rig.records[0].asked


@pytest.mark.parametrize("end", ["stop", "shadow", "policy", "hold"])
def test_whatever_ends_it_lifts_the_limit(simulated, clock, end):
    rig = Rig(simulated, clock)
    rig.run(4.0)
    assert rig.told[-1][0] == 256
    if end == "stop":
        rig.controller.stop()
    elif end == "shadow":
        rig.controller.set_mode(Mode.SHADOW)
    elif end == "policy":
        rig.controller.throttle.policy = None
    else:
        rig.actuator.hold(HoldMode.DEFAULTS, None, reason="a fire drill")
    if end in ("policy", "hold"):
        rig.run(1.4)
        assert rig.steps()[-1].asked is None
        assert ("no prefill_throttle" if end == "policy" else "an operator holds") in rig.steps()[-1].reason
    assert rig.told[-1] == (None, LEASE_S)
    told = len(rig.told)
    rig.run(3.0)
    assert len(rig.told) == told or end == "stop"


def test_shadow_decides_and_records_and_tells_the_engine_nothing(simulated, clock):
    rig = Rig(simulated, clock, mode=Mode.SHADOW)
    rig.run(6.0)
    assert rig.told == []
    assert [(record.asked, record.outcome) for record in rig.steps()] == [
        (1024, "shadow"), (512, "shadow"), (256, "shadow")
    ]  # fmt: skip


def test_an_unknown_engine_is_left_alone(simulated, clock):
    rig = Rig(simulated, clock, governor=StaticGovernor(600))
    rig.engine = None
    rig.run(3.0)
    assert rig.told == []
    assert rig.steps() == []


def test_without_the_policys_section_nothing_is_limited(simulated, clock):
    rig = Rig(simulated, clock)
    rig.controller.throttle.policy = None
    rig.run(3.0)
    assert rig.told == []
    assert rig.steps() == []
