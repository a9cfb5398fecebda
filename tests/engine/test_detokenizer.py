"""Incremental detokenising: deltas add up to the text, characters stay whole, stop strings are found anywhere."""

from __future__ import annotations

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models

from engine.detokenizer import IncrementalDetokenizer
from engine.tokenizer import Tokenizer

token_streams = st.lists(st.integers(0, 49151), max_size=60)
FAMILY = "👩\u200d👩\u200d👧"
PIECES = ["hello", " world", "🙂", FAMILY, "日本", "é", "\n", " ", "ab", "abab", "STOP", "ST", "a", "b", "<|im_end|>"]
STOPS = ["a", "ab", "abab", "ba", "STOP", "T", "🙂", "\n ", "lo w", "日", FAMILY[2:], "x"]
some_text = st.lists(st.sampled_from(PIECES), max_size=14).map("".join)


def deltas(detokenizer: IncrementalDetokenizer, ids: list[int]) -> list[str]:
    return [*(detokenizer.feed([number]) for number in ids), detokenizer.finish()]


@settings(max_examples=600, deadline=None)
@given(ids=token_streams, skip=st.booleans())
@example(ids=[167, 240, 237, 99, 2, 167], skip=True)
def test_random_tokens_add_up_to_the_full_decode(embedded_tokenizer: Tokenizer, ids: list[int], skip: bool) -> None:
    parts = deltas(IncrementalDetokenizer(embedded_tokenizer, skip_special_tokens=skip), ids)
    assert "".join(parts) == embedded_tokenizer.decode(ids, skip_special_tokens=skip)


@settings(max_examples=400, deadline=None)
@given(text=some_text)
def test_characters_are_never_halved(embedded_tokenizer: Tokenizer, text: str) -> None:
    parts = deltas(IncrementalDetokenizer(embedded_tokenizer), embedded_tokenizer.encode(text))
    assert "".join(parts) == text
    assert not any("\ufffd" in part for part in parts)
    assert parts[-1] == ""


def test_half_a_character_at_the_end_is_marked(embedded_tokenizer: Tokenizer) -> None:
    ids = embedded_tokenizer.encode("ok🙂")[:-1]
    parts = deltas(IncrementalDetokenizer(embedded_tokenizer), ids)
    assert "".join(parts[:-1]) == "ok"
    assert parts[-1] == "\ufffd" == embedded_tokenizer.decode(ids)[2:]


def expected_stop(text: str, stops: list[str]) -> tuple[int, int] | None:
    """Bounds of the first stop string that a reader of one character after another would notice."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return end - len(longest), end
    return None


@settings(max_examples=800, deadline=None)
@given(
    text=some_text,
    stops=st.lists(st.sampled_from(STOPS), min_size=1, max_size=4),
    include=st.booleans(),
    sizes=st.lists(st.integers(1, 6), min_size=40, max_size=40),
)
def test_stop_strings_are_found_wherever_they_straddle(
    embedded_tokenizer: Tokenizer, text: str, stops: list[str], include: bool, sizes: list[int]
) -> None:
    ids = embedded_tokenizer.encode(text)
    detokenizer = IncrementalDetokenizer(embedded_tokenizer, stops, include_stop_str_in_output=include)
    out, place = "", 0
    for size in sizes:
        out += detokenizer.feed(ids[place : place + size])
        place += size
    out += detokenizer.feed(ids[place:]) + detokenizer.finish()
    bounds = expected_stop(text, stops)
    if bounds is None:
        assert (out, detokenizer.stop_reason, detokenizer.num_tokens) == (text, None, len(ids))
        return
    start, end = bounds
    assert detokenizer.stop_reason == text[start:end]
    assert out == text[: end if include else start]
    enough = next(
        count for count in range(len(ids) + 1) if len(embedded_tokenizer.decode(ids[:count]).rstrip("\ufffd")) >= end
    )
    assert detokenizer.num_tokens == enough


def test_the_beginning_of_a_stop_string_is_held_back(embedded_tokenizer: Tokenizer) -> None:
    detokenizer = IncrementalDetokenizer(embedded_tokenizer, ["###"])
    (one,) = embedded_tokenizer.encode("#")
    assert detokenizer.feed([one]) == ""
    assert detokenizer.feed([one]) == ""
    assert detokenizer.feed(embedded_tokenizer.encode("x")) == "##x"
    assert detokenizer.feed([one, one, one, one]) == ""
    assert detokenizer.stop_reason == "###"
    assert detokenizer.feed([one]) == detokenizer.finish() == ""


def test_held_text_comes_out_at_the_end(embedded_tokenizer: Tokenizer) -> None:
    detokenizer = IncrementalDetokenizer(embedded_tokenizer, ["world!"])
    assert detokenizer.feed(embedded_tokenizer.encode("hello wor")) == "hello "
    assert detokenizer.finish() == "wor"
    assert detokenizer.finish() == ""


def test_special_tokens_do_not_part_a_character(embedded_tokenizer: Tokenizer) -> None:
    ids = embedded_tokenizer.encode("🙂")
    assert "".join(deltas(IncrementalDetokenizer(embedded_tokenizer), [ids[0], 2, *ids[1:], 2])) == "🙂"


def test_empty_stop_strings_are_refused(embedded_tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="empty"):
        IncrementalDetokenizer(embedded_tokenizer, [""])


def test_rows_of_logits_that_no_token_has_are_silent(embedded_tokenizer: Tokenizer) -> None:
    assert deltas(IncrementalDetokenizer(embedded_tokenizer), [60000, 504]) == ["", "The", ""]


def byte_fallback_tokenizer() -> Tokenizer:
    words = ["▁hello", "▁", "lo", "é"]
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)} | {word: 256 + n for n, word in enumerate(words)}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return Tokenizer(backend, ())


@settings(max_examples=300, deadline=None)
@given(words=st.lists(st.sampled_from(["▁hello", "▁", "lo", "é", "🙂", "日", "\n"]), max_size=20))
def test_byte_fallback(words: list[str]) -> None:
    tokenizer = byte_fallback_tokenizer()
    ids: list[int] = []
    for word in words:
        known = tokenizer._backend.token_to_id(word)
        ids += list(word.encode()) if known is None else [known]
    parts = deltas(IncrementalDetokenizer(tokenizer), ids)
    assert "".join(parts) == "".join(words).replace("▁", " ") == tokenizer.decode(ids)
    assert not any("\ufffd" in part for part in parts)
