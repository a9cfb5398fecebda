"""Figures of a run against formulas worked by hand, keys against vllm's, and files against what was written."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest

from traces.metrics import busiest_second, percentile_word
from traces.record import Outcome, RequestRecord
from traces.report import report_lines, send_lag_warning
from traces.results import DeviceEnergy, RunInfo, RunResult
from traces.results_io import read_run, write_run

# Keys of `vllm bench serve --save-result` (0.33.0) that a run of ours has too.
VLLM_KEYS = [
    "date",
    "backend",
    "model_id",
    "num_prompts",
    "request_rate",
    "burstiness",
    "duration",
    "completed",
    "failed",
    "total_input_tokens",
    "total_output_tokens",
    "request_throughput",
    "request_goodput",
    "output_throughput",
    "total_token_throughput",
    "max_output_tokens_per_s",
    "max_concurrent_requests",
    *(
        f"{figure}_{metric}_ms"
        for metric in ("ttft", "tpot", "itl", "e2el")
        for figure in ("mean", "median", "std", "p50", "p90", "p95", "p99")
    ),
]


def record(index: int, scheduled: float, sent: float, *stamps: float, **fields: object) -> RequestRecord:
    values: dict[str, object] = {
        "outcome": Outcome.COMPLETED,
        "requested_input_tokens": 10,
        "requested_output_tokens": len(stamps),
        "recorded_output_tokens": len(stamps),
        "input_tokens": 10,
        "output_tokens": len(stamps),
        "first_token_s": stamps[0] if stamps else None,
        "last_token_s": stamps[-1] if stamps else None,
        "itl_s": tuple(np.diff(stamps).tolist()),
    }
    return RequestRecord(
        index=index,
        request_id=f"r{index}",
        scheduled_s=scheduled,
        sent_s=sent,
        **(values | fields),  # type: ignore[arg-type]
    )


RECORDS = [
    record(0, 0.0, 0.1, 0.3, 0.4, 0.7, energy_j=6.0, energy_method="measured", directive="L1", co2e_g=0.5),
    record(1, 1.0, 1.0, 1.5, energy_j=2.0, energy_method="measured", directive="L0", co2e_g=0.25),
    record(2, 2.0, 2.0, 2.2, 2.3, outcome=Outcome.FAILED, error="HTTP 503: overloaded"),
    record(3, 3.0, 3.5, 4.5, 5.5, energy_j=4.0, energy_method="simulated", co2e_g=0.25),
]


def run(**fields: object) -> RunResult:
    info = RunInfo(
        kind="replay",
        date="20260101-000000",
        backend="openai",
        model_id="m",
        trace="t",
        trace_obtained="synthetic",
        output_lengths="recorded",
        prompts="token ids, exact",
        steps=("read",),
    )
    values: dict[str, object] = {"info": info, "duration_s": 8.0, "records": RECORDS}
    return RunResult(**(values | fields))  # type: ignore[arg-type]


def test_latencies_follow_their_formulas() -> None:
    figures = run().summary()
    assert figures["mean_ttft_ms"] == pytest.approx(1e3 * np.mean([0.2, 0.5, 1.0]))
    assert figures["mean_e2el_ms"] == pytest.approx(1e3 * np.mean([0.6, 0.5, 2.0]))
    assert figures["mean_tpot_ms"] == pytest.approx(1e3 * np.mean([0.4 / 2, 1.0 / 1]))
    assert figures["mean_itl_ms"] == pytest.approx(1e3 * np.mean([0.1, 0.3, 1.0]))
    assert figures["std_ttft_ms"] == pytest.approx(1e3 * np.std([0.2, 0.5, 1.0]))
    assert figures["p90_ttft_ms"] == pytest.approx(1e3 * np.percentile([0.2, 0.5, 1.0], 90))
    assert figures["mean_ttft_scheduled_ms"] == pytest.approx(1e3 * np.mean([0.3, 0.5, 1.5]))
    assert figures["mean_send_lag_ms"] == pytest.approx(1e3 * np.mean([0.1, 0.0, 0.0, 0.5]))


def test_counts_and_throughputs() -> None:
    figures = run().summary()
    assert (figures["completed"], figures["failed"], figures["num_prompts"]) == (3, 1, 4)
    assert (figures["total_input_tokens"], figures["total_output_tokens"]) == (30, 6)
    assert figures["request_throughput"] == 3 / 8
    assert figures["total_token_throughput"] == 36 / 8
    assert figures["request_rate"] == 4 / 3
    assert figures["prompt_token_mismatches"] == 0


def test_goodput_needs_every_limit_and_counts_one_token_as_tpot_zero() -> None:
    figures = run(slo_ms={"ttft": 600.0, "tpot": 150.0}).summary()
    assert figures["request_goodput"] == 1 / 8
    assert figures["slo_attainment"] == 1 / 4
    assert run(slo_ms={"ttft": 600.0}).summary()["request_goodput"] == 2 / 8


def test_all_of_vllms_keys_are_there() -> None:
    assert set(VLLM_KEYS) <= set(run().summary())


def test_what_is_missing_is_none_with_a_reason() -> None:
    figures = run().summary()
    assert figures["request_goodput"] is None
    assert figures["missing"]["request_goodput"] == "no SLO was given"
    assert figures["missing"]["energy_j"] == "no device was read over the window of the run"
    assert set(figures["missing"]) == {key for key, value in figures.items() if value is None}
    nothing = run(records=[]).summary()
    assert nothing["mean_ttft_ms"] is None
    assert nothing["missing"]["mean_ttft_ms"] == "no completed request has this figure"


def test_energy_sums_only_where_every_request_has_it() -> None:
    figures = run().summary()
    assert figures["attributed_energy_j"] == 12.0
    assert figures["attributed_energy_methods"] == ["measured", "simulated"]
    assert figures["attributed_j_per_request"] == 4.0
    assert figures["directives"] == {"L1": 1, "L0": 1}
    assert run(records=[*RECORDS, record(4, 4.0, 4.0, 5.0)]).summary()["attributed_energy_j"] is None


def test_device_energy_gives_the_headline_figures() -> None:
    device = DeviceEnergy("simulated", "twin", 7200.0, idle_j=100.0)
    figures = run(device=device).summary()
    assert figures["energy_wh"] == 2.0
    assert figures["energy_j_per_request"] == 2400.0
    assert figures["energy_j_per_output_token"] == 1200.0
    assert figures["energy_delay_product_js"] == pytest.approx(2400.0 * np.mean([0.6, 0.5, 2.0]))
    with pytest.raises(ValueError, match="measured, estimated, simulated"):
        DeviceEnergy("guessed", "x", 1.0)


def test_a_warm_up_is_left_out_and_stated() -> None:
    info = msgspec.structs.replace(run().info, measure_from_s=1.0)
    figures = run(info=info).summary()
    assert (figures["num_prompts"], figures["completed"], figures["duration"]) == (3, 2, 7.0)


def test_the_busiest_second_counts_chunks_and_active_requests() -> None:
    made = [record(0, 0.0, 0.0, 0.5, 0.6, 1.5), record(1, 0.0, 0.2, 0.9, 1.1)]
    assert busiest_second(made) == (3.0, 2)
    assert busiest_second([]) is None


def test_a_run_reads_back_as_it_was_written(tmp_path: Path) -> None:
    made = run(slo_ms={"ttft": 600.0}, device=DeviceEnergy("measured", "counter", 10.0), percentiles=[50.0, 99.9])
    write_run(made, tmp_path / "out")
    again = read_run(tmp_path / "out")
    assert again.info == made.info
    assert again.device == made.device
    assert again.summary() == made.summary()
    assert [(r.request_id, tuple(r.itl_s), r.outcome) for r in again.records] == [
        (r.request_id, tuple(r.itl_s), r.outcome) for r in RECORDS
    ]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "requests.parquet",
        "result.json",
        "summary.csv",
    ]
    with (tmp_path / "out/summary.csv").open(newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert float(row["p99.9_ttft_ms"]) == pytest.approx(made.summary()["p99.9_ttft_ms"])
    assert row["energy_method"] == "measured"
    assert pq.read_table(tmp_path / "out/requests.parquet").num_rows == 4
    document = json.loads((tmp_path / "out/result.json").read_text())
    assert {key: document[key] for key in made.summary()} == made.summary()


def test_reading_what_is_no_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give a folder that"):
        read_run(tmp_path)
    (tmp_path / "result.json").write_text('{"schema": "other/2"}')
    with pytest.raises(ValueError, match="other/2"):
        read_run(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="must be a folder"):
        write_run(run(), tmp_path / "file")


def test_bad_runs_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown SLO ttfb"):
        run(slo_ms={"ttfb": 1.0})
    with pytest.raises(ValueError, match="above 0 s"):
        run(duration_s=0.0)
    with pytest.raises(ValueError, match="warm-up of 9 s must end before"):
        run(info=msgspec.structs.replace(run().info, measure_from_s=9.0))


def test_the_report_prints_formulas_and_methods() -> None:
    text = "\n".join(report_lines(run(device=DeviceEnergy("simulated", "twin", 7200.0), aborted=True)))
    assert "Mean TTFT (ms):                          566.67" in text
    assert "= (e2el - ttft) / (output tokens - 1)" in text
    assert "Energy of the devices is:                simulated" in text
    assert "1 failed: HTTP 503: overloaded" in text
    assert "stopped before its end" in text


def test_late_sends_are_pointed_out() -> None:
    assert send_lag_warning({"p99_send_lag_ms": 30.0}) is None
    assert "could not hold the schedule" in (send_lag_warning({"p99_send_lag_ms": 900.0}) or "")


def test_percentile_words() -> None:
    assert [percentile_word(p) for p in (50.0, 99.9)] == ["50", "99.9"]
