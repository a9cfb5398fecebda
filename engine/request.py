"""What the engine is asked for: sampling parameters and the life of one request."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

MAX_LOGPROBS = 20
MAX_LOGIT_BIAS = 100.0


class FinishReason(enum.StrEnum):
    """Why a request ended; `STOP` and `LENGTH` are OpenAI's words, the others are ours."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


class GuideKind(enum.StrEnum):
    JSON_SCHEMA = "json_schema"
    JSON_OBJECT = "json_object"
    REGEX = "regex"


@dataclass(frozen=True, slots=True)
class Guide:
    """A constraint on the generated text: a JSON schema or a regular expression, as text."""

    kind: GuideKind
    text: str = ""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn. `temperature=0` is exact greedy; `seed=None` draws a fresh seed.

    Raises `ValueError` naming the field when a value is out of range.
    """

    max_tokens: int = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    guide: Guide | None = None

    def __post_init__(self) -> None:
        def check(name: str, value: float, low: float, high: float) -> None:
            if not (math.isfinite(value) and low <= value <= high):
                raise ValueError(f"{name} must be between {low:g} and {high:g}, got {value:g}")

        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if not 0 <= self.min_tokens <= self.max_tokens:
            raise ValueError(f"min_tokens must be between 0 and max_tokens={self.max_tokens}, got {self.min_tokens}")
        check("temperature", self.temperature, 0.0, 2.0)
        check("top_p", self.top_p, 0.0, 1.0)
        if self.top_p == 0.0:
            raise ValueError("top_p must be above 0; use temperature=0 for greedy decoding")
        check("min_p", self.min_p, 0.0, 1.0)
        if self.top_k < -1:
            raise ValueError(f"top_k must be -1 or 0 (off) or a positive count, got {self.top_k}")
        check("presence_penalty", self.presence_penalty, -2.0, 2.0)
        check("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        check("repetition_penalty", self.repetition_penalty, 0.01, 10.0)
        for token_id, bias in self.logit_bias.items():
            check(f"logit_bias[{token_id}]", bias, -MAX_LOGIT_BIAS, MAX_LOGIT_BIAS)
        if self.logprobs is not None:
            check("logprobs", self.logprobs, 0, MAX_LOGPROBS)

    @property
    def penalised(self) -> bool:
        """Whether tokens that were drawn change the logits of later ones."""
        return bool(self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1.0)

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0


@dataclass(slots=True, eq=False)
class Request:
    """One sequence on its way through the engine.

    Two counters carry its life: the scheduler hands out tokens until `num_computed_tokens` (their keys and
    values are in the cache) has caught up with `num_tokens` (their ids are known). Chunked prefill, prefix
    hits, decoding, preemption and resumption are all that one rule. Invariant:
    `0 <= num_computed_tokens <= num_tokens`.

    `priority`: lower runs first, then `arrival_s` (monotonic seconds). `cache_salt` separates tenants in the
    prefix cache. `num_cached_tokens`: prompt tokens found in the prefix cache at the first admission.
    `prefill_end`: tokens before this position are prefill work: the prompt, and after a preemption all tokens
    known by then. `admitted_s`: when its first step began, None before (monotonic seconds of the executor's clock).
    `num_pending_tokens`: tokens that steps in flight are drawing, counted only by a scheduler that runs
    ahead of its results; they are computed as if known. While a draft is verified, `num_computed_tokens` counts it.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    arrival_s: float
    priority: int = 0
    cache_salt: str = ""
    eos_token_ids: frozenset[int] = frozenset()

    token_ids: list[int] = field(init=False)
    num_computed_tokens: int = field(init=False, default=0)
    num_pending_tokens: int = field(init=False, default=0)
    num_cached_tokens: int = field(init=False, default=0)
    num_preemptions: int = field(init=False, default=0)
    admitted_s: float | None = field(init=False, default=None)
    prefill_end: int = field(init=False)
    block_table: list[int] = field(init=False, default_factory=list)
    finish_reason: FinishReason | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if not self.prompt_token_ids:
            raise ValueError("the prompt is empty; send at least one token")
        self.token_ids = list(self.prompt_token_ids)
        self.prefill_end = len(self.prompt_token_ids)

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt_token_ids)

    @property
    def num_tokens(self) -> int:
        """Tokens whose ids are known: prompt and generated."""
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - len(self.prompt_token_ids)

    @property
    def num_uncomputed_tokens(self) -> int:
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None
