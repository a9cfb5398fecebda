"""Drawn arrivals, lengths, prefixes and classes against what their spec states."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from traces.arrivals import RateWindow, arrivals, gamma_shape, hourly_windows
from traces.judged import read_judged_rows
from traces.lengths import Constant, Lognormal, Table, Uniform, distribution_from
from traces.rows import RowError
from traces.servegen import client_files, client_workload, folder_workload, read_length_windows, read_rate_windows
from traces.statistics import describe, prefix_reuse
from traces.synthesis import arrivals_for_lengths, synthesize
from traces.synthesis_spec import read_spec, spec_from

Write = Callable[..., Path]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


@pytest.mark.parametrize("cv", [0.3, 1.0, 2.5])
def test_gamma_arrivals_have_the_stated_rate_and_variation(cv: float) -> None:
    drawn = np.array(list(arrivals([RateWindow(0.0, 20_000.0, 2.0, "gamma", gamma_shape(cv))], rng())))
    gaps = np.diff(drawn)
    assert len(drawn) == pytest.approx(40_000, rel=0.04)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05)


@pytest.mark.parametrize("shape", [0.25, 0.7, 1.2])
def test_weibull_arrivals_have_the_stated_rate(shape: float) -> None:
    drawn = list(arrivals([RateWindow(0.0, 40_000.0, 2.0, "weibull", shape)], rng()))
    assert len(drawn) == pytest.approx(80_000, rel=0.08)


def test_each_hour_gets_its_own_rate_and_a_silent_one_nothing() -> None:
    windows = list(hourly_windows([1.0, 0.0, 3.0], 3 * 3600.0))
    counts = np.bincount([int(at // 3600) for at in arrivals(windows, rng())], minlength=3)
    assert counts[1] == 0
    assert counts[0] == pytest.approx(3600, rel=0.1)
    assert counts[2] == pytest.approx(3 * 3600, rel=0.1)


def test_a_day_compressed_in_time_keeps_its_rates_for_as_long_as_said() -> None:
    windows = list(hourly_windows([1.0, 2.0, 3.0], 200.0, start_s=90.0, period_s=60.0))
    assert [(window.start_s, window.end_s, window.rate_rps) for window in windows] == [
        (0.0, 30.0, 2.0),
        (30.0, 90.0, 3.0),
        (90.0, 150.0, 1.0),
        (150.0, 200.0, 2.0),
    ]
    spec = {name: value for name, value in tree().items() if name != "rate_rps"}
    spec |= {"duration_s": 4000.0, "rates_rps": [0.0, 5.0], "rates_period_s": 1000.0}
    arrived = [request.arrival_s for request in synthesize(spec_from(spec, Path()))]
    assert {int(at // 1000) for at in arrived} == {1, 3}
    assert len(arrived) == pytest.approx(10_000, rel=0.1)


def test_hours_are_hours_of_the_day_whatever_the_start() -> None:
    windows = list(hourly_windows(list(range(24)), 7200.0, start_s=22.5 * 3600))
    assert [(window.start_s, window.end_s, window.rate_rps) for window in windows] == [
        (0.0, 1800.0, 22),
        (1800.0, 5400.0, 23),
        (5400.0, 7200.0, 0),
    ]


@given(
    st.lists(st.tuples(st.floats(0.1, 500), st.floats(0, 20)), min_size=1, max_size=8),
    st.floats(0.2, 4.0),
    st.integers(0, 100),
)
def test_arrivals_increase_and_stay_in_windows_that_have_a_rate(
    parts: list[tuple[float, float]], cv: float, seed: int
) -> None:
    windows, at_s = [], 0.0
    for length_s, rate_rps in parts:
        windows.append(RateWindow(at_s, at_s + length_s, rate_rps, "gamma", gamma_shape(cv)))
        at_s += length_s
    drawn = [at for _, at in zip(range(500), arrivals(windows, rng(seed)))]
    assert drawn == sorted(drawn)
    slack = 1e-9 * at_s
    for at in drawn:
        assert any(w.rate_rps > 0 and w.start_s - slack <= at <= w.end_s + slack for w in windows)


def test_lognormal_has_the_stated_median_and_99th_percentile() -> None:
    generator = rng()
    drawn = np.array([Lognormal(1020, 4142, 1, 100_000).draw(generator) for _ in range(40_000)])
    assert np.median(drawn) == pytest.approx(1020, rel=0.03)
    assert np.percentile(drawn, 99) == pytest.approx(4142, rel=0.05)
    assert all(5 <= Lognormal(10, 400, 5, 20).draw(generator) <= 20 for _ in range(500))


def test_table_and_uniform_draw_what_they_hold() -> None:
    generator = rng()
    table = Table.of({3: 1.0, 900: 3.0})
    drawn = [table.draw(generator) for _ in range(4_000)]
    assert set(drawn) == {3, 900}
    assert drawn.count(900) == pytest.approx(3_000, rel=0.05)
    assert {Uniform(2, 4).draw(generator) for _ in range(200)} == {2, 3, 4}
    assert Constant(7).draw(generator) == 7


BAD_LENGTHS: list[tuple[Any, str]] = [
    ({"kind": "lognormal", "median": 10}, "needs p99"),
    ({"kind": "lognormal", "median": 10, "p99": 5}, "median <= p99"),
    ({"kind": "zipf"}, "unknown kind 'zipf'"),
    ({"kind": "constant", "tokens": 0}, "at least 1"),
    ({"kind": "constant", "tokens": 3, "extra": 1}, "has no extra"),
    ("many", "give a number of tokens"),
    ({"kind": "table", "probabilities": {0: 1.0}}, "none below 1"),
]


@pytest.mark.parametrize(("spec", "message"), BAD_LENGTHS)
def test_bad_lengths_say_where_and_why(spec: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"input_tokens: .*{message}"):
        distribution_from(spec, "input_tokens")


def tree(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "name": "t",
        "seed": 5,
        "duration_s": 4000,
        "rate_rps": 1.0,
        "classes": [
            {
                "task": "chat",
                "share": 3,
                "input_tokens": {"kind": "uniform", "low": 5, "high": 60},
                "output_tokens": 40,
            },
            {
                "task": "math",
                "share": 1,
                "input_tokens": 20,
                "output_tokens": 100,
                "levels": {"L1": {"output_ratio": 0.3, "ratio_cv": 0.3, "preferred_share": 0.25}},
            },
        ],
    }
    return base | changes


def test_a_spec_gives_its_classes_shares_and_levels() -> None:
    made = synthesize(spec_from(tree(), Path()))
    requests = list(made)
    assert requests == list(made)
    assert made.obtained == "synthetic"
    maths = [request for request in requests if request.task == "math"]
    assert len(requests) == pytest.approx(4_000, rel=0.1)
    assert len(maths) / len(requests) == pytest.approx(0.25, abs=0.03)
    assert np.mean([request.length_at("L1").output_tokens for request in maths]) == pytest.approx(30, rel=0.05)
    assert {request.output_tokens for request in maths} == {100}
    assert all(length.method == "synthetic" for request in maths for length in request.shaped)
    preferred = [request.preferred_level for request in maths]
    assert preferred.count("L1") / len(maths) == pytest.approx(0.25, abs=0.05)
    with pytest.raises(ValueError, match="no output length"):
        next(request for request in requests if request.task == "chat").length_at("L1")


def test_one_seed_changes_nothing_but_another_changes_all() -> None:
    same = list(synthesize(spec_from(tree(), Path())))
    other = list(synthesize(spec_from(tree(seed=6), Path())))
    assert same != other


def test_sessions_grow_and_share_their_beginning() -> None:
    part = tree()["classes"][0] | {
        "prefix": {"prompts": 3, "tokens": 128, "shared": 0.5, "block_tokens": 16, "turns_mean": 4, "think_s": 5}
    }
    made = synthesize(spec_from(tree(classes=[part], window_tokens=2048), Path()))
    requests = list(made)
    assert all(len(request.prefix_ids) == -(-request.input_tokens // 16) for request in requests)
    assert all(request.input_tokens + request.output_tokens <= 2048 for request in requests)
    by_session: dict[str, list[Any]] = {}
    for request in requests:
        by_session.setdefault(str(request.session_id), []).append(request)
    assert len(requests) / len(by_session) == pytest.approx(4, rel=0.3)
    for turns in by_session.values():
        for earlier, later in itertools.pairwise(turns):
            assert later.arrival_s - earlier.arrival_s >= 5
            assert later.input_tokens > earlier.input_tokens + earlier.output_tokens
            whole = earlier.input_tokens // 16
            assert later.prefix_ids[:whole] == earlier.prefix_ids[:whole]
    assert (prefix_reuse(made) or 0.0) > 0.5


BAD_SPECS = [
    (tree(rates_rps=[1.0]), "either rate_rps"),
    (tree(speed=1), "has no speed"),
    (tree(duration_s="long"), "duration_s must be a number"),
    (tree(started_at="2026-01-01T00:00:00"), "with an offset"),
    (tree(classes=[]), "at least one prompt class"),
    (tree(classes=[{"task": "x", "input_tokens": 1}]), r"classes\[0\] needs output_tokens"),
    (tree(rate_rps=-1.0), "at least 0"),
    (tree(rates_period_s=0), "rates_period_s must be above 0"),
    (tree(classes=[tree()["classes"][0] | {"prefix": {"turns_mean": 0.5}}]), "turns_mean must be at least 1"),
    (
        tree(classes=[tree()["classes"][0] | {"levels": {"L1": {"output_ratio": 0.5, "preferred_share": 2}}}]),
        "between 0 and 1",
    ),
]


@pytest.mark.parametrize(("spec", "message"), BAD_SPECS)
def test_bad_specs_say_where_and_why(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spec_from(spec, Path())


def test_a_spec_file_names_itself_in_errors(write: Write) -> None:
    with pytest.raises(ValueError, match=r"spec.yaml: the spec needs seed"):
        read_spec(write("name: x\n", "spec.yaml"))
    with pytest.raises(ValueError, match="not YAML"):
        read_spec(write("name: [x\n", "spec.yaml"))


JUDGED = "task,prompt,preferred_level,energy_j_l0,energy_j_l1,energy_j_l2,time_s_l0,time_s_l1,time_s_l2\n"


def test_judged_rows_give_estimated_lengths_and_keep_the_recorded_one(write: Write) -> None:
    path = write(JUDGED + 'math,"What, then?\nNow.",1,100,30,20,8.0,2.0,1.0\nmmlu,Q,0,9,9,9,4,4,1\n', "judged.csv")
    row = read_judged_rows(path)["math"][0]
    assert (row.preferred_level, row.time_ratio["L1"], row.prompt) == ("L1", 0.25, "What, then?\nNow.")
    part = tree()["classes"][0] | {"task": "math", "judged": path.name}
    request = next(iter(synthesize(spec_from(tree(classes=[part]), path.parent))))
    assert (request.judged_row, request.preferred_level, request.output_tokens) == (1, "L1", 40)
    assert [(length.output_tokens, length.method) for length in request.shaped] == [(10, "estimated"), (5, "estimated")]
    with pytest.raises(ValueError, match="no rows of task 'chat'; it has math, mmlu"):
        synthesize(spec_from(tree(classes=[tree()["classes"][0] | {"judged": path.name}]), path.parent))
    with pytest.raises(RowError, match=":2:1: column 'time_s_l0'"):
        read_judged_rows(write(JUDGED + "math,Q,0,1,1,1,0,1,1\n", "bad.csv"))


def test_public_judged_rows(shared_traces: Path) -> None:
    path = shared_traces.parent / "carbon/sprout/judged_prompts.csv.gz"
    if not path.is_file():
        pytest.skip(f"{path.name} is not here")
    rows = read_judged_rows(path)
    assert {task: len(found) for task, found in rows.items()} == {
        "alpaca": 1000,
        "math": 1000,
        "mmlu": 999,
        "naturalqa": 1000,
        "triviaqa": 1000,
        "scienceqa": 1000,
    }
    share = sum(row.preferred_level == "L0" for row in rows["alpaca"]) / 1000
    assert share == pytest.approx(0.532, abs=5e-4)


def test_lengths_of_a_file_get_arrivals(write: Write) -> None:
    path = write("num_prefill_tokens,num_decode_tokens\n100,7\n200,9\n5,0\n")
    made = arrivals_for_lengths(path, 2.0, 1.0, 1000.0, seed=1)
    requests = list(made)
    assert {(request.input_tokens, request.output_tokens) for request in requests} == {(100, 7), (200, 9)}
    assert len(requests) == pytest.approx(2000, rel=0.1)


CLIENT = "0,2.0,1.5,Weibull,0.7,0.4\n600,0,0,,0,0\n1200,1.0,1.0,Gamma,0.5,2.0\n"
DATASET = (
    '{"0": {"input_tokens": "{10: 0.5, 20: 0.5}", "output_tokens": "{1: 1.0}"}, '
    '"600": {"input_tokens": "{}", "output_tokens": "{}"}, '
    '"1200": {"input_tokens": "{30: 1.0}", "output_tokens": "{2: 1.0}"}}'
)


def test_servegen_client_by_hand(write: Write) -> None:
    trace, dataset = write(CLIENT, "chunk-4-trace.csv"), write(DATASET, "chunk-4-dataset.json")
    windows = read_rate_windows(trace)
    assert [(window.family, window.shape, window.rate_rps) for window in windows] == [
        ("weibull", 0.7, 2.0),
        ("gamma", 1.0, 0.0),
        ("gamma", 0.5, 1.0),
    ]
    requests = list(client_workload(trace, dataset, seed=3))
    first = [request for request in requests if request.arrival_s < 600]
    late = [request for request in requests if request.arrival_s >= 1200]
    assert len(first) + len(late) == len(requests)
    assert len(first) == pytest.approx(1200, rel=0.2)
    assert {request.input_tokens for request in first} == {10, 20}
    assert {request.input_tokens for request in late} == {30}
    assert client_files(trace.parent) == ((trace, dataset),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("0,x,1,,0,0\n", "column 'rate'"),
        ("0,1,1,Pareto,1,1\n", "neither Gamma nor Weibull"),
        ("0,1\n", "only 2 fields"),
    ],
)
def test_bad_servegen_rows_have_a_place(write: Write, content: str, message: str) -> None:
    with pytest.raises(RowError, match=f":2:1: .*{message}"):
        read_rate_windows(write(CLIENT.splitlines()[0] + "\n" + content, "chunk-1-trace.csv"))


def test_servegen_tables_are_never_evaluated_as_code(write: Write) -> None:
    with pytest.raises(ValueError, match="window 0"):
        read_length_windows(write('{"0": {"input_tokens": "exit()", "output_tokens": "{1: 1.0}"}}', "d.json"))


def test_public_servegen_files(shared_traces: Path) -> None:
    windows = read_rate_windows(shared_traces / "servegen/language_m-large_rate_10min_DERIVED.csv")
    rates = [window.rate_rps for window in windows]
    assert len(windows) == 2016
    assert (min(rates), max(rates)) == (pytest.approx(48.4, abs=0.05), pytest.approx(583.0, abs=0.05))
    assert sum(rates) / len(rates) == pytest.approx(195.8, abs=0.05)
    made = folder_workload(
        shared_traces / "servegen/language_m-large", 1, start_s=86_400.0, end_s=88_200.0, rate_factor=0.05
    )
    found = describe(made)
    clients = client_files(shared_traces / "servegen/language_m-large")
    expected = sum(
        window.rate_rps * 0.05 * 600.0
        for trace, _ in clients
        for window in read_rate_windows(trace)
        if 86_400.0 <= window.start_s < 88_200.0
    )
    assert found.requests == pytest.approx(expected, rel=0.15)
    assert found.first_s >= 0.0
    assert found.last_s <= 1_800.0
    assert not math.isnan(found.interarrival_cv or math.nan)
