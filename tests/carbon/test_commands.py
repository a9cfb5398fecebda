"""`gridserve carbon ...` and the benchmark on files."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import httpx
import numpy as np
import pytest

import carbon.evaluator.endpoints
from bench import _carbon_data
from bench.carbon import main as bench_main
from bench.carbon import solve_time
from carbon.energy_model import EnergyModel
from carbon.quality_book import Duel, QualityBook
from carbon.state import LearnedState, load_state
from serving.cli import main

START = datetime(2025, 1, 1, tzinfo=UTC)
AT = "2025-03-11T12:20Z"


@pytest.fixture
def recording(tmp_path):
    hours = 72 * 24
    values = 200 + 80 * np.sin(np.arange(hours) * 2 * np.pi / 24)
    rows = [f"{(START + timedelta(hours=i)).isoformat()},{v:.2f}" for i, v in enumerate(values)]
    path = tmp_path / "GB.csv"
    path.write_text("\n".join(["start,g_per_kwh", *rows]) + "\n")
    return path


@pytest.fixture
def learned(tmp_path):
    book = QualityBook(3)
    for name, shares in {"easy": (0.6, 0.55), "hard": (0.3, 0.1)}.items():
        for level, share in enumerate(shares, start=1):
            won = round(400 * share)
            book.record([Duel(name, level, 1)] * won + [Duel(name, level, -1)] * (400 - won))
    LearnedState(EnergyModel(3), book).save(tmp_path / "learned")
    return tmp_path / "learned"


def run(capsys, *arguments):
    status = main(["carbon", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_now_shows_value_and_provenance(capsys, recording):
    status, out, _ = run(capsys, "now", "--zone", "GB", "--csv", recording, "--at", AT)
    assert status == 0
    assert "200.0 gCO2e/kWh in GB, average lifecycle (consumption), measured" in out
    assert "tier live" in out
    status, out, _ = run(capsys, "now", "--zone", "GB", "--csv", recording, "--at", AT, "--json")
    assert json.loads(out)["source"] == "file:GB.csv"
    status, out, _ = run(capsys, "now", "--zone", "X", "--constant", 40, "--json")
    assert (json.loads(out)["kind"], json.loads(out)["g_per_kwh"]) == ("assumed", 40.0)


def test_now_says_when_the_value_is_old_or_missing(capsys, recording):
    late = "2025-03-14T00:40Z"
    status, out, _ = run(capsys, "now", "--zone", "GB", "--csv", recording, "--at", late)
    assert status == 0
    assert "tier stale, 40 min past its interval" in out
    status, _, err = run(capsys, "now", "--zone", "GB", "--csv", recording)
    assert status == 1
    assert "no intensity for GB" in err
    status, out, _ = run(capsys, "now", "--zone", "GB", "--csv", recording, "--json")
    assert status == 1
    assert json.loads(out)["tier"] == "unknown"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("now", "--zone", "GB", "--csv", "nothing.csv"), "no such file"),
        (("now", "--zone", "GB", "--constant", "1", "--at", "noon"), "not an ISO time"),
        (("now", "--zone", "GB", "--constant", "1", "--at", "2025-01-01T00:00"), "needs an offset"),
        (("now", "--zone", "GB", "--constant", "9999"), "outside"),
        (("forecast", "--zone", "GB", "--constant", "1", "--hours", "0"), "between 1 and 168"),
        (("now", "--zone", "CISO", "--feed", "eia"), "EIA_API_KEY"),
        (("report", "nothing.csv"), "no such file"),
    ],
)
def test_mistakes_are_one_line(capsys, monkeypatch, arguments, words):
    monkeypatch.delenv("EIA_API_KEY", raising=False)
    status, _, err = run(capsys, *arguments)
    assert status == 1
    assert words in err
    assert err.count("\n") == 1


def test_forecast_uses_the_model_and_states_its_error(capsys, recording):
    status, out, _ = run(capsys, "forecast", "--zone", "GB", "--csv", recording, "--at", AT, "--hours", 6)
    assert status == 0
    assert "seasonal model on file:GB.csv" in out
    assert "held-out weeks" in out
    assert len(out.splitlines()) == 8
    status, out, _ = run(capsys, "forecast", "--zone", "GB", "--csv", recording, "--at", AT, "--hours", 6, "--json")
    points = json.loads(out)["points"]
    assert points[0]["start"].startswith("2025-03-11T13:00")
    assert points[0]["low"] <= points[0]["g_per_kwh"] <= points[0]["high"]
    status, _, err = run(capsys, "forecast", "--zone", "GB", "--csv", recording, "--at", "2025-01-20T00:00Z")
    assert status == 1
    assert "8 weeks" in err


@pytest.mark.parametrize("strategy", ["sprout", "classed", "budgeted"])
def test_optimize_shows_a_mix_for_every_class(capsys, recording, learned, strategy):
    common = ("optimize", "--zone", "GB", "--csv", recording, "--at", AT, "--state", learned, "--strategy", strategy)
    status, out, _ = run(capsys, *common)
    assert status == 0
    assert "easy" in out
    assert "expected saving" in out
    status, out, _ = run(capsys, *common, "--json")
    plan = json.loads(out)
    assert set(plan["mixes"]) == {"easy", "hard"}
    assert all(sum(mix["probabilities"]) == pytest.approx(1.0) for mix in plan["mixes"].values())
    if strategy != "sprout":
        assert plan["static_saving"] is not None
        assert plan["mixes"]["easy"]["saving"] > 0.5


def test_optimize_without_evidence_says_what_is_missing(capsys, recording):
    status, out, _ = run(capsys, "optimize", "--zone", "GB", "--csv", recording, "--at", AT)
    assert status == 0
    assert "prompts a level are judged" in out


def test_evaluate_judges_remembers_and_counts_its_cost(capsys, tmp_path, monkeypatch):
    def served(request):
        body = json.loads(request.content)
        brief = "briefly" in str(body["messages"][0]["content"])
        reply = {
            "choices": [{"message": {"content": "42" if brief else "it might be 41"}}],
            "usage": {"prompt_tokens": 8, "completion_tokens": 2},
            "energy": {"energy_joules": 3.0, "grams_co2e": 0.001},
        }
        return httpx.Response(200, json=reply)

    plain = httpx.AsyncClient
    monkeypatch.setattr(
        carbon.evaluator.endpoints.httpx,
        "AsyncClient",
        lambda **settings: plain(**{**settings, "transport": httpx.MockTransport(served)}),
    )
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(f'{{"class": "math", "prompt": "q{i}", "answer": "42"}}\n' for i in range(40)))
    common = ("evaluate", prompts, "--url", "http://127.0.0.1:1/v1", "--model", "m", "--state", tmp_path / "s")
    status, out, _ = run(capsys, *common, "--exact")
    assert status == 0
    assert "keeps" in out
    assert "J, 0." in out
    state = load_state(tmp_path / "s", 3)
    assert state.quality.estimate("math").mean[1] > 0.8
    status, out, _ = run(capsys, *common, "--judge-model", "m", "--max-judge-calls", 1, "--json")
    assert status == 1
    status, _, err = run(capsys, "evaluate", tmp_path / "none.jsonl", *common[2:], "--exact")
    assert status == 1
    assert "none.jsonl" in err
    prompts.write_text('{"prompt": "no class"}\n')
    status, _, err = run(capsys, *common, "--exact")
    assert "line 1: needs a class" in err


def test_report_sums_a_ledger_and_names_what_is_missing(capsys, tmp_path):
    ledger = tmp_path / "ledger.csv"
    ledger.write_text(
        "finished_at,tenant,model,prompt_class,directive,tier,prompt_tokens,output_tokens,energy_j,prefill_j,decode_j,"
        "operational_g,market_g,embodied_g\n"
        "2025-03-04T12:10:00Z,a,m,math,L1,live,100,50,1000,200,800,0.03,0.0,0.01\n"
        "2025-03-04T12:20:00Z,b,m,math,L0,unknown,100,50,1000,200,800,,0.0,0.01\n"
    )
    status, out, err = run(capsys, "report", ledger, "--by", "tenant", "directive")
    assert status == 0
    assert "a L1" in out
    assert "1 requests lack" in err
    status, out, _ = run(capsys, "report", ledger, "--by", "hour", "--json")
    (line,) = json.loads(out)
    assert line["total_g"] == pytest.approx(0.05)
    status, _, err = run(capsys, "report", ledger, "--by", "colour")
    assert "cannot report by" in err


def test_the_benchmark_refuses_a_folder_without_data(capsys, tmp_path):
    assert bench_main(["--data", str(tmp_path)]) == 1
    assert "holds no" in capsys.readouterr().err


def test_solving_a_week_for_fifty_classes_is_a_plan_not_a_stub():
    timed = solve_time(repeats=1)
    assert set(timed) >= {"fair: best", "pooled: best"}
    assert all(value > 0.0 for value in timed.values())


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_benchmark_writes_its_figures(carbon_data, tmp_path, capsys):
    out = tmp_path / "carbon.json"
    options = ["--zones", "TX", "--repeats", "1", "--folds", "2", "--draws", "3", "--judge-draws", "1"]
    assert bench_main(["--data", str(carbon_data), "--json", str(out), *options]) == 0
    figures = json.loads(out.read_text())
    rows = {row["policy"]: row for row in figures["rows"]}
    assert rows["classed 0.75"]["score"]["saving"] > 50.0
    assert figures["judging"]["TX"]["schedule_reproduced"]
    assert figures["published"]["TX"]["saving"] == pytest.approx(52.0, abs=0.1)
    assert "| SPROUT, published |" in capsys.readouterr().out
    assert _carbon_data.HOURS == 720
