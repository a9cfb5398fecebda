"""Descriptions of workloads against counts made by hand and against the published shapes of public traces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from traces.reader import Origin, TraceFile
from traces.request import TraceRequest
from traces.rows import suspicious_time_unit
from traces.statistics import describe, prefix_reuse


def test_a_description_by_hand() -> None:
    requests = [
        TraceRequest(0.0, 10, 0, task="a"),
        TraceRequest(0.0, 20, 5, session_id="s"),
        TraceRequest(65.0, 30, 5, task="a", prefix_ids=(1,)),
    ]
    found = describe(requests, Origin(None, 86_340.0))
    assert (found.requests, found.span_s, found.distinct_stamps, found.zero_outputs) == (3, 65.0, 2, 1)
    assert found.longest_gap_s == 65.0
    assert found.busiest_minute_rps == 2 / 60
    assert found.empty_bins_share == pytest.approx(5 / 7)
    assert found.count_dispersion == pytest.approx(np.var([2, 0, 0, 0, 0, 0, 1]) / np.mean([2, 0, 0, 0, 0, 0, 1]))
    assert found.interarrival_cv == pytest.approx(np.std([0.0, 65.0]) / 32.5)
    assert found.input_tokens is not None
    assert (found.input_tokens.total, found.input_tokens.percentiles[50.0], found.input_tokens.maximum) == (60, 20, 30)
    assert found.by_hour is not None
    assert (found.by_hour[23], found.by_hour[0]) == (2, 1)
    assert found.tasks == {"a": 2}


def test_nothing_and_one_request_leave_figures_unknown() -> None:
    empty, one = describe([]), describe([TraceRequest(4.0, 1, 1)])
    assert (empty.requests, empty.rate_rps, empty.input_tokens) == (0, None, None)
    assert (one.requests, one.rate_rps, one.interarrival_cv, one.count_dispersion) == (1, None, None, None)


@given(st.lists(st.integers(0, 3_000), min_size=2, max_size=200).map(sorted))
def test_dispersion_equals_that_of_all_bins(stamps: list[int]) -> None:
    found = describe(TraceRequest(float(stamp), 1, 1) for stamp in stamps)
    bins = np.bincount([(stamp - stamps[0]) // 10 for stamp in stamps])
    if stamps[0] == stamps[-1] or len(bins) < 2:
        assert found.count_dispersion is None
    else:
        assert found.count_dispersion == pytest.approx(bins.var() / bins.mean(), abs=1e-9)
        assert found.empty_bins_share == pytest.approx((bins == 0).mean())


def test_prefix_reuse_needs_an_unbroken_beginning() -> None:
    requests = [TraceRequest(0.0, 30, 1, prefix_ids=ids) for ids in ((1, 2, 3), (1, 9, 3), (1, 2, 3))]
    assert prefix_reuse(requests) == pytest.approx(4 / 9)
    assert prefix_reuse([TraceRequest(0.0, 1, 1)]) is None


def test_milliseconds_read_as_seconds_are_suspicious() -> None:
    hour_in_ms = [TraceRequest(float(at * 300), 1, 1) for at in range(12_000)]
    found = describe(hour_in_ms)
    assert found.whole_second_stamps
    assert "are the stamps milliseconds" in (suspicious_time_unit(found.requests, found.span_s, True) or "")
    assert suspicious_time_unit(found.requests, found.span_s, False) is None
    assert suspicious_time_unit(3_800, 604_371.0, True) is None


def test_public_traces_have_their_published_shapes(shared_traces: Path) -> None:
    code = describe(TraceFile(shared_traces / "azure_2023/AzureLLMInferenceTrace_code.csv"))
    conversation = describe(TraceFile(shared_traces / "azure_2023/AzureLLMInferenceTrace_conv.csv"))
    assert code.input_tokens is not None
    assert conversation.output_tokens is not None
    assert code.count_dispersion == pytest.approx(71, abs=0.5)
    assert code.empty_bins_share == pytest.approx(0.56, abs=0.005)
    assert code.longest_gap_s == pytest.approx(217, abs=0.5)
    assert code.busiest_minute_rps * 60 == 632
    assert (code.input_tokens.percentiles[50.0], code.input_tokens.percentiles[99.0]) == (1469, 7436)
    assert conversation.count_dispersion == pytest.approx(4.0, abs=0.05)
    assert conversation.interarrival_cv == pytest.approx(1.09, abs=0.005)
    assert conversation.rate_rps == pytest.approx(5.53, abs=0.005)
    assert (conversation.output_tokens.percentiles[50.0], conversation.output_tokens.maximum) == (129, 1000)


def test_mooncake_reuses_its_published_share_of_blocks(shared_traces: Path) -> None:
    trace = TraceFile(shared_traces / "mooncake_fast25/conversation_trace.jsonl")
    assert prefix_reuse(trace) == pytest.approx(0.366, abs=5e-4)
