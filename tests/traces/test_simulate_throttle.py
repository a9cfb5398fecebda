"""The prefill throttle in a simulation: the same objects, on the simulated engine's scheduler."""

import random
from pathlib import Path

import pytest

from serving.policy.load import load_policy
from serving.policy.power_section import PrefillThrottle
from serving.policy_simulation import translated
from traces.request import TraceRequest
from traces.simulate import simulate
from traces.simulate_policy import RowSettings, SimulationPolicy, ThrottleSettings
from traces.simulate_settings import SimulationSettings
from traces.workload import Workload

ROW = RowSettings(budget_w=250.0, t1=0.9, t2=0.95, relax_dwell_s=30.0)


def load():
    rng, now, found = random.Random(3), 0.0, []
    for number in range(60):
        now += rng.expovariate(3.0)
        found.append(TraceRequest(now, 3000 if number % 3 == 0 else 200, rng.randrange(50, 200)))
    return Workload(found, "drawn", "synthetic")


def run(throttle, *, jump=True):
    policy = SimulationPolicy("braked", row=ROW, throttle=throttle)
    return simulate(load(), policy, SimulationSettings(max_model_len=4096), jump=jump)


def slowest_token_s(outcome):
    """Mean time of a token, of the answer that went slowest."""
    records = [record for record in outcome.result.records if record.output_tokens > 1]
    return max((record.last_token_s - record.first_token_s) / (record.output_tokens - 1) for record in records)


def test_under_the_brake_answers_under_way_go_on_faster_and_prompts_wait_longer():
    plain, throttled = run(None), run(ThrottleSettings(256))
    assert slowest_token_s(throttled) < 0.8 * slowest_token_s(plain)
    assert plain.result.device.energy_j == pytest.approx(throttled.result.device.energy_j, rel=0.2)
    stepped = run(ThrottleSettings(256), jump=False)
    assert [record.last_token_s for record in stepped.result.records] == [
        record.last_token_s for record in throttled.result.records
    ]


def test_a_policy_files_throttle_is_simulated():
    policy = load_policy(Path("policies/power-capped-row.yaml")).policy
    assert translated(policy).policy.throttle is None
    power = policy.spec.power.model_copy(update={"prefill_throttle": PrefillThrottle(min_step_tokens=99, relax_s=2.0)})
    assert translated(policy, power=power).policy.throttle == ThrottleSettings(99, 1.0, 2.0)
