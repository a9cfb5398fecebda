"""Token ids to text as they arrive: whole characters only, special tokens left out, stop strings found.

Tokens become bytes and bytes become text through an incremental UTF-8 decoder, so each token costs the same however
long the answer. Bytes that never become a character are U+FFFD, as in `str.decode(errors="replace")`. The text goes
on from a prompt: the space a SentencePiece word begins with stays, also at the very beginning.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence

from engine.tokenizer import Tokenizer

_Utf8Decoder = codecs.getincrementaldecoder("utf-8")


class IncrementalDetokenizer:
    """One generation's text. The concatenated deltas are the text, up to the first stop string.

    Text that may be the beginning of a stop string is held back until it is known to be none. Of several stop
    strings the one that is complete first ends the text, whatever tokens it is spread over. They are not looked
    for in the text of the first `min_tokens` tokens.

    Attributes:
        stop_reason: the stop string that ended the text, None while there is none.
        num_tokens: tokens taken, the one that completed the stop string included, later ones not.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str] = (),
        *,
        include_stop_str_in_output: bool = False,
        skip_special_tokens: bool = True,
        min_tokens: int = 0,
    ) -> None:
        if any(not text for text in stop):
            raise ValueError("a stop string must not be empty")
        self.stop_reason: str | None = None
        self.num_tokens = 0
        self._vocabulary = tokenizer.vocabulary_bytes()
        self._skipped = tokenizer.special_token_ids if skip_special_tokens else frozenset()
        self._stops = tuple(stop)
        self._min_tokens = min_tokens
        self._include_stop = include_stop_str_in_output
        self._longest_prefix = max(map(len, self._stops), default=1) - 1
        self._decoder = _Utf8Decoder(errors="replace")
        self._held = ""

    def feed(self, token_ids: Iterable[int]) -> str:
        """Take tokens in order; returns the text that is certain now. Nothing more comes after a stop string."""
        deltas = []
        for token_id in token_ids:
            if self.stop_reason is not None:
                break
            self.num_tokens += 1
            if token_id in self._skipped:
                continue
            data = self._vocabulary[token_id] if 0 <= token_id < len(self._vocabulary) else b""
            deltas.append(self._release(self._decoder.decode(data)))
        return "".join(deltas)

    def finish(self) -> str:
        """The rest of the text once no more tokens come: what was held back, and U+FFFD for half a character."""
        rest = self._release(self._decoder.decode(b"", final=True)) if self.stop_reason is None else ""
        rest, self._held = rest + self._held, ""
        return rest

    def _release(self, text: str) -> str:
        if not self._stops or not text or self.num_tokens <= self._min_tokens:
            return text
        text = self._held + text
        found = self._first_stop(text)
        if found is not None:
            start, end = found
            self.stop_reason, self._held = text[start:end], ""
            return text[: end if self._include_stop else start]
        keep = self._held_length(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _first_stop(self, text: str) -> tuple[int, int] | None:
        """Bounds of the stop string that ends first; of those that end together, the longest."""
        bounds = [(text.find(stop), stop) for stop in self._stops]
        ends = [(start + len(stop), start) for start, stop in bounds if start >= 0]
        if not ends:
            return None
        end, start = min(ends)
        return start, end

    def _held_length(self, text: str) -> int:
        """Length of the longest end of `text` that a stop string begins with."""
        for size in range(min(self._longest_prefix, len(text)), 0, -1):
            if any(stop.startswith(text[len(text) - size :]) for stop in self._stops):
                return size
        return 0
