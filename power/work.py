"""How much of a step's dynamic energy each request's work is worth, relative to the others.

Prefill counts its FLOPs, decode its FLOPs and the keys and values it reads; the weights, read once in each step,
are shared equally by the decoding requests (that is what batching amortises), or by prompts in proportion to
their tokens where nothing decodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from power.model_shape import ModelShape
from power.profile import GpuProfile
from power.twin import StepWork


class Share(Protocol):
    """One request's part in a step. `kv_tokens_read` is the context its queries attended to."""

    @property
    def request_id(self) -> str: ...
    @property
    def prefill_tokens(self) -> int: ...
    @property
    def decode_tokens(self) -> int: ...
    @property
    def kv_tokens_read(self) -> int: ...


@dataclass(frozen=True, slots=True)
class WorkShare:
    """A plain `Share`."""

    request_id: str
    prefill_tokens: int
    decode_tokens: int
    kv_tokens_read: int


@dataclass(slots=True)
class Weighed:
    """The weights of a step's requests in their order: `prefill[i]` (`None`: no prompt in the step) and
    `decode[i] * factor + fixed`. `by_context`: each draws one token, and `decode` are their contexts.

    Not frozen, as one is made for every step: freezing costs as much as all the rest."""

    prefill: list[float] | None
    decode: Sequence[float]
    factor: float
    fixed: float
    total: float
    by_context: bool = False

    def later(self, steps: int) -> Weighed:
        """The weights so many steps on, when each request has read one token more with every step."""
        growth = steps * self.factor
        return Weighed(None, self.decode, self.factor, self.fixed + growth, self.total + growth * len(self.decode))


@dataclass(frozen=True, slots=True)
class WorkModel:
    """Relative cost (joules up to a common factor) of a token's FLOPs, of a query-key pair, of a cached token read
    and of streaming all weights once."""

    token_cost: float
    pair_cost: float
    kv_cost: float
    weights_cost: float

    @classmethod
    def of(cls, gpu: GpuProfile, shape: ModelShape) -> WorkModel:
        """From a GPU's joules for each FLOP and byte at the top clock."""
        flop_j = (gpu.compute_w + gpu.active_w) / (gpu.peak_flops * gpu.compute_efficiency)
        byte_j = (gpu.memory_w + gpu.active_w) / (gpu.memory_bytes_per_s * gpu.memory_efficiency)
        return cls(
            token_cost=shape.flops_per_token * flop_j,
            pair_cost=shape.attention_flops_per_pair * flop_j,
            kv_cost=shape.kv_bytes_per_token * byte_j,
            weights_cost=shape.streamed_bytes * byte_j,
        )

    def weigh(self, work: Sequence[Share]) -> Weighed:
        """The weights of a step in columns, as `weights` has them one by one. A step in which every request draws one
        token, as most do, costs a fraction of that: its decode weights are linear in the context."""
        count = len(work)
        # Zero for a share that is one drawn token and no prompt.
        if not any([share.prefill_tokens or share.decode_tokens - 1 for share in work]):  # noqa: C419  a list is quicker
            contexts = [share.kv_tokens_read for share in work]
            cached = self.kv_cost + self.pair_cost
            fixed = self.token_cost + self.weights_cost / count if count else 0.0
            return Weighed(None, contexts, cached, fixed, cached * sum(contexts) + fixed * count, by_context=True)
        rows = self.weights(work)
        prefill, decode = [row[1] for row in rows], [row[2] for row in rows]
        return Weighed(prefill if any(prefill) else None, decode, 1.0, 0.0, sum(prefill) + sum(decode))

    def weights(self, work: Sequence[Share]) -> list[tuple[str, float, float]]:
        """For each share `(request id, prefill weight, decode weight)`."""
        decoding = prompt_tokens = 0
        for share in work:
            prompt_tokens += share.prefill_tokens
            decoding += share.decode_tokens > 0
        per_decode = self.weights_cost / decoding if decoding else 0.0
        token_cost, cached_cost = self.token_cost, self.kv_cost + self.pair_cost
        if not prompt_tokens:
            fixed = per_decode + token_cost
            return [
                (share.request_id, 0.0, share.kv_tokens_read * cached_cost + fixed)
                if share.decode_tokens == 1
                else (share.request_id, 0.0, self._decode_cost(share, per_decode))
                for share in work
            ]
        per_prompt_token = 0.0 if decoding else self.weights_cost / prompt_tokens
        result = []
        for share in work:
            prefill, context = share.prefill_tokens, share.kv_tokens_read
            if not prefill:
                result.append((share.request_id, 0.0, self._decode_cost(share, per_decode)))
                continue
            pairs = prefill * max(context - prefill / 2, prefill / 2)
            cost = prefill * (token_cost + per_prompt_token) + pairs * self.pair_cost + context * self.kv_cost
            drawn = share.decode_tokens * token_cost + per_decode if share.decode_tokens else 0.0
            result.append((share.request_id, cost, drawn))
        return result

    def _decode_cost(self, share: Share, per_decode: float) -> float:
        if not share.decode_tokens:
            return 0.0
        cached = share.kv_tokens_read * (self.kv_cost + self.pair_cost)
        return cached + share.decode_tokens * self.token_cost + per_decode


def step_work(work: Iterable[Share]) -> StepWork:
    """The twin's view of a step, from the shares of its requests."""
    prefill_tokens = prefill_sequences = prefill_kv = decode_sequences = decode_kv = 0
    pairs = 0.0
    for share in work:
        prefill, context = share.prefill_tokens, share.kv_tokens_read
        if prefill:
            prefill_tokens += prefill
            prefill_sequences += 1
            prefill_kv += context
            pairs += prefill * max(context - prefill / 2, prefill / 2)
        if share.decode_tokens:
            decode_sequences += share.decode_tokens
            decode_kv += context if not prefill else 0
    return StepWork(prefill_tokens, prefill_sequences, prefill_kv, pairs, decode_sequences, decode_kv)
