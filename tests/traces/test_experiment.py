"""Experiments: the file, the grid, the checks that fail a run, resuming, and the report in a real browser."""

import json
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest

from serving.cli import main
from traces.experiment import (
    SHIPPED,
    Experiment,
    TraceSource,
    Variant,
    Zone,
    cells,
    data_folder,
    fingerprint,
    read_experiment,
    workload_of,
)
from traces.experiment_checks import check_equal_load, check_outcome, problems_of
from traces.experiment_plots import COLOURS, colours
from traces.experiment_report import REPORT, RESULTS_CSV, RESULTS_JSON, write_report
from traces.experiment_run import run_cell, run_experiment
from traces.experiment_summary import Summary, figure
from traces.record import Outcome
from traces.results_io import read_run
from traces.simulate_directives import Directives, learn
from traces.simulate_policy import CarbonFollowSettings, DirectiveSettings, SimulationPolicy
from traces.simulate_regrade import follows_grid
from traces.simulate_settings import SimulationSettings

SPEC = {
    "name": "tiny",
    "seed": 0,
    "duration_s": 20,
    "rate_rps": 3.0,
    "classes": [
        {
            "task": "facts",
            "input_tokens": {"kind": "lognormal", "median": 60, "p99": 300},
            "output_tokens": {"kind": "lognormal", "median": 40, "p99": 200},
            "levels": {"L1": {"output_ratio": 0.3, "preferred_share": 0.4}},
        }
    ],
}


def small(**change):
    fields = {
        "name": "small",
        "title": "A small experiment",
        "description": "For tests.",
        "baseline": "default",
        "policies": (
            SimulationPolicy("default"),
            SimulationPolicy("static 1200", governor="static", clock_mhz=1200),
            SimulationPolicy("slo_slack", governor="slo_slack"),
        ),
        "traces": (TraceSource("tiny", spec=SPEC),),
        "seeds": (1, 2, 3),
        "loads": (0.5, 1.0),
        "study": "dvfs",
    }
    return Experiment(**(fields | change))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished small experiment and its folder."""
    out = tmp_path_factory.mktemp("experiment")
    experiment = small()
    rows = run_experiment(experiment, out, jobs=1)
    write_report(experiment, rows, out)
    return experiment, rows, out


def test_the_grid_is_complete_and_in_order(done):
    experiment, rows, _ = done
    assert len(rows) == 3 * 2 * 3 == len(list(cells(experiment)))
    assert [(row["variant"], row["seed"], row["policy"]) for row in rows[:4]] == [
        ("0.5x", 1, "default"),
        ("0.5x", 1, "static 1200"),
        ("0.5x", 1, "slo_slack"),
        ("0.5x", 2, "default"),
    ]


def test_results_stand_in_one_schema_as_json_csv_and_parquet(done):
    _, rows, out = done
    kept = json.loads((out / RESULTS_JSON).read_text())
    assert len(kept["rows"]) == len(rows)
    row = kept["rows"][0]
    for key in ("num_prompts", "completed", "mean_ttft_ms", "p99_tpot_ms", "energy_j_per_request", "slo_attainment"):
        assert row[key] is not None
    assert row["energy_method"] == "simulated"
    assert len((out / RESULTS_CSV).read_text().splitlines()) == len(rows) + 1
    folders = sorted((out / "runs").iterdir())
    assert len(folders) == len(rows)
    run = read_run(folders[0])
    assert run.info.kind == "simulation"
    assert all(record.energy_method == "simulated" for record in run.records)


def test_a_second_run_makes_nothing_again_and_a_changed_policy_only_its_own(done):
    experiment, rows, out = done
    stamps = {path: path.stat().st_mtime_ns for path in (out / "runs").glob("*/cell.json")}
    progress = []
    again = run_experiment(experiment, out, jobs=1, on_progress=lambda *counts: progress.append(counts))
    assert progress == [(18, 18)]
    assert again == rows
    assert stamps == {path: path.stat().st_mtime_ns for path in (out / "runs").glob("*/cell.json")}
    slower = SimulationPolicy("static 1200", governor="static", clock_mhz=1005)
    changed = msgspec.structs.replace(experiment, policies=(experiment.policies[0], slower))
    before, after = (
        {cell: fingerprint(version, cell, None) for cell in cells(changed)} for version in (experiment, changed)
    )
    assert {cell.policy for cell in before if before[cell] != after[cell]} == {"static 1200"}


def test_results_are_the_same_in_another_process_pool(done, tmp_path):
    experiment, rows, _ = done
    few = msgspec.structs.replace(experiment, seeds=(1,), loads=(1.0,))
    parallel = run_experiment(few, tmp_path, jobs=2)
    alone = [row for row in rows if row["seed"] == 1 and row["variant"] == "1x"]
    for mine, theirs in zip(parallel, alone):
        for key in ("policy", "energy_j", "p99_ttft_ms", "p99_tpot_ms", "device_clock_changes", "steps"):
            assert mine[key] == theirs[key]


def test_one_run_priced_for_several_zones_is_what_each_zones_own_run_gives(tmp_path):
    zones = tuple(Zone(name, bundled=f"intensity_synthetic_{name}.csv") for name in ("flat", "solar", "wind"))
    one = small(zones=zones, loads=(1.0,), seeds=(1,))
    rows = run_experiment(one, tmp_path, jobs=1)
    assert len(rows) == 9
    for cell, row in zip(cells(one), rows):
        alone = run_cell(one, cell)
        mine, theirs = (
            [(record.index, record.energy_j, record.co2e_g) for record in found]
            for found in (alone.result.records, read_run(tmp_path / "runs" / cell.key).records)
        )
        assert mine == theirs
        assert row["device_co2e_g"] == alone.result.device.co2e_g
        assert row["device_mean_intensity_g_per_kwh"] == alone.result.device.mean_intensity_g_per_kwh
        assert row["device_intensity_source"] == f"intensity_synthetic_{cell.zone}.csv"


def test_policies_that_follow_the_grid_are_simulated_for_each_zone():
    assert not follows_grid(SimulationPolicy("a", directives=DirectiveSettings("static")))
    assert follows_grid(SimulationPolicy("a", directives=DirectiveSettings("sprout")))
    assert follows_grid(SimulationPolicy("a", carbon_follow=CarbonFollowSettings()))


def test_savings_are_taken_seed_by_seed_at_equal_load(done):
    experiment, rows, _ = done
    summary = Summary(rows, experiment.baseline)
    place = ("tiny", "1x", None)
    base, static = summary.at(place, "default"), summary.at(place, "static 1200")
    assert summary.saving(base).mean == 0.0
    by_hand = [
        1 - mine["energy_j_per_output_token"] / other["energy_j_per_output_token"]
        for mine, other in zip(static.rows, base.rows)
    ]
    saving = summary.saving(static)
    assert saving.mean == pytest.approx(sum(by_hand) / 3)
    assert saving.half > 0
    assert summary.best_static(place).policy == "static 1200"


def test_intervals_are_students():
    found = figure([1.0, 2.0, 3.0])
    assert (found.mean, found.half) == (2.0, pytest.approx(4.302653 / 3**0.5, rel=1e-6))
    assert figure([1.0]).half is None
    assert figure([1.0, None]) is None


def test_a_run_that_does_not_add_up_fails():
    experiment = small()
    outcome = run_cell(experiment, next(cells(experiment)))
    check_outcome(outcome)
    device = outcome.result.device

    def broken(**change):
        result = outcome.result
        fields = {"info": result.info, "duration_s": result.duration_s, "records": result.records, "device": device}
        return type(outcome)(type(result)(**(fields | change)), outcome.timeline, outcome.figures)

    more = msgspec.structs.replace(device, energy_j=device.energy_j * 1.001)
    assert "requests and idle are" in problems_of(broken(device=more))[0]
    lost = outcome.result.records[1:]
    assert any("have an end" in problem for problem in problems_of(broken(records=lost)))
    first = msgspec.structs.replace(outcome.result.records[0], outcome=Outcome.FAILED)
    assert any("neither completed" in p for p in problems_of(broken(records=[first, *lost])))
    short = msgspec.structs.replace(outcome.result.records[0], output_tokens=1)
    assert any("another length" in p for p in problems_of(broken(records=[short, *lost])))
    with pytest.raises(ValueError, match="does not add up"):
        check_outcome(broken(device=more))


def test_policies_that_met_other_requests_are_not_compared(done):
    _, rows, _ = done
    check_equal_load(rows)
    with pytest.raises(ValueError, match="was offered"):
        check_equal_load([rows[0], {**rows[1], "submitted": 1}])


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_experiments_run_on_what_is_bundled(path):
    """One cell of each policy, a tenth of a minute of traffic: files, settings and fallbacks are sound."""
    experiment = read_experiment(path)
    assert len(experiment.seeds) >= 3
    first = next(cells(experiment))
    trace = experiment.trace_named(first.trace)
    assert next(iter(workload_of(trace, 1, 1.0, 0.0, None))).input_tokens > 0
    short = msgspec.structs.replace(trace, span_s=6.0, windows=None, start_s=60.0)
    experiment = msgspec.structs.replace(experiment, traces=(short,))
    policies = {cell.policy: cell for cell in reversed(list(cells(experiment)))}
    for cell in policies.values():
        check_outcome(run_cell(experiment, cell))


def test_bad_files_say_what_is_wrong(tmp_path):
    good = read_experiment(Path("dvfs.yaml"))
    assert good.name == "dvfs"
    path = tmp_path / "bad.yaml"
    for text, message in (
        ("name: x", "missing required field"),
        ("name: [", "bad.yaml"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_experiment(path)
    with pytest.raises(ValueError, match=r"shipped experiments: dvfs\.yaml"):
        read_experiment(tmp_path / "none.yaml")
    with pytest.raises(ValueError, match="is none of the policies"):
        small(baseline="nothing")
    with pytest.raises(ValueError, match="distinct names"):
        small(policies=(SimulationPolicy("default"), SimulationPolicy("default")))
    with pytest.raises(ValueError, match="training_seed"):
        small(training_seed=1)
    with pytest.raises(ValueError, match="loads or variants"):
        small(variants=(Variant("one"),))
    with pytest.raises(ValueError, match="is no folder"):
        data_folder(str(tmp_path / "nowhere"))


def test_directives_shape_lengths_only_where_the_workload_says_so():
    source = TraceSource("tiny", spec=SPEC)
    twin = SimulationSettings().make_twin()
    knowledge = learn(workload_of(source, 1000, 1.0, 0.0, None), twin)
    directives = Directives(knowledge, DirectiveSettings("static", mix=(0.0, 1.0)), None, seed=1)
    requests = list(workload_of(source, 1, 1.0, 0.0, None))
    for number, request in enumerate(requests):
        level, tokens, method = directives.choose(number, request, request.arrival_s)
        assert (level, method) == ("L1", "synthetic")
        assert tokens == request.shaped[0].output_tokens
    liked = sum(request.preferred_level == "L1" for request in requests)
    assert directives.figures()["quality_relative"] == pytest.approx(liked / (len(requests) - liked))
    bare = [msgspec.structs.replace(request, shaped=(), preferred_level=None) for request in requests]
    with pytest.raises(ValueError, match="no output length at level L1"):
        directives.choose(0, bare[0], 0.0)
    with pytest.raises(ValueError, match="to learn directives from"):
        learn(bare, twin)
    with pytest.raises(ValueError, match="follow the grid"):
        Directives(knowledge, DirectiveSettings("sprout"), None, seed=1)


def test_a_judged_row_that_is_drawn_again_is_no_new_evidence():
    twin = SimulationSettings().make_twin()
    requests = list(workload_of(TraceSource("tiny", spec=SPEC), 1000, 1.0, 0.0, None))
    judged = [msgspec.structs.replace(request, judged_row=row) for row, request in enumerate(requests)]
    once, often, unknown = (learn(rows, twin) for rows in (judged, judged * 5, requests * 5))
    assert (often.costs, often.shares) == (once.costs, once.shares)
    assert sum(estimate.observations for estimate in often.quality) == len(requests)
    assert sum(estimate.observations for estimate in unknown.quality) == 5 * len(requests)


def test_the_command_writes_a_report_and_says_what_it_used(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("GRIDSERVE_SHARED_DATA", raising=False)
    path = tmp_path / "tiny.yaml"
    text = msgspec.json.encode(small(loads=(1.0,), seeds=(1,), policies=small().policies[:2]))
    path.write_bytes(text)
    assert main(["experiment", str(path), "--out", str(tmp_path / "out"), "--jobs", "1", "--json"]) == 0
    printed = capsys.readouterr()
    assert Path(json.loads(printed.out)["report"]).is_file()
    assert "bundled synthetic traces" in printed.err
    assert main(["experiment", str(path), "--check"]) == 0
    assert "2 runs" in capsys.readouterr().out
    assert main(["experiment", "nothing.yaml"]) == 1


def test_the_simulate_command_takes_policy_files(tmp_path, capsys):
    trace = Path(__file__).parents[2] / "traces" / "data" / "chat_hour.jsonl"
    policies = Path(__file__).parents[2] / "policies"
    for policy in ("default", "static:1200", str(policies / "save-energy.yaml")):
        out = tmp_path / policy.replace("/", "_").replace(":", "_")
        arguments = ["simulate", str(trace), "--policy", policy, "--out", str(out), "--limit", "40", "--json"]
        assert main(arguments) == 0
        figures = json.loads(capsys.readouterr().out)
        assert figures["completed"] == 40
        assert figures["energy_method"] == "simulated"
        assert read_run(out).info.kind == "simulation"
    assert main(["simulate", str(trace), "--policy", "static:fast", "--out", str(tmp_path / "x")]) == 1
    assert main(["simulate", str(trace), "--policy", "nothing", "--out", str(tmp_path / "x")]) == 1
    assert (
        main(["simulate", str(trace), "--policy", "default", "--gpus", "3", "--tensor-parallel", "2", "--out", "x"])
        == 1
    )


def test_the_report_opens_in_a_browser_without_errors(done):
    _, _, out = done
    page = (out / REPORT).read_text()
    assert page.count("data:image/png;base64,") >= 6
    assert "http://" not in page
    assert "https://" not in page
    assert "simulated" in page
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    shown = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom",
         f"file://{out / REPORT}"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in shown.stderr
    assert "A small experiment" in shown.stdout


def test_many_static_clocks_share_a_scale_and_no_two_policies_a_colour():
    clocks = [f"static {mhz}" for mhz in (705, 855, 1005, 1200, 1410, 1605)]
    many = colours(["default", *clocks, "slo_slack", "phase_aware"])
    assert len(set(many.values())) == 9
    assert colours(["default", "slo_slack"]) == {name: many[name] for name in ("default", "slo_slack")}
    assert set(colours(["default", *clocks[:2], "static mix"]).values()) <= set(COLOURS)
