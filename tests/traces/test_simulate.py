"""The simulator: jumping equals stepping, runs repeat, and nothing is lost: no request, no joule."""

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import traces.simulate_governor
from bench.simulation import CONV, measure
from engine.block_pool import BlockPool
from engine.engine import Engine
from engine.request import Request, SamplingParams
from engine.scheduler import Scheduler, SchedulerConfig
from power.attribution import Attributor
from power.books import EnergySample, Meter
from power.engine_view import EngineTracker
from power.governors import EngineView, Observation, PhaseAwareGovernor, Setpoint, Slo, SloSlackGovernor
from power.governors.prediction import asked_tokens_per_s
from power.idle import IdleBaseline
from power.quantities import Method, Scope, Source
from power.simulated import SimulatedDevice, simulated_twin
from power.twin import StepWork
from power.work import WorkModel, step_work
from traces.decode_arithmetic import predict_decode
from traces.request import TraceRequest
from traces.simulate import simulate
from traces.simulate_board import VirtualGpu
from traces.simulate_governor import QuickSloSlack
from traces.simulate_policy import SimulationPolicy
from traces.simulate_recorded import RecordedStep, replay_steps
from traces.simulate_request import SimulatedRequest, prompt_ids
from traces.simulate_server import SimulatedServer, batch_key
from traces.simulate_settings import SimulationSettings, kv_blocks
from traces.twin_executor import drawn, shares_of
from traces.twin_step import PreparedTwin, decode_numbers
from traces.virtual_clock import VirtualClock
from traces.workload import Workload

SMALL = SimulationSettings(model="qwen3-0.6b", max_model_len=4096)
LARGE = SimulationSettings(max_model_len=4096)
GOLDEN = (0.012555142615, 0.007050132940, 330.128686837)
GOVERNORS = ("default", "slo_slack", "phase_aware")


def requests(count, seed=0, rate=8.0, longest=600, prefixes=False):
    rng = random.Random(seed)
    found, now = [], 0.0
    for _ in range(count):
        now += rng.expovariate(rate)
        blocks = tuple(rng.randrange(3) for _ in range(rng.randrange(1, 5))) if prefixes else ()
        size = 64 * len(blocks) + rng.randrange(1, longest)
        found.append(
            TraceRequest(now, size, rng.randrange(1, 200), prefix_ids=blocks, block_tokens=64 if blocks else None)
        )
    return found


def workload(*arguments, **options):
    return Workload(requests(*arguments, **options), "drawn", "synthetic")


def run(governor="slo_slack", *, jump=True, load=None, options=LARGE, seed=0):
    policy = SimulationPolicy(governor, governor=governor)
    return simulate(load or workload(150), policy, options, jump=jump, seed=seed)


def stamps(outcome):
    return [(r.first_token_s, r.last_token_s, r.output_tokens, r.cached_tokens) for r in outcome.result.records]


def same(mine, theirs):
    assert stamps(mine) == stamps(theirs)
    assert mine.result.device == theirs.result.device or mine.result.device.energy_j == theirs.result.device.energy_j
    assert mine.timeline.column("energy_j").tolist() == theirs.timeline.column("energy_j").tolist()
    assert mine.result.device.time_at_clock_s == theirs.result.device.time_at_clock_s
    assert mine.result.device.clock_changes == theirs.result.device.clock_changes
    assert mine.figures["steps"] == theirs.figures["steps"]
    for one, other in zip(mine.result.records, theirs.result.records):
        assert one.energy_j == pytest.approx(other.energy_j, rel=1e-9)


@pytest.mark.parametrize("governor", GOVERNORS)
def test_jumping_over_decode_steps_gives_what_stepping_gives_bit_for_bit(governor):
    jumped, stepped = run(governor), run(governor, jump=False)
    assert jumped.figures["jumped_steps"] > 0.3 * jumped.figures["steps"]
    assert stepped.figures["jumped_steps"] == 0
    same(jumped, stepped)


def test_jumping_is_exact_with_prefix_hits_and_under_preemption():
    load = workload(120, prefixes=True)
    mine, theirs = run("default", load=load), run("default", load=load, jump=False)
    assert any(record.cached_tokens for record in mine.result.records)
    same(mine, theirs)
    tight = [
        server_run(jump=jump, blocks=150, load=requests(60, rate=50.0, prefixes=True), prefixes=True)
        for jump in (True, False)
    ]
    assert tight[0] == tight[1]
    pressed = [server_run(jump=jump, blocks=60) for jump in (True, False)]
    assert pressed[0][1] > 0
    assert pressed[0] == pressed[1]


def server_run(*, jump, blocks, on_batch=None, load=None, config=None, prefixes=False):
    """A bare server with a small pool: (request, first, last) of each request, preemptions, joules."""
    twin = PreparedTwin.of(simulated_twin("h100-sxm", "qwen3-0.6b"))
    gpu = VirtualGpu(twin, VirtualClock())
    done = []
    server = SimulatedServer(
        gpu,
        config or SchedulerConfig(max_num_seqs=32, max_num_batched_tokens=256, max_model_len=1200),
        BlockPool(blocks, 16, prefix_caching=prefixes),
        lambda request, idle_j: done.append((request.number, request.first_s, request.last_s)),
        jump=jump,
        on_batch=on_batch,
    )
    for number, trace in enumerate(load or requests(60, rate=200.0, longest=200)):
        server.submit(SimulatedRequest(number, trace, trace.output_tokens, share_prefixes=prefixes))
    until = 0.0
    while server.busy:
        until += 0.1
        server.advance(until)
    server.check()
    server.pool.check_cache_integrity()
    assert server.pool.num_used == 0
    assert server.ledger.closure_error_j(gpu.energy_j) == pytest.approx(0.0, abs=1e-6)
    return done, server.scheduler.stats().preemptions, gpu.energy_j


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1.0, 20.0, 300.0]), st.sampled_from([40, 90, 400]))
def test_jumping_is_exact_for_any_load_and_pool(seed, rate, blocks):
    load = requests(25, seed, rate, longest=300)
    assert server_run(jump=True, blocks=blocks, load=load) == server_run(jump=False, blocks=blocks, load=load)


def test_the_same_seed_gives_the_same_run_and_another_seed_another():
    # A seed draws the latency of each change of the clock, which tells where it carries a change over a step's end: a
    # light load lets the governor make some.
    light = workload(60, rate=3.0)
    same(run(load=light), run(load=light))
    assert run(load=light).result.device.clock_changes > 0
    assert len({run(load=light, seed=seed).result.device.energy_j for seed in range(4)}) > 1


@pytest.mark.parametrize("governor", GOVERNORS)
def test_every_request_and_every_joule_is_accounted_for(governor):
    outcome = run(governor, load=workload(150, rate=2.0))
    device, figures = outcome.result.device, outcome.figures
    assert [record.index for record in outcome.result.records] == list(range(150))
    assert all(record.output_tokens == record.requested_output_tokens for record in outcome.result.records)
    requests_j = sum(record.energy_j for record in outcome.result.records)
    assert requests_j + device.idle_j == pytest.approx(device.energy_j, rel=1e-9)
    assert abs(figures["closure_error_j"]) < 1e-6
    assert outcome.timeline.column("energy_j").sum() == pytest.approx(device.energy_j, rel=1e-9)
    parts = ("prefill_j", "decode_j", "request_idle_j", "unclaimed_idle_j")
    assert sum(figures[part] for part in parts) == pytest.approx(device.energy_j, rel=1e-9)


def test_golden_run():
    """One request alone on an H100: 512 tokens of prompt, 101 of answer; the twin, worked out step by step."""
    twin = simulated_twin("h100-sxm", "llama-3.1-8b")
    outcome = run("default", load=Workload([TraceRequest(1.0, 512, 101)], "one", "synthetic"))
    (record,) = outcome.result.records
    prefill = twin.predict(StepWork(512, 1, 512, 512 * 256.0), 1980)
    decodes = [twin.predict(StepWork(decode_sequences=1, decode_kv_tokens=513 + n), 1980) for n in range(100)]
    assert record.ttft_s == pytest.approx(prefill.duration_s, rel=1e-9)
    assert record.tpot_s == pytest.approx(sum(step.duration_s for step in decodes) / 100, rel=1e-9)
    assert record.energy_j == pytest.approx(prefill.energy_j + sum(step.energy_j for step in decodes), rel=0.08)
    assert (record.ttft_s, record.tpot_s, record.energy_j) == pytest.approx(GOLDEN, rel=1e-6)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 4096), st.integers(0, 8), st.integers(0, 256), st.integers(0, 200_000),
    st.sampled_from([345, 900, 1200, 1410, 1980]), st.sampled_from([("llama-3.1-8b", 1), ("llama-3.1-70b", 8)]),
)  # fmt: skip
def test_the_prepared_twin_is_the_twin(prefill, prompts, decodes, cached, clock, model):
    twin = simulated_twin("h100-sxm", model[0], tensor_parallel=model[1])
    prepared = PreparedTwin.of(twin)
    prompts = max(prompts, 1) if prefill else 0
    work = StepWork(prefill, prompts, prefill, prefill * prefill / 2, decodes, cached if decodes else 0)
    assert prepared.predict(work, clock) == twin.predict(work, clock)
    if decodes:
        plain = twin.predict(StepWork(decode_sequences=decodes, decode_kv_tokens=cached), clock)
        numbers = decode_numbers(prepared, WorkModel.of(twin.gpu, twin.shape), decodes)
        seconds, power = predict_decode(prepared.numbers, numbers, float(cached), float(clock))
        assert seconds == pytest.approx(plain.duration_s, rel=1e-12)
        assert power == pytest.approx(plain.power_w, rel=1e-12)


def test_the_virtual_gpu_draws_what_the_live_board_draws():
    """Same steps at the same clock on `power.board` (10 ms pieces) and on ours (a step a piece)."""
    twin = simulated_twin("h100-sxm", "llama-3.1-8b")
    clock, device_clock = VirtualClock(), VirtualClock()
    gpu = VirtualGpu(PreparedTwin.of(twin), clock)
    device = SimulatedDevice(twin, clock=device_clock, exact_sensor=True)
    rng = random.Random(3)
    gpu.lock_clocks(345, 1410)
    device.lock_clocks(345, 1410)
    gpu.rest(0.1)
    device_clock.move_to(0.1)
    device.read()
    for _ in range(3000):
        prefill = rng.randrange(1, 2000) if rng.random() < 0.05 else 0
        work = StepWork(prefill, bool(prefill), prefill, prefill * prefill / 2, 40, 40 * rng.randrange(100, 2000))
        step = twin.predict(work, gpu.clock_mhz())
        started = gpu.time_s
        gpu.step(step.duration_s, step.power_w, gpu.clock_mhz())
        device.on_step(work, started, gpu.time_s)
    assert gpu.energy_j == pytest.approx(device.board.state.energy_j, rel=0.01)
    assert gpu.read().temperature_c == pytest.approx(device.board.state.temperature_c, abs=1.0)


def test_a_power_limit_pulls_the_clock_until_power_fits():
    twin = PreparedTwin.of(simulated_twin("h100-sxm", "llama-3.1-8b"))
    gpu = VirtualGpu(twin, VirtualClock())
    gpu.set_power_limit(400.0)
    for _ in range(200):
        clock = gpu.clock_mhz()
        step = twin.predict(StepWork(2048, 1, 2048, 2048 * 1024.0), clock)
        gpu.step(step.duration_s, step.power_w, clock)
    gpu.update_sensor()
    gpu.step(step.duration_s, twin.predict(StepWork(2048, 1, 2048, 2048 * 1024.0), gpu.clock_mhz()).power_w, clock)
    assert gpu.clock_mhz() < 1500
    assert gpu.update_sensor() == pytest.approx(400.0, rel=0.05)


def test_the_ledger_shares_as_the_attributor_does():
    """Production infers step energy from a counter; given every step's energy exactly, both share alike."""
    twin = PreparedTwin.of(simulated_twin("h100-sxm", "llama-3.1-8b"))
    gpu = VirtualGpu(twin, VirtualClock())
    steps, booked, lives = [], {}, {}

    def on_batch(batch, result):
        last, work = server.executor.last, shares_of(batch)
        assert last.total == step_work(work)
        steps.append((result.started_s, result.ended_s, work, last.joules))
        for share in work:
            lives.setdefault(share.request_id, [result.started_s, None])

    def on_finish(request, idle_j):
        booked[request.request_id] = (request.prefill_j, request.decode_j, idle_j)
        lives[request.request_id][1] = request.last_s

    config = SchedulerConfig(max_model_len=4096)
    server = SimulatedServer(
        gpu, config, BlockPool(4000, 16, prefix_caching=False), on_finish, jump=False, on_batch=on_batch
    )
    for number, trace in enumerate(requests(40, rate=4.0)):
        server.submit(SimulatedRequest(number, trace, trace.output_tokens))
    while server.busy:
        server.advance(server.clock.now_s + 0.2)
    meter = Meter(Method.SIMULATED, Source.TWIN, Scope.GPU, 0.0, window_s=1e-9)
    idle_w = twin.idle_power_w(active=True)
    attributor = Attributor(meter, WorkModel.of(twin.gpu, twin.shape), IdleBaseline(configured_w=idle_w))
    now, counter = 0.0, 0.0

    def look(time_s, energy_j, power_w):
        """A counter moves somewhere between two looks: with one just before, at the end of the step."""
        attributor.on_sample(EnergySample(time_s - 1e-10, counter, power_w))
        attributor.on_sample(EnergySample(time_s, energy_j, power_w))

    attributor.on_sample(EnergySample(now, counter, idle_w))
    for started, ended, work, joules in steps:
        if started > now:
            look(started, counter + idle_w * (started - now), idle_w)
            counter += idle_w * (started - now)
        for share in work:
            attributor.admit(share.request_id, started)
        attributor.on_step(started, ended, work)
        look(ended, counter + joules, joules / (ended - started))
        counter += joules
        now = ended
        for request_id, (_, left) in lives.items():
            if left == ended:
                attributor.retire(request_id, ended)
    look(now + 0.1, counter + 0.1 * idle_w, idle_w)
    found = {figure.request_id: figure for figure in attributor.settled()}
    assert found.keys() == booked.keys()
    for request_id, (prefill_j, decode_j, idle_j) in booked.items():
        figure = found[request_id]
        assert figure.prefill_j == pytest.approx(prefill_j, rel=1e-6)
        assert figure.decode_j == pytest.approx(decode_j, rel=1e-6)
        assert figure.idle_j == pytest.approx(idle_j, rel=0.05)
    assert attributor.books.closure_error_j == pytest.approx(0.0, abs=1e-6)


def test_the_view_is_the_trackers_view():
    """The same run through `EngineTracker`, share by share, and through the simulator's own bookkeeping."""
    tracker = EngineTracker(max_running=256, max_step_tokens=2048)
    twin = PreparedTwin.of(simulated_twin("h100-sxm", "llama-3.1-8b"))
    gpu = VirtualGpu(twin, VirtualClock())
    seen = []

    def on_batch(batch, result):
        work = shares_of(batch)
        for scheduled in batch.requests:
            tracker.admit(
                scheduled.request.request_id, scheduled.request.num_prompt_tokens, scheduled.request.arrival_s
            )
        tracker.on_step(result.started_s, result.ended_s, work)

    server = SimulatedServer(
        gpu,
        SchedulerConfig(max_model_len=4096),
        BlockPool(4000, 16, prefix_caching=False),
        lambda request, idle_j: seen.append(request) or tracker.finish(request.request_id, request.last_s),
        jump=False,
        on_batch=on_batch,
    )
    for number, trace in enumerate(requests(80, rate=6.0)):
        server.submit(SimulatedRequest(number, trace, trace.output_tokens))
    now = 0.0
    compared = 0
    while server.busy:
        now += 0.2
        server.advance(now)
        mine, theirs = server.view.view(server.clock.now_s), tracker.view(server.clock.now_s)
        if mine is None or theirs is None or mine.waiting_tokens or not mine.running:
            continue
        compared += 1
        for name in EngineView.__struct_fields__:
            one, other = getattr(mine, name), getattr(theirs, name)
            if name != "waiting":
                assert one == (other if other is None or name == "phase" else pytest.approx(other, rel=1e-9)), name
    assert compared > 20


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 300), st.integers(1, 1500), st.integers(0, 6000), st.floats(0, 12_000),
    st.one_of(st.none(), st.floats(10, 5000)), st.integers(0, 109), st.floats(0.5, 2.0), st.floats(0, 60),
    st.sampled_from([(1.0, 0.05), (0.3, 0.02), (2.0, 0.2)]),
)  # fmt: skip
def test_the_compiled_governor_predicts_and_chooses_as_the_plain_one_bit_for_bit(
    running, context, backlog, prompts, outputs, place, correction, step_tokens, limits
):
    twin = PreparedTwin.of(simulated_twin("h100-sxm", "llama-3.1-8b"))
    clocks = twin.gpu.clocks_mhz
    engine = EngineView(
        running=running, kv_tokens=running * context, waiting=1 if backlog else 0, waiting_tokens=backlog,
        oldest_wait_s=0.1, prompt_tokens_per_s=prompts, output_tokens_per_s=outputs, prompt_p99_tokens=1500,
        step_tokens=step_tokens,
    )  # fmt: skip
    observation = Observation(100.0, clocks, None, current=Setpoint(clocks[place]), engine=engine, slo=Slo(*limits))
    plain, quick = SloSlackGovernor(twin), QuickSloSlack(twin)
    asked = asked_tokens_per_s(twin, engine, clocks[place])
    assert quick.forecast(engine, clocks[place], asked, correction) == plain.forecast(
        engine, clocks[place], asked, correction
    )
    assert quick.choose(observation, engine, Slo(*limits), correction) == plain.choose(
        observation, engine, Slo(*limits), correction
    )
    if running or step_tokens >= 1.0:
        assert quick.expected_step_s(engine, clocks[place]) == plain.expected_step_s(engine, clocks[place])


@pytest.mark.parametrize("governor", ["slo_slack", "phase_aware"])
def test_a_run_under_the_compiled_governor_is_the_run_under_the_plain_one(monkeypatch, governor):
    load = workload(60, rate=3.0)
    quick = run(governor, load=load)
    monkeypatch.setattr(traces.simulate_governor, "QuickSloSlack", SloSlackGovernor)
    monkeypatch.setattr(traces.simulate_governor, "QuickPhaseAware", PhaseAwareGovernor)
    plain = run(governor, load=load)
    assert quick.result.device.clock_changes > 0
    same(quick, plain)


class _Timed:
    """A model that takes real time and draws one fixed token."""

    def __init__(self):
        self.stamps = []

    def run(self, batch):
        from engine.batch import StepResult

        started = time.monotonic()
        time.sleep(0.0005 + 0.00001 * batch.num_tokens)
        ended = time.monotonic()
        self.stamps.append((started, ended))
        return StepResult(drawn(batch), started, ended)


def test_the_step_times_of_a_real_run_give_its_batches():
    """A real engine in real time with a small pool (preemptions happen); its stamps replayed give every batch again."""
    config = SchedulerConfig(max_num_seqs=12, max_num_batched_tokens=128, max_model_len=400)
    rng = random.Random(5)
    lives = [(rng.random() * 0.15, rng.randrange(1, 200), rng.randrange(1, 60)) for _ in range(40)]
    lives.sort()
    timed = _Timed()
    engine = Engine(Scheduler(config, BlockPool(48, 16)), timed)
    steps, batches, arrivals = [], [], []
    schedule = engine.scheduler.schedule

    def noted():
        moment = time.monotonic()
        batch = schedule()
        if batch.requests:
            steps.append(moment)
            batches.append(batch_key(batch))
        return batch

    engine.scheduler.schedule = noted
    zero = time.monotonic()
    while lives or engine.has_work:
        while lives and time.monotonic() - zero >= lives[0][0]:
            _, prompt, answer = lives.pop(0)
            number = len(arrivals)
            arrivals.append((f"r{number}", (number,) * prompt, answer, time.monotonic()))
            name, ids, most, moment = arrivals[-1]
            engine.add(Request(name, ids, SamplingParams(max_tokens=most, ignore_eos=True), moment))
        if engine.has_work:
            engine.step()
    recorded = [RecordedStep(moment, *stamp) for moment, stamp in zip(steps, timed.stamps)]
    again = [
        Request(name, ids, SamplingParams(max_tokens=most, ignore_eos=True), moment)
        for name, ids, most, moment in arrivals
    ]
    assert engine.scheduler.stats().preemptions > 0
    assert replay_steps(again, recorded, config, BlockPool(48, 16)) == batches
    with pytest.raises(ValueError, match="parted"):
        replay_steps(again[:0], recorded, config, BlockPool(48, 16))


def test_prompts_share_exactly_what_their_prefix_ids_say():
    first = prompt_ids(0, TraceRequest(0.0, 200, 5, prefix_ids=(7, 8, 9, 10), block_tokens=64))
    second = prompt_ids(1, TraceRequest(0.0, 300, 5, prefix_ids=(7, 8, 11, 12, 13), block_tokens=64))
    assert len(first) == 200
    assert len(second) == 300
    shared = next(place for place, (one, other) in enumerate(zip(first, second)) if one != other)
    assert shared == 128
    assert prompt_ids(0, TraceRequest(0.0, 3, 5)) != prompt_ids(1, TraceRequest(0.0, 3, 5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gpu": "h101"}, "no profile"),
        ({"model": "llama-9"}, "no model shape"),
        ({"model": "llama-3.1-70b"}, "does not fit"),
        ({"servers": 0}, "at least one server"),
        ({"control_s": 0.0}, "above 0"),
    ],
)
def test_impossible_settings_say_what_to_do(change, message):
    with pytest.raises(ValueError, match=message):
        run(options=SimulationSettings(**change))


def test_policies_are_checked():
    with pytest.raises(ValueError, match="clock_mhz goes with governor static"):
        SimulationPolicy("x", governor="static")
    twin = simulated_twin("h100-sxm", "llama-3.1-8b")
    with pytest.raises(ValueError, match="unexpected keyword"):
        SimulationPolicy("x", governor="slo_slack", governor_options={"margins": 1.0}).make_governor(twin)
    with pytest.raises(ValueError, match="has no request"):
        simulate(Workload([], "empty"), SimulationPolicy("x"), LARGE)


@pytest.mark.parametrize("model", ["llama-3.2-1b", "qwen3-0.6b", "qwen3-4b", "qwen3-8b", "qwen3-14b", "smollm2-135m"])
def test_presets_fit_and_run(model):
    outcome = run("default", load=workload(5), options=SimulationSettings(model=model))
    assert all(record.completed for record in outcome.result.records)
    assert kv_blocks(simulated_twin("h100-sxm", model)) > 1000


def test_big_models_run_on_several_gpus():
    outcome = run("default", load=workload(5), options=SimulationSettings(model="llama-3.1-70b", tensor_parallel=4))
    assert outcome.figures["gpus"] == 4
    assert outcome.result.device.average_power_w > 4 * 100


def test_requests_beyond_the_window_are_counted_not_lost():
    load = [TraceRequest(0.0, 100, 5), TraceRequest(0.1, 4000, 500), TraceRequest(0.2, 100, 0)]
    outcome = run("default", load=Workload(load, "long", "synthetic"))
    assert [record.outcome.value for record in outcome.result.records] == ["completed", "dropped", "dropped"]
    assert outcome.result.info.counts == {"dropped": 2}


def test_the_benchmark_measures_a_sound_run():
    found = measure("slo_slack", 300, None, 0.2)
    assert found.requests == 300
    assert found.requests_per_cpu_s > 0
    assert 0 < found.jumped_share < 1
    assert CONV.endswith(".csv")
