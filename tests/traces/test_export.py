"""What is written can be read again, and meets what its readers ask for."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from traces.export import EXPORTS, FRESH_IDS_FROM, export
from traces.reader import Origin, TraceFile
from traces.request import ShapedLength, TraceRequest
from traces.workload import Workload

Write = Callable[..., Path]

REQUESTS = [
    TraceRequest(1.5, 1100, 20, session_id="a", prefix_ids=(4, 5, 6), block_tokens=512, task="chat", judged_row=0),
    TraceRequest(1.5, 40, 0, model="m"),
    TraceRequest(3.25, 700, 9, prefix_ids=(4,), block_tokens=512, shaped=(ShapedLength("L1", 3, "synthetic", "s"),)),
    TraceRequest(9.0, 5, 1, prompt='text, "quoted"\nand more'),
]


def made(requests: list[TraceRequest] = REQUESTS) -> Workload:
    return Workload(requests, "made", "synthetic", Origin(datetime(2026, 1, 1, tzinfo=UTC), 0.0), ("by hand",))


def test_native_gives_back_everything(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    assert export(made(), path, "native").written == 4
    again = Workload.from_file(TraceFile(path))
    assert list(again) == REQUESTS
    assert (again.name, again.obtained, again.origin) == ("made", "synthetic", made().origin)
    assert again.steps[0] == "by hand"
    assert [name.name for name in tmp_path.iterdir()] == ["t.jsonl"]


REQUEST = st.builds(
    TraceRequest,
    st.floats(0, 1e6),
    st.integers(1, 10**6),
    st.integers(0, 10**5),
    session_id=st.none() | st.text(min_size=1),
    prefix_ids=st.lists(st.integers(0, 2**40), max_size=4).map(tuple),
    judged_row=st.none() | st.integers(0, 9),
    images=st.integers(0, 3),
    prompt=st.none() | st.text(st.characters(codec="utf-8")),
)


@given(st.lists(REQUEST, max_size=6))
def test_native_round_trip(tmp_path_factory: pytest.TempPathFactory, requests: list[TraceRequest]) -> None:
    path = tmp_path_factory.mktemp("native") / "t.jsonl"
    ordered = sorted(requests, key=lambda request: request.arrival_s)
    export(made(ordered), path, "native")
    again = list(TraceFile(path))
    assert [request.arrival_s for request in again] == [round(request.arrival_s, 6) for request in ordered]
    assert [request.session_id for request in again] == [request.session_id for request in ordered]
    assert [(r.prompt, r.prefix_ids, r.judged_row) for r in again] == [
        (r.prompt, r.prefix_ids, r.judged_row) for r in ordered
    ]


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_aiperf_gets_whole_milliseconds_and_vllm_and_guidellm_seconds(tmp_path: Path) -> None:
    stamps = {}
    for name in ("aiperf", "vllm", "guidellm"):
        done = export(made(), tmp_path / name, name)
        assert (done.written, done.left_out) == (3, 1)
        stamps[name] = [row["timestamp"] for row in rows(tmp_path / name)]
    assert stamps["aiperf"] == [0, 1750, 7500]
    assert all(isinstance(stamp, int) for stamp in stamps["aiperf"])
    assert stamps["vllm"] == stamps["guidellm"] == [0.0, 1.75, 7.5]


def test_every_block_has_an_id_since_readers_build_prompts_from_ids_alone(tmp_path: Path) -> None:
    export(made(), tmp_path / "v", "vllm")
    ids = [row["hash_ids"] for row in rows(tmp_path / "v")]
    assert ids == [[4, 5, 6], [4, FRESH_IDS_FROM], [FRESH_IDS_FROM + 1]]
    again = list(TraceFile(tmp_path / "v"))
    assert [request.input_tokens for request in again] == [1100, 700, 5]


def test_a_block_size_known_only_later_holds_from_the_start(tmp_path: Path) -> None:
    late = [TraceRequest(0.0, 40, 1), TraceRequest(1.0, 32, 1, prefix_ids=(1, 2), block_tokens=16)]
    export(made(late), tmp_path / "v", "vllm")
    assert [len(row["hash_ids"]) for row in rows(tmp_path / "v")] == [3, 2]  # type: ignore[arg-type]


def test_mixed_block_sizes_and_wide_ids_are_refused(tmp_path: Path) -> None:
    mixed = [*REQUESTS, TraceRequest(10.0, 16, 1, prefix_ids=(1,), block_tokens=16)]
    with pytest.raises(ValueError, match="export the parts apart"):
        export(made(mixed), tmp_path / "v", "vllm")
    wide = [TraceRequest(0.0, 16, 1, prefix_ids=(2**30,), block_tokens=16)]
    with pytest.raises(ValueError, match="32 bits"):
        export(made(wide), tmp_path / "v", "guidellm")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["vidur", "splitwise-sim"])
def test_simulator_files_are_read_by_our_own_readers(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"t{EXPORTS[name].suffix}"
    export(made(), path, name)
    trace = TraceFile(path)
    assert trace.layout.name == name
    assert [(r.arrival_s, r.input_tokens, r.output_tokens) for r in trace] == [
        (0, 1100, 20),
        (1.75, 700, 9),
        (7.5, 5, 1),
    ]


def test_splitwise_has_no_arrival_at_zero(tmp_path: Path) -> None:
    export(made([TraceRequest(0.0, 5, 5)]), tmp_path / "s.csv", "splitwise-sim")
    assert (tmp_path / "s.csv").read_text().splitlines()[1] == "0,2,0,0.001000,1,5,5"


def test_an_unknown_format_and_a_future_version_say_so(tmp_path: Path, write: Write) -> None:
    with pytest.raises(ValueError, match="unknown export format 'x'"):
        export(made(), tmp_path / "t", "x")
    with pytest.raises(ValueError, match="gridserve-trace/9"):
        TraceFile(write('{"format": "gridserve-trace/9", "name": "n", "obtained": "recorded", "source": "s"}\n'))
