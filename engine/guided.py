"""Guided output: JSON schemas and regular expressions as token masks, through llguidance."""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer

from engine.guides import grammar_of
from engine.request import Guide

MAX_CACHED_GUIDES = 128


class GuideMatcher:
    """Position of one request in its guide."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._mask = np.empty((vocab_size + 31) // 32, dtype=np.int32)

    def accept(self, token_id: int) -> None:
        """Advance by a drawn token. Raises `ValueError` when the guide does not allow it."""
        if not self._matcher.consume_token(token_id):
            raise ValueError(f"guided output failed: {self._matcher.get_error() or 'token not allowed'}")

    def mask_logits(self, logits: torch.Tensor) -> None:
        """Set the logits `[V]` of tokens the guide forbids to -inf, in place."""
        logits.masked_fill_(torch.from_numpy(self.forbidden()).to(logits.device), -torch.inf)

    def forbidden(self) -> np.ndarray:
        """`[V]` bool: the tokens that the guide does not allow next."""
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        if self._matcher.is_error():
            raise ValueError(f"guided output failed: {self._matcher.get_error()}")
        bits = np.unpackbits(self._mask.view(np.uint8), bitorder="little")[: self._vocab_size]
        return ~bits.view(np.bool_)


class GuideCompiler:
    """Compiles guides once; safe to call from several threads.

    Args:
        tokenizer_json: the serialised `tokenizers.Tokenizer`.
        vocab_size: width of the model's logits, which may exceed the tokenizer's vocabulary.
        eos_token_ids: tokens that may end a finished guide.
    """

    def __init__(self, tokenizer_json: str, vocab_size: int, eos_token_ids: frozenset[int]) -> None:
        self._tokenizer_json = tokenizer_json
        self._vocab_size = vocab_size
        self._eos_token_ids = sorted(eos_token_ids)
        self._tokenizer: LLTokenizer | None = None
        self._pristine: OrderedDict[Guide, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def compile(self, guide: Guide) -> GuideMatcher:
        """A fresh matcher at the start of `guide`. Raises `ValueError` when it cannot be compiled."""
        with self._lock:
            matcher = self._pristine.get(guide)
            if matcher is None:
                matcher = LLMatcher(self._llguidance_tokenizer(), grammar_of(guide), log_level=0)
                if matcher.is_error():
                    raise ValueError(matcher.get_error())
                self._pristine[guide] = matcher
                if len(self._pristine) > MAX_CACHED_GUIDES:
                    self._pristine.popitem(last=False)
            self._pristine.move_to_end(guide)
            return GuideMatcher(matcher.deep_copy(), self._vocab_size)

    def _llguidance_tokenizer(self) -> LLTokenizer:
        if self._tokenizer is None:
            self._tokenizer = LLTokenizer(
                self._tokenizer_json, n_vocab=self._vocab_size, eos_token=self._eos_token_ids or None
            )
        return self._tokenizer
