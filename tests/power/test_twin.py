"""The twin against published measurements, and the shape of its physics."""

import csv
import os
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from power.board import Board
from power.device import ClockReason
from power.model_shape import PRESETS, model_shape
from power.profile import EngineProfile, load_engine, load_profile, profile_names
from power.published import (
    SPLITWISE_DECODE_STRETCH,
    SPLITWISE_PREFILL_STRETCH,
    cap_stretch,
    phase_rows,
    serving_residuals,
    serving_state,
)
from power.twin import Twin, combine, decode_work, prefill_work, smooth_max, steady_state, voltage_ratio
from power.work import WorkShare, step_work

PROMPT_TOKENS = 205
BARE = EngineProfile(name="bare", source="", fitted_on="", host_s=0.0, per_sequence_s=0.0)


def test_every_leaderboard_row_of_llama_8b_is_met_within_ten_percent():
    found = [
        residual
        for residual in serving_residuals(load_profile("h100-sxm"), load_engine("vllm-0.11"), PROMPT_TOKENS)
        if residual.row.role == "fit"
    ]
    assert [residual.row.batch for residual in found] == [8, 16, 32, 64, 96, 128, 192, 256, 384, 512]
    for residual in found:
        assert residual.worst_percent < 10.0, residual


@pytest.mark.parametrize(("prompt_tokens", "batch"), [(2048, 1), (512, 16), (8192, 1)])
def test_half_the_cap_slows_prefill_and_not_decode_as_splitwise_has_it(prompt_tokens, batch):
    prefill, decode = cap_stretch(
        load_profile("h100-sxm"), BARE, load_engine("splitwise-h100"), prompt_tokens=prompt_tokens, batch=batch
    )
    assert prefill == pytest.approx(SPLITWISE_PREFILL_STRETCH, rel=0.10)
    assert decode == pytest.approx(SPLITWISE_DECODE_STRETCH, rel=0.10)


@pytest.mark.parametrize(("prompt_tokens", "batch"), [(2048, 1), (512, 4), (256, 8)])
def test_half_the_cap_at_splitwise_own_configuration(prompt_tokens, batch):
    """Its simulator's capped start state: Llama-2-70B, 8 GPUs, batches of up to 2048 tokens, one engine for both."""
    engine = load_engine("splitwise-h100")
    prefill, decode = cap_stretch(load_profile("h100-sxm"), engine, engine, prompt_tokens=prompt_tokens, batch=batch)
    assert prompt_tokens * batch == 2048
    assert prefill == pytest.approx(SPLITWISE_PREFILL_STRETCH, rel=0.05)
    assert decode == pytest.approx(SPLITWISE_DECODE_STRETCH, rel=0.01)


@pytest.mark.parametrize("batch", [8, 32, 64, 128, 256, 512])
def test_joules_per_token_are_u_shaped_with_the_minimum_in_the_middle(twin, batch):
    top = twin.gpu.clock_max_mhz
    energy = {
        clock: serving_state(twin, batch, PROMPT_TOKENS, clock_mhz=clock).joules_per_token
        for clock in range(405, top + 1, 45)
    }
    best = min(energy, key=energy.get)
    assert 0.5 <= best / top <= 0.75
    assert energy[405] > 1.02 * energy[best]
    assert energy[top] > 1.2 * energy[best]


def test_a_lower_clock_hardly_slows_a_small_decode_and_slows_prefill_in_proportion(twin):
    top = twin.gpu.clock_max_mhz
    assert twin.stretch(decode_work(1, 500), 0.6 * top) < 1.08
    assert twin.stretch(prefill_work(4096), 0.6 * top) == pytest.approx(1 / 0.6, rel=0.1)


def test_a100_mean_power_is_that_of_the_measured_runs():
    gpu, engine = load_profile("a100-sxm"), load_engine("splitwise-a100")
    for row in phase_rows():
        if row.gpu != "a100-sxm" or row.mean_power_fraction is None:
            continue
        twin = Twin(gpu, engine, model_shape("llama-2-70b"), row.tensor_parallel)
        prompt = twin.predict(prefill_work(row.prompt_tokens * row.batch, row.batch), gpu.clock_max_mhz)
        token = twin.predict(decode_work(row.batch, row.prompt_tokens + 64), gpu.clock_max_mhz)
        mean = (prompt.energy_j + 127 * token.energy_j) / (prompt.duration_s + 127 * token.duration_s)
        assert mean / gpu.limit_default_w == pytest.approx(row.mean_power_fraction, rel=0.10)
        assert 1000 * token.duration_s == pytest.approx(row.token_ms, rel=0.10)


def shared_data():
    named = os.environ.get("GRIDSERVE_SHARED_DATA")
    root = Path(__file__).resolve().parents[2]
    return [Path(named)] if named else [root / "../shared/data", root / "../../shared/data"]


def test_the_published_medians_are_those_of_the_source_file():
    source = next((base / "traces/splitwise_sim/perf_model.csv" for base in shared_data() if base.is_dir()), None)
    if source is None or not source.exists():
        pytest.skip("shared data is not here; set GRIDSERVE_SHARED_DATA")
    times = {}
    with source.open() as file:
        for row in csv.DictReader(file):
            if row["model"] == "llama2-70b" and row["token_size"] == "128":
                key = (row["hardware"], row["tensor_parallel"], row["prompt_size"], row["batch_size"])
                times.setdefault(key, []).append((float(row["prompt_time"]), float(row["token_time"])))
    for row in phase_rows():
        hardware = row.gpu.replace("-sxm", "-80gb")
        found = times[hardware, str(row.tensor_parallel), str(row.prompt_tokens), str(row.batch)]
        assert sorted(prompt for prompt, _ in found)[len(found) // 2] == pytest.approx(row.prompt_ms, rel=0.02)
        assert sorted(token for _, token in found)[len(found) // 2] == pytest.approx(row.token_ms, rel=0.02)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(sorted(PRESETS)),
    st.integers(0, 4096),
    st.integers(0, 256),
    st.integers(1, 8000),
    st.floats(0.2, 0.95),
)
def test_time_falls_and_power_rises_with_the_clock(twin, shape, prompt, batch, context, fraction):
    work = combine([prefill_work(prompt, 1 if prompt else 0), decode_work(batch, context)])
    if work.empty:
        return
    own = replace(twin, shape=model_shape(shape))
    top = own.gpu.clock_max_mhz
    slow, fast = own.predict(work, fraction * top), own.predict(work, (fraction + 0.05) * top)
    assert slow.duration_s >= fast.duration_s
    assert slow.power_w <= fast.power_w * 1.001
    assert slow.power_w >= own.idle_power_w(active=True)


@given(st.floats(0, 100), st.floats(0, 100), st.floats(1, 6))
def test_the_smooth_maximum_lies_between_maximum_and_sum(a, b, exponent):
    value = smooth_max(a, b, exponent)
    assert max(a, b) <= value * (1 + 1e-12)
    assert value <= (a + b) * (1 + 1e-12)


def test_voltage_is_flat_then_linear():
    assert voltage_ratio(0.3, 0.6, 0.7) == 0.7
    assert voltage_ratio(0.8, 0.6, 0.7) == pytest.approx(0.85)
    assert voltage_ratio(1.0, 0.6, 0.7) == pytest.approx(1.0)


def test_the_capped_clock_keeps_mean_power_within_the_limit(twin):
    work = prefill_work(8192)
    clock = twin.capped_clock([(1.0, work)], 500.0, twin.gpu.clock_max_mhz)
    assert twin.predict(work, clock).power_w == pytest.approx(500.0 * twin.gpu.cap_margin, rel=1e-3)
    assert twin.capped_clock([(1.0, decode_work(1, 10))], 700.0, 1980.0) == 1980.0


def test_tensor_parallel_shares_the_work_and_counts_all_boards(twin):
    pair = replace(twin, tensor_parallel=2)
    assert pair.predict(prefill_work(4096), 1980).duration_s < 0.6 * twin.predict(prefill_work(4096), 1980).duration_s
    single = steady_state(pair, 64, 200, 400, 500)
    assert single.joules_per_token == pytest.approx(single.power_w * 2 / single.tokens_per_s, rel=1e-6)


def test_step_work_of_shares():
    shares = [WorkShare("a", 100, 0, 100), WorkShare("b", 50, 0, 300), WorkShare("c", 0, 1, 700)]
    work = step_work(shares)
    assert (work.prefill_tokens, work.prefill_sequences, work.prefill_kv_tokens) == (150, 2, 400)
    assert work.prefill_pairs == pytest.approx(100 * 50 + 50 * 275)
    assert (work.decode_sequences, work.decode_kv_tokens) == (1, 700)


def test_model_shapes_have_their_published_sizes():
    sizes = {"llama-3.1-8b": 8.03e9, "llama-3.1-70b": 70.6e9, "qwen3-8b": 8.19e9, "qwen3-32b": 32.8e9}
    for name, parameters in sizes.items():
        shape = model_shape(name)
        total = shape.linear_parameters + 2 * shape.head_parameters
        assert total == pytest.approx(parameters, rel=0.01)
    assert model_shape("llama-3.1-8b").kv_bytes_per_token == 131072
    with pytest.raises(ValueError, match="known"):
        model_shape("abacus-1b")


def test_profiles_say_where_they_come_from(tmp_path):
    assert profile_names() == ["a100-sxm", "h100-sxm", "h200-sxm"]
    for name in profile_names():
        profile = load_profile(name)
        assert profile.source
        assert profile.fitted_on
        assert profile.clocks_mhz[-1] == profile.clock_max_mhz
    assert load_profile("h200-sxm").provisional
    with pytest.raises(ValueError, match="known GPUs"):
        load_profile("abacus")
    broken = tmp_path / "broken.json"
    broken.write_bytes(
        msgspec.json.encode(load_profile("h100-sxm")).replace(b'"voltage_knee":0.', b'"voltage_knee":7.')
    )
    with pytest.raises(ValueError, match="voltage_knee"):
        load_profile(str(broken))
    with pytest.raises(ValueError, match="cannot read"):
        load_profile(str(tmp_path / "absent.json"))


def board(twin, **options):
    return Board(twin, "GPU-test", exact_sensor=True, **options)


def test_the_board_caps_with_a_lag_and_tells_why(twin):
    found = board(twin)
    load = twin.demand(prefill_work(8192))
    found.advance(0.02, load)
    assert found.state.power_w > 800.0
    found.advance(3.0, load)
    assert found.state.power_w <= 700.0
    assert ClockReason.POWER_CAP in found.clock_reasons()
    found.set_limit(350.0)
    found.advance(3.05, load)
    assert found.state.power_w > 400.0
    found.advance(6.0, load)
    assert found.state.power_w == pytest.approx(350.0 * twin.gpu.cap_margin, rel=0.02)


def test_the_sensor_shows_a_short_window_every_tenth_of_a_second(twin):
    found = board(twin)
    load = twin.demand(decode_work(64, 500))
    found.advance(0.07, load)
    assert found.state.shown_power_w == pytest.approx(twin.idle_power_w(active=True))
    found.advance(0.1, None)
    assert found.state.shown_power_w == pytest.approx(twin.idle_power_w(active=True)), "the window began after the load"
    found.advance(0.2, load)
    assert found.state.shown_power_w == pytest.approx(found.state.power_w, rel=0.01)
    assert found.state.shown_energy_j == pytest.approx(found.state.energy_j, abs=0.002)
    found.advance(0.25, load)
    assert found.state.shown_energy_j < found.state.energy_j - 10.0


def test_two_idle_levels(twin):
    cold, warm = board(twin, context_live=False), board(twin)
    for each in (cold, warm):
        each.advance(10.0)
    assert cold.state.shown_average_w == pytest.approx(twin.gpu.idle_w)
    assert warm.state.shown_average_w == pytest.approx(twin.gpu.idle_w + twin.gpu.active_idle_w)


def test_a_long_rest_is_the_same_as_many_short_ones(twin):
    whole, parts = board(twin), board(twin)
    load = twin.demand(decode_work(64, 500))
    for each in (whole, parts):
        each.advance(5.0, load)
    whole.advance(1005.0)
    for second in range(6, 1006):
        parts.advance(float(second))
    assert whole.state.energy_j == pytest.approx(parts.state.energy_j, rel=1e-9)
    assert whole.state.temperature_c == pytest.approx(parts.state.temperature_c, rel=1e-6)
    assert whole.state.shown_power_w == pytest.approx(parts.state.shown_power_w)


def test_heat_follows_power_slowly_and_leaks(twin):
    found = board(twin)
    load = twin.demand(decode_work(64, 500))
    found.advance(1.0, load)
    early, first = found.state.temperature_c, found.state.power_w
    found.advance(300.0, load)
    assert found.state.temperature_c > early + 15.0
    assert found.state.power_w > first


def test_latencies_have_the_published_quantiles(twin):
    found = board(twin)
    drawn = sorted(found.draw_latency_s() for _ in range(4000))
    assert drawn[2000] == pytest.approx(0.0045, rel=0.1)
    assert drawn[3960] == pytest.approx(0.013, rel=0.2)


def test_gain_error_is_fixed_for_a_board_and_within_its_class(twin):
    gains = [Board(twin, f"GPU-{number}").gain for number in range(50)]
    assert len(set(gains)) == 50
    assert all(0.95 <= gain <= 1.05 for gain in gains)
    assert Board(twin, "GPU-1").gain == gains[1]
