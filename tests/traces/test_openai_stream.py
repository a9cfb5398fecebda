"""Server-sent events as they come over the wire, cut anywhere."""

from __future__ import annotations

import itertools
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from traces.http_stream import Answer
from traces.openai_stream import events, read_answer


def sse(*payloads: object, end: str = "\n\n") -> bytes:
    texts = [payload if isinstance(payload, str) else json.dumps(payload) for payload in payloads]
    return "".join(f"data: {text}{end}" for text in texts).encode()


def answer(*pieces: bytes, status: int = 200) -> Answer:
    return Answer(0.0, status, {}, [(float(index), piece) for index, piece in enumerate(pieces, start=1)])


def text(content: str, reason: str | None = None) -> dict[str, object]:
    return {"choices": [{"index": 0, "text": content, "finish_reason": reason}]}


def delta(reason: str | None = None, **fields: object) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": reason}]}


USAGE = {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": None}}


@given(st.lists(st.integers(1, 400), max_size=8), st.sampled_from(["\n\n", "\r\n\r\n"]))
def test_events_survive_any_cut(cuts: list[int], end: str) -> None:
    stream = b": ping" + end.encode() + sse(text("a"), text("é"), USAGE, "[DONE]", end=end)
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    pieces = [(float(at), stream[at:until]) for at, until in itertools.pairwise(edges)]
    found = [data for _, data in events(pieces)]
    assert [found[0], found[3]] == [json.dumps(text("a")).encode(), b"[DONE]"]
    assert len(found) == 4
    stamps = [at for at, _ in events(pieces)]
    assert stamps == sorted(stamps)


def test_an_event_is_stamped_when_its_last_piece_came() -> None:
    whole = sse(text("a"))
    assert [at for at, _ in events([(1.0, whole[:20]), (2.0, whole[20:])])] == [2.0]


def test_completion_chunks_and_usage() -> None:
    found = read_answer(answer(sse(text("a")), sse(text("")), sse(text("b", "length")), sse(USAGE, "[DONE]")))
    assert found.token_stamps_s == (1.0, 2.0, 3.0)
    assert (found.prompt_tokens, found.completion_tokens, found.finish_reason) == (9, 2, "length")
    assert found.error is None


def test_role_and_finish_alone_are_no_tokens() -> None:
    found = read_answer(
        answer(
            sse(delta(role="assistant", content="")),
            sse(delta(content="a")),
            sse(delta(reasoning_content="b")),
            sse(delta(content="")),
            sse(delta("stop")),
            sse("[DONE]"),
        )
    )
    assert found.token_stamps_s == (2.0, 3.0, 4.0)
    assert read_answer(answer(sse(text("a"), text("", "stop"), "[DONE]"))).token_stamps_s == (1.0,)


def test_energy_of_our_own_answers() -> None:
    energy = {"energy_joules": 12.5, "method": "measured", "grams_co2e": None, "directive": "L1", "scope": "gpu"}
    found = read_answer(answer(sse(text("a"), USAGE | {"energy": energy}, "[DONE]")))
    assert (found.energy_j, found.energy_method, found.co2e_g, found.directive) == (12.5, "measured", None, "L1")


@pytest.mark.parametrize(
    ("made", "error"),
    [
        (answer(sse(text("a"))), r"without \[DONE\]"),
        (answer(sse("[DONE]")), "no token"),
        (answer(sse(text("a"), "{broken", "[DONE]")), "cannot be read"),
        (answer(sse(text("a"), {"error": {"message": "out of memory"}}, "[DONE]")), "out of memory"),
        (answer(b'{"error": {"message": "slow down"}}', status=429), "HTTP 429: slow down"),
        (answer(b"<html>", status=502), "HTTP 502: <html>"),
    ],
)
def test_what_is_no_answer_says_why(made: Answer, error: str) -> None:
    found = read_answer(made)
    assert found.error is not None
    assert re.search(error, found.error)
