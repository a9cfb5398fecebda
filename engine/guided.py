"""Guided output: JSON schemas and regular expressions as token masks, through llguidance."""

from __future__ import annotations

import threading
from collections import OrderedDict
from weakref import WeakValueDictionary

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer

from engine.guides import grammar_of
from engine.request import Guide

MAX_RECENT_GUIDES = 128


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


class CompiledGuide:
    """A guide at its start; `matcher` copies it. Whoever waits or runs with it keeps it, so it is compiled once."""

    __slots__ = ("__weakref__", "_pristine", "_vocab_size")

    def __init__(self, pristine: LLMatcher, vocab_size: int) -> None:
        self._pristine = pristine
        self._vocab_size = vocab_size

    def matcher(self) -> GuideMatcher:
        return GuideMatcher(self._pristine.deep_copy(), self._vocab_size)


class GuideCompiler:
    """Compiles guides once; safe to call from several threads.

    A guide stays compiled while a `CompiledGuide` of it is held anywhere, and for some time after. No lock is held
    while one compiles, so that the step loop never waits for the compiling thread.

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
        self._compiled: WeakValueDictionary[Guide, CompiledGuide] = WeakValueDictionary()
        self._recent: OrderedDict[Guide, CompiledGuide] = OrderedDict()
        self._lock = threading.Lock()
        self._tokenizer_lock = threading.Lock()

    def prepare(self) -> None:
        """Build what all guides share: it holds the interpreter for up to a second, so do it before serving."""
        with self._tokenizer_lock:
            if self._tokenizer is None:
                self._tokenizer = LLTokenizer(
                    self._tokenizer_json, n_vocab=self._vocab_size, eos_token=self._eos_token_ids or None
                )

    def compile(self, guide: Guide) -> GuideMatcher:
        """A fresh matcher at the start of `guide`. Raises `ValueError` when it cannot be compiled."""
        return self.compiled(guide).matcher()

    def compiled(self, guide: Guide) -> CompiledGuide:
        """`guide`, to be held by whoever will need it. Raises `ValueError` when it cannot be compiled."""
        with self._lock:
            compiled = self._compiled.get(guide)
        if compiled is None:
            self.prepare()
            pristine = LLMatcher(self._tokenizer, grammar_of(guide), log_level=0)
            if pristine.is_error():
                raise ValueError(pristine.get_error())
            compiled = CompiledGuide(pristine, self._vocab_size)
        with self._lock:
            self._compiled[guide] = self._recent[guide] = compiled
            self._recent.move_to_end(guide)
            if len(self._recent) > MAX_RECENT_GUIDES:
                self._recent.popitem(last=False)
        return compiled
