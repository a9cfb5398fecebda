"""Drawing tokens from logits: exact greedy, filtered random draws, penalties, guides, log-probabilities.

A random draw uses one uniform number keyed by (seed, position) and the inverse of the cumulative distribution in
token-id order, so that a request's tokens depend on its own logits alone, whatever shares its batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engine.batch import SampledTokens, TokenLogprobs
from engine.guided import GuideCompiler, GuideMatcher
from engine.request import Request
from kernels.ops import greedy_argmax

# Enough of the sorted head to find a top-p threshold in nearly every row; the whole row is sorted otherwise.
_TOP_P_HEAD = 1024
NOTHING_POSSIBLE = "no token is possible: logit_bias, min_tokens and the guide exclude them all"
_MASK64 = (1 << 64) - 1


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on `(seed, position)` alone: SplitMix64 (Steele et al., OOPSLA 2014)."""
    z = (seed * 0x9E3779B97F4A7C15 + position * 0xD1B54A32D192ED03 + 0x9E3779B97F4A7C15) & _MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
    return float((z ^ (z >> 31)) >> 11) * 2.0**-53


def keep_threshold(logits: torch.Tensor, top_k: int, top_p: float) -> float:
    """The smallest logit of `[V]` that survives top-k, then top-p of what top-k left; equal logits stay together."""
    vocab_size = logits.shape[0]
    limited = 0 < top_k < vocab_size
    head = torch.topk(logits, top_k if limited else min(_TOP_P_HEAD, vocab_size)).values
    if top_p >= 1.0:
        return float(head[-1]) if limited else -torch.inf
    total = torch.logsumexp(head if limited else logits, dim=0)
    mass = torch.cumsum(torch.exp(head - total).double(), dim=0)
    if not limited and float(mass[-1]) < top_p:
        head = torch.sort(logits, descending=True).values
        mass = torch.cumsum(torch.exp(head - total).double(), dim=0)
    index = int(torch.searchsorted(mass, top_p))
    return float(head[min(index, head.shape[0] - 1)])


def draw(logits: torch.Tensor, uniforms: Sequence[float]) -> list[int]:
    """One token id per row of `[R, V]` by inverse CDF; -inf logits are never drawn."""
    cumulative = torch.cumsum(torch.softmax(logits, dim=-1).double(), dim=-1)
    targets = torch.tensor(uniforms, dtype=torch.float64, device=logits.device) * cumulative[:, -1]
    # `right=True`: the first index whose cumulative mass exceeds the target, which always has mass of its own.
    drawn = torch.searchsorted(cumulative, targets.unsqueeze(1), right=True).squeeze(1)
    return [int(token) for token in drawn.clamp_(max=logits.shape[1] - 1).tolist()]


class _Row:
    """Sampling state of one request, rebuilt from its tokens when it arrives anew."""

    def __init__(self, request: Request, vocab_size: int, compiler: GuideCompiler | None) -> None:
        params = request.sampling
        self.request = request
        self.counted = request.num_prompt_tokens
        self.guide: GuideMatcher | None = None
        self.output_counts: torch.Tensor | None = None
        self.prompt_seen: torch.Tensor | None = None
        if params.guide is not None:
            if compiler is None:
                raise ValueError("guided output needs a tokenizer, and this engine was started without one")
            self.guide = compiler.compile(params.guide)
        if params.presence_penalty or params.frequency_penalty or params.repetition_penalty != 1.0:
            self.output_counts = torch.zeros(vocab_size)
        if params.repetition_penalty != 1.0:
            self.prompt_seen = torch.zeros(vocab_size, dtype=torch.bool)
            self.prompt_seen[list(request.prompt_token_ids)] = True
        self.bias_ids = torch.tensor(list(params.logit_bias), dtype=torch.int64)
        self.bias = torch.tensor(list(params.logit_bias.values()), dtype=torch.float32)
        self.ending_ids = sorted(request.eos_token_ids | set(params.stop_token_ids)) if params.min_tokens else []

    @property
    def shapes_logits(self) -> bool:
        """Whether `shape` may change anything at the next token or, under speculation, at a later one."""
        return bool(
            self.guide is not None
            or self.output_counts is not None
            or len(self.bias_ids)
            or self.request.num_output_tokens < self.request.sampling.min_tokens
        )

    def catch_up(self) -> None:
        """Take in the tokens drawn since the last step."""
        for token_id in self.request.token_ids[self.counted :]:
            if self.output_counts is not None:
                self.output_counts[token_id] += 1
            if self.guide is not None:
                self.guide.accept(token_id)
        self.counted = self.request.num_tokens

    def shape(self, logits: torch.Tensor, draft: Sequence[int] = ()) -> None:
        """Apply bias, penalties, the minimum length and the guide to `[V]`, in place, as if `draft` were known."""
        params = self.request.sampling
        if len(self.bias_ids):
            logits[self.bias_ids] += self.bias.to(logits.device)
        if self.output_counts is not None:
            counts = self.output_counts.to(logits.device)
            if draft:
                counts = counts.index_add(
                    0, torch.tensor(draft, device=logits.device), torch.ones(len(draft), device=logits.device)
                )
            if self.prompt_seen is not None:
                seen = self.prompt_seen.to(logits.device) | (counts > 0)
                factor = torch.where(logits > 0, 1.0 / params.repetition_penalty, params.repetition_penalty)
                logits.mul_(torch.where(seen, factor, 1.0))
            logits.sub_(params.frequency_penalty * counts + params.presence_penalty * (counts > 0))
        if self.request.num_output_tokens + len(draft) < params.min_tokens:
            logits[self.ending_ids] = -torch.inf
        if self.guide is not None:
            self.guide.mask_logits(logits)


class Sampler:
    """Draws the next token of each request of a step; keeps a row of state for each request between steps."""

    def __init__(self, vocab_size: int, guide_compiler: GuideCompiler | None = None) -> None:
        self._vocab_size = vocab_size
        self._guide_compiler = guide_compiler
        self._rows: dict[str, _Row] = {}

    def drop(self, request_ids: Sequence[str]) -> None:
        for request_id in request_ids:
            self._rows.pop(request_id, None)

    def sample(
        self, logits: torch.Tensor, requests: Sequence[Request], drafts: Sequence[tuple[int, ...]] | None = None
    ) -> list[SampledTokens]:
        """Draw one token for each row of `logits` `[R, V]` fp32, which may be changed in place.

        `drafts[row]`: tokens that the row takes as drawn already, beyond those known of its request.

        A request whose guide fails, or whose constraints leave no token, gets `SampledTokens.error`; the others
        are not touched.
        """
        if drafts is None:
            drafts = ((),) * len(requests)
        errors: dict[int, str] = {}
        raw_logprobs: dict[int, torch.Tensor] = {}
        random_rows: list[int] = []
        for index, request in enumerate(requests):
            params = request.sampling
            # As OpenAI and vLLM report them: before bias, penalties and temperature.
            if params.logprobs is not None:
                raw_logprobs[index] = torch.log_softmax(logits[index], dim=-1)
            try:
                row = self._row(request)
                row.catch_up()
                if row.shapes_logits:
                    row.shape(logits[index], drafts[index])
            except ValueError as error:
                errors[index] = str(error)
                continue
            if not params.greedy:
                random_rows.append(index)

        tokens: list[int] = [int(token) for token in greedy_argmax(logits).tolist()]
        for index, token in enumerate(tokens):
            if token < 0:
                errors.setdefault(index, NOTHING_POSSIBLE)
        random_rows = [index for index in random_rows if index not in errors]
        if random_rows:
            for index, token in zip(random_rows, self._draw_rows(logits, requests, drafts, random_rows)):
                tokens[index] = token
        return [
            SampledTokens(error=errors[index])
            if index in errors
            else SampledTokens((token,), self._logprobs(raw_logprobs.get(index), token, requests[index]))
            for index, token in enumerate(tokens)
        ]

    def _row(self, request: Request) -> _Row:
        row = self._rows.get(request.request_id)
        if row is None or row.request is not request:
            row = self._rows[request.request_id] = _Row(request, self._vocab_size, self._guide_compiler)
        return row

    @staticmethod
    def _draw_rows(
        logits: torch.Tensor, requests: Sequence[Request], drafts: Sequence[tuple[int, ...]], rows: list[int]
    ) -> list[int]:
        params = [requests[row].sampling for row in rows]
        temperatures = torch.tensor([each.temperature for each in params], device=logits.device)
        scaled = logits[rows] / temperatures.unsqueeze(1)
        thresholds = [
            keep_threshold(scaled[index], each.top_k, each.top_p) if each.top_k > 0 or each.top_p < 1.0 else -torch.inf
            for index, each in enumerate(params)
        ]
        min_p = torch.tensor([each.min_p for each in params], device=logits.device).log()
        floor = torch.maximum(torch.tensor(thresholds, device=logits.device), scaled.amax(dim=-1) + min_p)
        scaled.masked_fill_(scaled < floor.unsqueeze(1), -torch.inf)
        uniforms = [
            uniform(each.seed if each.seed is not None else 0, requests[row].num_tokens + len(drafts[row]))
            for row, each in zip(rows, params)
        ]
        return draw(scaled, uniforms)

    @staticmethod
    def _logprobs(raw: torch.Tensor | None, token: int, request: Request) -> tuple[TokenLogprobs, ...]:
        if raw is None:
            return ()
        count = request.sampling.logprobs or 0
        top = torch.topk(raw, min(count, raw.shape[0]))
        pairs = tuple(zip((int(t) for t in top.indices.tolist()), (float(v) for v in top.values.tolist())))
        return (TokenLogprobs(float(raw[token]), pairs),)
