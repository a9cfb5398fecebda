"""The readers against the public files: counts, spans and sums stated by their sources or computed apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from traces.reader import TraceFile

PUBLIC = [
    ("azure_2023/AzureLLMInferenceTrace_code.csv", "azure", 8_819, 18_059_974, 245_896, 3_435.948056),
    ("azure_2023/AzureLLMInferenceTrace_conv.csv", "azure", 19_366, 22_361_870, 4_088_665, 3_501.721937),
    ("mooncake_fast25/conversation_trace.jsonl", "mooncake", 12_031, 144_793_823, 4_122_048, 3_536.999),
    ("ragpulse/0_trace_rows1-3800.jsonl", "ragpulse", 3_800, 11_478_851, 972_475, 604_371.0),
    ("llmservingsim/RTX4090_Llama-3.1-8B/requests.jsonl", "llmservingsim", 300, 257_239, 195_753, 29.100521),
]


@pytest.mark.parametrize(("name", "layout", "rows", "input_tokens", "output_tokens", "span_s"), PUBLIC)
def test_counts_sums_and_spans(
    shared_traces: Path, name: str, layout: str, rows: int, input_tokens: int, output_tokens: int, span_s: float
) -> None:
    trace = TraceFile(shared_traces / name)
    requests = list(trace)
    assert trace.layout.name == layout
    assert len(requests) == trace.counts.rows == rows
    assert sum(request.input_tokens for request in requests) == input_tokens
    assert sum(request.output_tokens for request in requests) == output_tokens
    assert requests[0].arrival_s == 0.0
    assert requests[-1].arrival_s == pytest.approx(span_s, abs=1e-5)


def test_mooncake_blocks_cover_every_prompt_and_arrivals_are_quantised(shared_traces: Path) -> None:
    requests = list(TraceFile(shared_traces / "mooncake_fast25/conversation_trace.jsonl"))
    assert all(len(request.prefix_ids) == -(-request.input_tokens // 512) for request in requests)
    assert len({request.arrival_s for request in requests}) == 1_180


def test_ragpulse_keeps_the_shape_of_the_day(shared_traces: Path) -> None:
    trace = TraceFile(shared_traces / "ragpulse/0_trace_rows1-3800.jsonl")
    zero_s = trace.origin.seconds_of_day
    assert zero_s is not None
    by_hour = [0] * 24
    for request in trace:
        by_hour[int((request.arrival_s + zero_s) // 3600) % 24] += 1
    assert (by_hour[15], by_hour[3]) == (280, 14)
    assert (max(by_hour), min(by_hour)) == (280, 14)
