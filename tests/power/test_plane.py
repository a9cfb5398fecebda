"""The plane as a server uses it, on a simulated board in virtual time, and the controller's manners."""

import os
import threading
import time
from dataclasses import dataclass, replace

import pytest

from engine.batch import RequestWork, StepRecord
from power.actuator import Actuator
from power.audit import AuditRecord
from power.client import ActuatorUnavailableError, LocalActuator
from power.controller import Controller, GpuControl, Inputs, Mode
from power.device import DeviceLostError
from power.fake_nvml import Faults
from power.governors import (
    Bounds,
    DefaultGovernor,
    EngineView,
    Pool,
    RowBudget,
    RowState,
    Setpoint,
    Slo,
    SloSlackGovernor,
    StaticGovernor,
)
from power.messages import HoldMode
from power.nvml import NvmlDevice
from power.open import open_devices
from power.periodic import Periodic
from power.plane import PowerPlane
from power.quantities import Method, Source
from power.row import RowControl
from power.simulated import SimulatedDevice
from power.telemetry import Telemetry
from power.twin import decode_work
from power.work import WorkShare, step_work


@dataclass(frozen=True)
class Step:
    started_s: float
    ended_s: float
    work: tuple[WorkShare, ...]


def plane_of(device, twin, clock, **options):
    return PowerPlane([device], shape=twin.shape, clock=clock, **options)


def serve(plane, clock, requests=4, steps=200, step_s=0.02, name="r"):
    """A prompt each, then decode together; samples at 20 Hz and control at 10 Hz in virtual time."""
    ids = [f"{name}{index}" for index in range(requests)]
    for request_id in ids:
        plane.admit(request_id, 300)
    next_sample = clock()
    for step in range(steps):
        work = tuple(
            WorkShare(request_id, 300, 0, 300) if step == 0 else WorkShare(request_id, 0, 1, 300 + step)
            for request_id in ids
        )
        started = clock()
        clock.sleep(step_s)
        clock.sleep(plane.on_step(Step(started, clock(), work)))
        while clock() >= next_sample:
            plane.telemetry.tick()
            plane.controller.tick()
            next_sample += 0.05
    return ids


def test_a_request_gets_prefill_decode_and_idle_joules_labelled_simulated(simulated, twin, clock):
    settled = []
    plane = plane_of(simulated, twin, clock, on_settled=settled.append)
    plane.telemetry.tick()
    ids = serve(plane, clock)
    answers = [plane.finish(request_id) for request_id in ids]
    for answer in answers:
        assert answer.method is Method.SIMULATED
        assert answer.source is Source.TWIN
        assert min(answer.prefill_j, answer.decode_j, answer.idle_j) > 0
        assert answer.uncertainty_percent is not None
    for _ in range(6):
        clock.sleep(0.05)
        plane.telemetry.tick()
    assert {result.request_id for result in settled} == set(ids)
    for answer, result in zip(answers, sorted(settled, key=lambda found: found.request_id)):
        assert result.settled
        assert answer.joules == pytest.approx(result.joules, rel=0.1)
        assert plane.request_energy(result.request_id) is result
    shown = settled[0].fields()
    assert shown["method"] == "simulated"
    assert shown["energy_joules"] == pytest.approx(
        shown["prefill_joules"] + shown["decode_joules"] + shown["idle_joules"]
    )
    assert shown["energy_kwh"] == pytest.approx(shown["energy_joules"] / 3.6e6)
    books = plane.status().books
    assert books.closure_error_j == pytest.approx(0.0, abs=1e-6)
    assert sum(result.joules for result in settled) == pytest.approx(books.requests_j)
    metrics = plane.metrics()
    assert metrics["gridserve_energy_counter_joules_total"] == books.counter_j
    assert plane.request_energy("unknown") is None
    assert plane.finish("unknown") is None


def test_a_long_step_is_not_taken_for_idleness(simulated, twin, clock):
    settled = []
    plane = plane_of(simulated, twin, clock, on_settled=settled.append)
    plane.telemetry.tick()
    clock.sleep(1.0)
    plane.telemetry.tick()
    plane.admit("long", 1000)
    started = clock()
    for _ in range(40):
        clock.sleep(0.05)
        plane.telemetry.tick()
    plane.on_step(Step(started, clock(), (WorkShare("long", 1000, 0, 1000),)))
    plane.finish("long")
    for _ in range(6):
        clock.sleep(0.05)
        plane.telemetry.tick()
    (result,) = settled
    wanted_w = twin.predict(step_work([WorkShare("long", 1000, 0, 1000)]), 1980).power_w
    assert wanted_w > 700.0
    assert result.prefill_j + result.idle_j == pytest.approx(2.0 * 700.0, rel=0.05), "two seconds at the cap"
    books = plane.status().books
    assert books.unattributed_j < 0.05 * books.counter_j


def test_it_runs_by_itself(twin):
    done = threading.Event()
    settled = []

    def on_settled(result):
        settled.append(result)
        done.set()

    plane = PowerPlane(
        [SimulatedDevice(twin)],
        shape=twin.shape,
        governor=StaticGovernor(1005),
        mode=Mode.ENFORCE,
        slo=Slo(1.0, 0.05),
        on_settled=on_settled,
    )
    plane.start()
    plane.admit("live", 200)
    for step in range(20):
        started = time.monotonic()
        time.sleep(0.02)
        share = WorkShare("live", 200, 0, 200) if step == 0 else WorkShare("live", 0, 1, 200 + step)
        time.sleep(plane.on_step(Step(started, time.monotonic(), (share,))))
    preview = plane.finish("live")
    assert done.wait(10)
    plane.stop()
    assert settled[0].joules == pytest.approx(preview.joules, rel=0.5)
    assert min(settled[0].prefill_j, settled[0].decode_j, settled[0].idle_j) > 0
    assert plane.status().samples >= 5
    assert abs(plane.status().books.closure_error_j) < 1e-6
    assert plane.controller.outcomes["applied"] + plane.controller.outcomes["unconfirmed"] >= 1


def test_enforced_slack_lowers_the_simulated_clock_and_stretches_steps(simulated, twin, clock):
    records: list[AuditRecord] = []
    governor = SloSlackGovernor(twin)
    plane = plane_of(
        simulated, twin, clock, governor=governor, mode=Mode.ENFORCE, slo=Slo(5.0, 0.5), on_audit=records.append
    )
    plane.telemetry.tick()
    for turn in range(12):
        for request_id in serve(plane, clock, steps=30, name=f"t{turn}-"):
            plane.finish(request_id)
    asked = plane.status().asked_mhz[simulated.info.uuid]
    assert asked is not None
    assert simulated.board.state.lock_max_mhz == asked
    work = tuple(WorkShare(f"r{index}", 0, 1, 600) for index in range(4))
    assert plane.on_step(Step(clock(), clock() + 0.02, work)) > 0.0
    assert records
    assert records[-1].outcome in ("applied", "unconfirmed")
    assert records[-1].inputs["running"] == 4
    plane.stop()
    assert simulated.board.state.lock_max_mhz is None


def test_shadow_records_and_touches_nothing(simulated, twin, clock):
    plane = plane_of(simulated, twin, clock, governor=StaticGovernor(1005), mode=Mode.SHADOW, slo=Slo(5.0, 0.5))
    plane.telemetry.tick()
    serve(plane, clock, steps=20)
    assert [record.outcome for record in plane.controller.records] == ["shadow"]
    assert simulated.board.state.lock_max_mhz is None


def test_observe_decides_nothing(simulated, twin, clock):
    plane = plane_of(simulated, twin, clock, governor=StaticGovernor(1005))
    plane.telemetry.tick()
    serve(plane, clock, steps=20)
    assert not plane.controller.records


def test_panic_wins_and_control_comes_back(simulated, twin, clock):
    plane = plane_of(simulated, twin, clock, governor=StaticGovernor(1005), mode=Mode.ENFORCE)
    plane.telemetry.tick()
    serve(plane, clock, steps=30)
    assert simulated.board.state.lock_max_mhz == 1005
    plane.panic()
    serve(plane, clock, steps=200)
    assert simulated.board.state.lock_max_mhz is None
    held = [record for record in plane.controller.records if record.outcome == "held"]
    assert len(held) == 1, "a hold is told once, not at every turn"
    plane.release_hold()
    serve(plane, clock, steps=200)
    assert simulated.board.state.lock_max_mhz == 1005
    plane.hold(HoldMode.PIN, 1.0, 1500)
    assert simulated.board.state.lock_max_mhz == 1500


def test_a_plane_without_an_actuator_cannot_enforce(fake, twin):
    device = NvmlDevice(fake.uuids[0])
    with pytest.raises(ValueError, match="powerd"):
        PowerPlane([device], shape=twin.shape, mode=Mode.ENFORCE)
    device.close()


def test_real_devices_are_labelled_measured(fake, twin):
    device = NvmlDevice(fake.uuids[0])
    plane = PowerPlane([device], shape=twin.shape)
    plane.own(frozenset({os.getpid()}))
    plane.start()
    plane.admit("a", 100)
    begin = time.monotonic()
    plane.on_step(Step(begin, begin + 0.001, (WorkShare("a", 100, 0, 100),)))
    answer = plane.finish("a")
    plane.stop()
    assert answer.method is Method.ESTIMATED, "unsettled: priced at measured power"
    assert answer.source is Source.NVML_COUNTER
    assert answer.idle_j is None
    assert "not been seen idle" in answer.idle_reason


def test_serving_does_not_wait_for_a_call_of_two_seconds(fake, twin):
    device = NvmlDevice(fake.uuids[0])
    plane = PowerPlane([device], shape=twin.shape)
    plane.start()
    plane.admit("a", 100)
    fake.set_faults(Faults(slow_s=2.0, slow_functions=["nvmlDeviceGetFieldValues"]))
    time.sleep(0.2)
    before = time.monotonic()
    for _ in range(20):
        plane.on_step(Step(before, time.monotonic(), (WorkShare("a", 0, 1, 100),)))
    assert plane.finish("a") is not None
    assert time.monotonic() - before < 1.0
    fake.set_faults(Faults())
    plane.stop()
    assert plane.status().slow_calls >= 1


def test_reset_counters_and_stuck_power_are_lived_with(fake, twin):
    device = NvmlDevice(fake.uuids[0])
    plane = PowerPlane([device], shape=twin.shape, idle_w=112.0)
    fake.set_load(twin.demand(decode_work(64, 500)))
    fake.set_faults(Faults(stuck_sensor=True))
    plane.admit("a", 100)

    def pass_time(seconds):
        end = time.monotonic() + seconds
        while (begin := time.monotonic()) < end:
            time.sleep(0.03)
            plane.on_step(Step(begin, time.monotonic(), (WorkShare("a", 0, 1, 100),)))
            plane.telemetry.tick()

    plane.telemetry.tick()
    before = device.sample().energy_j
    pass_time(0.5)
    moved = device.sample().energy_j - before
    books = plane.status().books
    assert books.counter_j == pytest.approx(moved, abs=60.0)
    fake.reset_counter()
    pass_time(0.4)
    books = plane.status().books
    assert books.counter_resets == 1
    assert books.closure_error_j == pytest.approx(0.0, abs=1e-6)
    device.close()


def test_the_engine_step_records_fit(simulated, twin, clock):
    plane = plane_of(simulated, twin, clock)
    plane.telemetry.tick()
    plane.admit("a", 100)
    started = clock()
    clock.sleep(0.02)
    plane.on_step(StepRecord(1, started, clock(), (RequestWork("a", 100, 0, 100),)))
    assert plane.finish("a").prefill_j > 0


class Rig:
    """A controller with its parts in reach."""

    def __init__(self, devices, clock, governor, pools=(Pool.HIGH,), row=None, period=0.1):
        self.clock = clock
        self.period = period
        self.telemetry = Telemetry(devices, lambda sample, foreign: None, clock=clock)
        self.actuator = Actuator(devices, None, clock=clock)
        self.engine = EngineView(running=8, kv_tokens=4000, output_tokens_per_s=500.0)
        gpus = [GpuControl(device.info, governor, pool) for device, pool in zip(devices, pools)]
        self.controller = Controller(
            gpus,
            self.telemetry,
            Inputs(lambda now: self.engine, lambda: Slo(1.0, 0.05)),
            LocalActuator(self.actuator),
            mode=Mode.ENFORCE,
            row=row,
            clock=clock,
        )

    def turn(self, count=1, sample=True):
        for _ in range(count):
            self.clock.sleep(self.period)
            self.actuator.tick()
            if sample:
                self.telemetry.tick()
            self.controller.tick()


def test_lost_telemetry_releases_clocks_and_keeps_the_cap(simulated, clock, monkeypatch):
    rig = Rig([simulated], clock, StaticGovernor(1005, Bounds(power_limit_w=450.0)))
    rig.turn(3)
    state = simulated.board.state
    assert (state.lock_max_mhz, state.limit_w) == (1005, 450.0)
    rig.turn(15, sample=False)
    assert (state.lock_max_mhz, state.limit_w) == (None, 450.0)
    assert "telemetry lost" in rig.controller.gpus[0].reason


def test_a_lost_device_is_told_once_and_read_again_later(simulated, clock, monkeypatch):
    alarms = []
    telemetry = Telemetry([simulated], lambda *_: None, clock=clock, on_alarm=alarms.append)
    telemetry.tick()
    read, sample = simulated.read, simulated.sample

    def lost():
        raise DeviceLostError("gone")

    monkeypatch.setattr(simulated, "read", lost)
    monkeypatch.setattr(simulated, "sample", lost)
    for _ in range(5):
        telemetry.tick()
    assert len(alarms) == 1
    assert telemetry.lost_samples == 5
    assert telemetry.latest(simulated.info.uuid) is None
    monkeypatch.setattr(simulated, "read", read)
    monkeypatch.setattr(simulated, "sample", sample)
    telemetry.tick()
    assert telemetry.latest(simulated.info.uuid) is not None


def test_a_governor_that_fails_gives_driver_default(simulated, clock):
    class Broken:
        name = "broken"

        def decide(self, observation):
            raise ZeroDivisionError("oops")

    rig = Rig([simulated], clock, Broken())
    rig.controller.gpus[0].asked = Setpoint(1005)
    rig.turn()
    assert simulated.board.state.lock_max_mhz is None
    assert any("oops" in alarm for alarm in rig.controller.alarms)


def test_a_lost_lease_is_taken_again(simulated, clock):
    rig = Rig([simulated], clock, StaticGovernor(1005))
    rig.turn(2)
    rig.actuator.restore_all("operator")
    assert simulated.board.state.lock_max_mhz is None
    rig.turn(15)
    assert simulated.board.state.lock_max_mhz == 1005


def test_an_absent_actuator_does_not_stop_the_loop(simulated, clock, monkeypatch):
    rig = Rig([simulated], clock, StaticGovernor(1005))

    def absent():
        raise ActuatorUnavailableError("no powerd")

    monkeypatch.setattr(rig.controller._actuator, "acquire", absent)
    rig.turn(30)
    assert not rig.controller.leased
    assert list(rig.controller.alarms) == ["actuator: no powerd"]


def test_the_row_brakes_and_relaxes_by_pool(twin, clock):
    devices = [SimulatedDevice(twin, ordinal=ordinal, clock=clock, exact_sensor=True) for ordinal in range(2)]
    row = RowControl(1080.0, RowBudget(reaction_s=0.3, relax_dwell_s=1.0), t2=0.9, meter_s=0.1)
    rig = Rig(devices, clock, DefaultGovernor(), (Pool.HIGH, Pool.LOW), row, period=0.05)
    high, low = (device.board.state for device in devices)

    def load(batch, seconds):
        for _ in range(int(seconds / 0.05)):
            for device in devices:
                device.on_step(decode_work(batch, 500), clock(), clock() + 0.05)
            rig.turn()

    load(64, 1.0)
    assert row.state >= RowState.T2_LOW
    assert low.lock_max_mhz is not None
    assert low.lock_max_mhz < 0.8 * 1980
    assert high.lock_max_mhz is None or high.lock_max_mhz > low.lock_max_mhz
    for device in devices:
        device.quiet(clock())
    rig.turn(200)
    assert row.state is RowState.NORMAL
    assert (high.lock_max_mhz, low.lock_max_mhz) == (None, None)
    assert rig.controller.admit_low_priority


def test_enforcing_over_nvml_with_ignored_sets_does_not_believe_itself(fake, clock):
    device = NvmlDevice(fake.uuids[0], control=True)
    fake.set_load(fake.twin.demand(decode_work(64, 500)))
    telemetry = Telemetry([device], lambda *_: None)
    actuator = LocalActuator(Actuator([device], None))
    controller = Controller(
        [GpuControl(device.info, StaticGovernor(1005))],
        telemetry,
        Inputs(lambda now: None, lambda: None),
        actuator,
        mode=Mode.ENFORCE,
    )
    fake.set_faults(Faults(ignore_sets=True))
    telemetry.tick()
    controller.tick()
    assert controller.gpus[0].asked.sm_clock_mhz is None
    assert controller.outcomes["ignored"] == 1
    fake.set_faults(Faults())
    controller.stop()
    device.close()


def test_the_loop_skips_what_it_missed_and_survives_errors():
    calls, errors, enough = [], [], threading.Event()

    def work():
        calls.append(time.monotonic())
        if len(calls) == 1:
            time.sleep(0.08)
        if len(calls) == 2:
            raise RuntimeError("once")
        if len(calls) >= 4:
            enough.set()

    loop = Periodic("test", 0.02, work, errors.append)
    loop.start()
    assert enough.wait(10)
    loop.stop()
    assert loop.skipped >= 3
    assert errors == ["test: RuntimeError: once"]
    assert loop.failed == 1


def test_devices_by_name(clock, twin):
    (device,) = open_devices("simulated:a100-sxm", twin.shape, clock=clock)
    assert device.info.method is Method.SIMULATED
    assert device.info.limits.max_w == 400.0
    assert len(open_devices("simulated", twin.shape, count=2, clock=clock)) == 2
    with pytest.raises(ValueError, match="known GPUs"):
        open_devices("simulated:abacus", twin.shape)
    with pytest.raises(ValueError, match="unknown power device"):
        open_devices("abacus", twin.shape)


def test_two_devices_add_up(twin, clock):
    pair = replace(twin, tensor_parallel=2)
    devices = [SimulatedDevice(pair, ordinal=ordinal, clock=clock, exact_sensor=True) for ordinal in range(2)]
    plane = PowerPlane(devices, shape=twin.shape, clock=clock)
    plane.telemetry.tick()
    ids = serve(plane, clock)
    for request_id in ids:
        plane.finish(request_id)
    for _ in range(6):
        clock.sleep(0.05)
        plane.telemetry.tick()
    total = sum(device.board.state.energy_j for device in devices)
    assert plane.status().books.counter_j == pytest.approx(total, rel=0.02)
