"""Each format against a small hand-made file, and each known trap."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from traces.formats.registry import LAYOUTS, detect_layout
from traces.reader import TraceFile
from traces.request import TraceRequest
from traces.rows import ReadOptions, RowError

Write = Callable[..., Path]

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
BURST_V1 = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
BURST_V3 = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
VIDUR = "arrived_at,num_prefill_tokens,num_decode_tokens\n"


def read(path: Path, **options: object) -> list[TraceRequest]:
    return list(TraceFile(path, options=ReadOptions(**options)))  # type: ignore[arg-type]


def lengths(requests: list[TraceRequest]) -> list[tuple[float, int, int]]:
    return [(request.arrival_s, request.input_tokens, request.output_tokens) for request in requests]


def test_azure_2023_has_seven_fraction_digits_and_crlf(write: Write) -> None:
    path = write(
        AZURE + "2023-11-16 18:15:46.6805900,374,44\r\n2023-11-16 18:15:50.9951690,396,109\r\n"
        "2023-11-16 18:15:50.9951699,1,0\r\n"
    )
    trace = TraceFile(path)
    assert trace.layout.name == "azure"
    assert lengths(list(trace)) == [(0.0, 374, 44), (4.314579, 396, 109), (4.314579, 1, 0)]
    assert trace.origin.started_at == datetime(2023, 11, 16, 18, 15, 46, 680590, tzinfo=UTC)
    assert trace.counts.equal_stamps == 1
    assert trace.counts.zero_outputs == 1


def test_azure_2024_mixes_stamps_with_and_without_fraction(write: Write) -> None:
    path = write(
        AZURE + "2024-05-10 00:00:00.009930+00:00,10,1\n2024-05-10 00:00:01+00:00,20,2\n"
        "2024-05-10 02:00:02.5+02:00,30,3\n"
    )
    assert [request.arrival_s for request in read(path)] == [0.0, 0.99007, 2.49007]


def test_azure_2025_counts_images_and_is_gzipped(write: Write) -> None:
    header = "TIMESTAMP,NumImages,ContextTokens,GeneratedTokens\n"
    text = header + "2024-10-15T12:00:00Z,2,700,10\n2024-10-15T12:00:01.5Z,0,5,6\n"
    path = write(gzip.compress(text.encode()), "lmm.csv.gz")
    trace = TraceFile(path)
    assert trace.layout.name == "azure-lmm"
    assert [(request.arrival_s, request.images) for request in trace] == [(0.0, 2), (1.5, 0)]


def test_mooncake_stamps_are_milliseconds_and_ids_stand_for_512_tokens(write: Write) -> None:
    path = write(
        '{"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47]}\n'
        '{"timestamp": 30535, "input_length": 6472, "output_length": 26, "hash_ids": [46, 98]}\n',
        "mooncake.jsonl",
    )
    first, second = read(path)
    assert (first.arrival_s, second.arrival_s) == (0.0, 3.053)
    assert first.prefix_ids == (46, 47)
    assert first.block_tokens == 512


def test_a_file_in_seconds_under_mooncakes_keys_is_read_as_told(write: Write) -> None:
    path = write(
        '{"timestamp": 0.0, "input_length": 5, "output_length": 5}\n'
        '{"timestamp": 2.5, "input_length": 5, "output_length": 5}\n'
    )
    assert read(path)[1].arrival_s == 0.0025
    assert read(path, time_unit="s")[1].arrival_s == 2.5


def test_ragpulse_stamps_are_strings_from_noon(write: Write) -> None:
    line = (
        '{"timestamp": "%s", "input_length": 3112, "output_length": 192, "hash_ids": {"sys_prompt": [1, 2], '
        '"passages_ids": [7], "history": [], "web_search": [], "user_input": [9]}, "session_id": "%s"}\n'
    )
    trace = TraceFile(write(line % (82, "a") + line % (93, ""), "rag.jsonl"))
    assert trace.layout.name == "ragpulse"
    requests = list(trace)
    assert [request.arrival_s for request in requests] == [0.0, 11.0]
    assert requests[0].prefix_ids == (1, 2, 7, 9)
    assert requests[0].block_tokens is None
    assert [request.session_id for request in requests] == ["a", None]
    assert trace.origin.seconds_of_day == 12 * 3600 + 82
    assert trace.counts.without_session == 1


def test_burstgpt_v1_is_told_by_its_header(write: Write) -> None:
    trace = TraceFile(write(BURST_V1 + "5,ChatGPT,472,18,490,Conversation log\n45,GPT-4,1087,230,1317,API log\n"))
    assert trace.layout.name == "burstgpt-v1"
    first, second = trace
    assert (first.model, first.task, first.session_id) == ("ChatGPT", "Conversation log", None)
    assert second.arrival_s == 40.0
    assert trace.origin.seconds_of_day == 5.0


def test_burstgpt_v3_has_blank_sessions_failures_and_late_first_stamp(write: Write) -> None:
    path = write(
        BURST_V3 + "19440110.5,,1.25,ChatGPT,472,0,472,API log\n19440111.0,d3b0,12.0,GPT-4,10,20,30,Conversation log\n"
    )
    trace = TraceFile(path)
    failed, answered = trace
    assert trace.layout.name == "burstgpt-v3"
    assert (failed.arrival_s, failed.session_id, failed.output_tokens) == (0.0, None, 0)
    assert (answered.session_id, answered.recorded_duration_s) == ("d3b0", 12.0)
    assert trace.counts.without_session == 1
    assert lengths(read(path, zero_output="drop")) == [(0.5, 10, 20)]


def test_bailian_turns_share_a_session(write: Write) -> None:
    line = (
        '{"chat_id": %d, "parent_chat_id": %d, "timestamp": %s, "input_length": 20, "output_length": 5, '
        '"type": "text", "turn": %d, "hash_ids": [%s]}\n'
    )
    path = write(line % (5, -1, "0.0", 1, "1, 2") + line % (6, 5, "1.5", 2, "1, 3") + line % (9, 6, "2", 3, "1, 4"))
    assert [(request.session_id, request.block_tokens) for request in read(path)] == [("5", 16)] * 3


def test_vidur_and_splitwise_inputs(write: Write) -> None:
    assert lengths(read(write(VIDUR + "0.25,7,3\n1.0,8,4\n"))) == [(0.0, 7, 3), (0.75, 8, 4)]
    header = "request_id,request_type,application_id,arrival_timestamp,batch_size,prompt_size,token_size\n"
    path = write(header + "0,2,0,1.5,1,700,20\n1,2,0,2.0,4,700,20\n", "splitwise.csv")
    assert lengths(read(path, skip_bad=True)) == [(0.0, 700, 20)]
    with pytest.raises(RowError, match="batch_size"):
        read(path)


def test_lengths_without_arrivals_say_what_to_do(write: Write) -> None:
    with pytest.raises(ValueError, match=r"without arrival times.*synthesize --lengths"):
        TraceFile(write("num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio\n1,2,3,0.5\n"))


def test_a_byte_order_mark_does_not_hide_the_first_column(write: Write) -> None:
    assert detect_layout(write(b"\xef\xbb\xbf" + VIDUR.encode() + b"0,1,1\n")).name == "vidur"
    assert lengths(read(write(b"\xef\xbb\xbf" + VIDUR.encode() + b"0,1,1\n"))) == [(0.0, 1, 1)]


def test_unknown_columns_name_what_was_found(write: Write) -> None:
    with pytest.raises(ValueError, match=r"no known trace format has these columns: a, b"):
        detect_layout(write("a,b\n1,2\n"))
    with pytest.raises(ValueError, match="no such file"):
        detect_layout(Path("/nowhere/trace.csv"))


BAD_ROWS = [
    ("0,1,1\n1,x12,1\n", 3, 3, "num_prefill_tokens"),
    ("0,1,1\n1,12,\n", 3, 6, "num_decode_tokens"),
    ("0,1,1\nnan,12,1\n", 3, 1, "arrived_at"),
    ("0,1,1\n1,1_0,1\n", 3, 3, "num_prefill_tokens"),
    ("0,1,1\n1,0,1\n", 3, 3, "num_prefill_tokens"),
    ("0,1,1\n1,5,-1\n", 3, 5, "num_decode_tokens"),
    ('0,1,1\n"1",5,2.0\n', 3, 7, "num_decode_tokens"),
    ("0,1,1\n1,5\n", 3, 1, None),
    ('0,1,1\n1,"5"x,2\n', 3, 1, None),
]


@pytest.mark.parametrize(("rows", "line", "column", "name"), BAD_ROWS)
def test_a_bad_csv_row_has_a_place_or_is_counted(
    write: Write, rows: str, line: int, column: int, name: str | None
) -> None:
    path = write(VIDUR + rows)
    with pytest.raises(RowError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}:{line}:{column}: ")
    assert caught.value.name == name
    trace = TraceFile(path, options=ReadOptions(skip_bad=True))
    assert len(list(trace)) == 1
    assert (trace.counts.rows, trace.counts.bad) == (2, 1)
    assert trace.counts.bad_reasons == {name or "row": 1}


BAD_LINES = [
    ('{"timestamp": "x", "input_length": 1, "output_length": 1}', 2, "timestamp"),
    ('{"timestamp": 1, "input_length": 0, "output_length": 1}', 17, "input_length"),
    ('{"timestamp": 1, "input_length": 1, "output_len', 48, None),
    ('{"timestamp": 1, "input_length": 1}', 1, None),
    ('{"timestamp": -1, "input_length": 1, "output_length": 1}', 2, "timestamp"),
]


@pytest.mark.parametrize(("line", "column", "name"), BAD_LINES)
def test_a_bad_json_line_has_a_place_or_is_counted(write: Write, line: str, column: int, name: str | None) -> None:
    good = '{"timestamp": 0, "input_length": 1, "output_length": 1}\n'
    path = write(good + line + "\n\n" + good, "bad.jsonl")
    with pytest.raises(RowError) as caught:
        read(path)
    assert (caught.value.line, caught.value.name) == (2, name)
    assert abs(caught.value.column - column) <= 1
    assert len(read(path, skip_bad=True)) == 2


def test_a_clock_that_restarts_is_an_error_until_told_otherwise(write: Write) -> None:
    path = write(VIDUR + "100,1,1\n160,2,2\n5,3,3\n15,4,4\n")
    with pytest.raises(RowError, match="goes back by 155 s"):
        read(path)
    with pytest.raises(RowError, match="goes back"):
        read(path, skip_bad=True)
    assert [request.arrival_s for request in read(path, backwards="continue")] == [0, 60, 60, 70]
    assert [request.arrival_s for request in read(path, backwards="clamp")] == [0, 60, 60, 60]


def test_prompts_over_the_window_are_an_error_clipped_or_dropped_and_counted(write: Write) -> None:
    path = write(VIDUR + "0,10,5\n1,126195,350\n2,6000,6000\n3,8,20\n")
    with pytest.raises(RowError, match=r":3:1: 126195 \+ 350 tokens exceed the window of 8192"):
        read(path, window_tokens=8192)
    clipped = TraceFile(path, options=ReadOptions(window_tokens=8192, over_window="clip"))
    assert lengths(list(clipped)) == [(0, 10, 5), (1, 7842, 350), (2, 4096, 4096), (3, 8, 20)]
    assert clipped.counts.clipped_over_window == 2
    assert clipped.counts.clipped_input_tokens == 126195 - 7842 + 6000 - 4096
    dropped = TraceFile(path, options=ReadOptions(window_tokens=8192, over_window="drop"))
    assert [request.arrival_s for request in dropped] == [0, 3]
    assert dropped.counts.dropped_over_window == 2


def test_time_unit_is_refused_for_dates(write: Write) -> None:
    with pytest.raises(ValueError, match="are dates"):
        read(write(AZURE + "2023-11-16 18:15:46,374,44\r\n"), time_unit="ms")


def test_an_empty_file_and_a_header_alone(write: Write) -> None:
    with pytest.raises(ValueError, match="no known trace format"):
        TraceFile(write(""))
    trace = TraceFile(write(VIDUR))
    assert list(trace) == []
    assert trace.origin.started_at is None


def test_reading_holds_no_more_of_a_long_file_than_of_a_short_one(write: Write) -> None:
    import tracemalloc

    path = write(
        AZURE
        + "".join(f"2024-05-10 {at // 3600:02d}:{at // 60 % 60:02d}:{at % 60:02d},10,1\r\n" for at in range(60_000))
    )
    tracemalloc.start()
    try:
        count = sum(1 for _ in TraceFile(path))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 60_000
    assert peak < 500_000


def test_every_layout_has_a_title_and_required_columns() -> None:
    for name, layout in LAYOUTS.items():
        assert layout.name == name
        assert layout.title
        assert layout.required
