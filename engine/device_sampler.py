"""Drawing tokens on the device: nothing is read back before the one copy of the step's result.

A draw is the argmax of logits over temperature plus Gumbel noise keyed by (seed, position, token id), so a request's
tokens depend on its own logits alone. Only guides need the host: their masks follow from tokens it has seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from engine.batch import SampledTokens, TokenLogprobs
from engine.guided import GuideCompiler, GuideMatcher
from engine.request import Request
from engine.request_rows import FREQUENCY, MIN_P, PRESENCE, REPETITION, TEMPERATURE, TOP_K, TOP_P, RequestRows, Seat
from engine.sampler import NOTHING_POSSIBLE
from engine.transfers import Download, Transfers
from kernels import ops


@dataclass(slots=True)
class _Shape:
    """What changes one request's logits, on the device; None where nothing does."""

    bias_ids: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    ending_ids: torch.Tensor | None = None
    guide: GuideMatcher | None = None
    guided: int = 0


@dataclass(frozen=True, slots=True)
class Drawn:
    """A step's draws under way: `download` brings tokens `[R]`, then log-probabilities where asked for.

    `wants`: for each row of log-probabilities, its row of the draws and how many alternatives it reports.
    """

    download: Download
    count: int
    errors: dict[int, str]
    wants: tuple[tuple[int, int], ...]

    def wait(self) -> list[SampledTokens]:
        """The draws, when they have arrived."""
        tokens, *rest = self.download.wait()
        logprobs: dict[int, tuple[TokenLogprobs, ...]] = {}
        if self.wants:
            chosen, values, ids = (each.tolist() for each in rest)
            for at, (row, top) in enumerate(self.wants):
                pairs = tuple(zip(ids[at][:top], values[at][:top]))
                logprobs[row] = (TokenLogprobs(chosen[at], pairs),)
        result = []
        for row, token in enumerate(tokens.tolist()):
            error = self.errors.get(row) or (NOTHING_POSSIBLE if token < 0 else None)
            result.append(SampledTokens(error=error) if error else SampledTokens((token,), logprobs.get(row, ())))
        return result


class DeviceSampler:
    """Draws for the rows of `RequestRows`; keeps count tables there once a request asks for penalties."""

    def __init__(
        self, vocab_size: int, rows: RequestRows, transfers: Transfers, guide_compiler: GuideCompiler | None = None
    ) -> None:
        self._vocab_size = vocab_size
        self._rows = rows
        self._transfers = transfers
        self._guide_compiler = guide_compiler
        self._shapes: dict[int, _Shape] = {}
        self._failed: dict[int, str] = {}
        self._output_counts: torch.Tensor | None = None
        self._prompt_seen: torch.Tensor | None = None

    def arrive(self, seats: Sequence[Seat]) -> None:
        """Prepare the rows of requests that take their seat now; a guide that fails is told when the row draws."""
        for seat in seats:
            self._shapes.pop(seat.row, None)
            self._failed.pop(seat.row, None)
            try:
                shape = self._shape(seat.request)
            except ValueError as error:
                self._failed[seat.row] = str(error)
                continue
            if shape is not None:
                self._shapes[seat.row] = shape
            if seat.request.sampling.penalised:
                self._count_known(seat)

    def draw(
        self,
        logits: torch.Tensor,
        seats: Sequence[Seat],
        rows: torch.Tensor,
        ends: torch.Tensor,
        num_outputs: Sequence[int],
    ) -> Drawn:
        """Draw one token for each row of `logits` `[R, V]` fp32, which may be changed in place.

        Args:
            rows: `[R]` int32 on the device, the row of each of `seats`.
            ends: `[R]` int32 on the device, the position of the token to draw.
            num_outputs: tokens each request has generated before this one.
        """
        params = [seat.request.sampling for seat in seats]
        wants = tuple((row, each.logprobs) for row, each in enumerate(params) if each.logprobs is not None)
        raw = None
        if wants:
            picked = self._transfers.upload(np.array([row for row, _ in wants], dtype=np.int64))
            # As OpenAI and vLLM report them: before bias, penalties and temperature.
            raw = torch.log_softmax(logits.index_select(0, picked), dim=-1)
        slots = self._penalty_slots(seats)
        greedy = all(each.greedy for each in params)
        draws = None if greedy and slots is None else self._rows.draws.index_select(1, rows)
        errors = self._shape_logits(logits, seats, num_outputs, slots, draws)
        if draws is None or greedy:
            tokens = ops.greedy_argmax(logits)
        else:
            thresholds = torch.full_like(draws[TEMPERATURE], -torch.inf)
            if any(each.top_k > 0 or each.top_p < 1.0 or each.min_p > 0.0 for each in params):
                thresholds = ops.sampling_thresholds(
                    logits, draws[TEMPERATURE], draws[TOP_K].int(), draws[TOP_P], draws[MIN_P]
                )
            seeds = self._rows.seeds.index_select(0, rows)
            tokens = ops.gumbel_sample(logits, draws[TEMPERATURE], thresholds, seeds, ends.long())
        possible = tokens.clamp(min=0)
        self._rows.last_tokens.index_copy_(0, rows.long(), possible)
        if slots is not None and self._output_counts is not None:
            ops.count_tokens(self._output_counts, slots, possible)
        results = [tokens]
        if raw is not None:
            top = torch.topk(raw, min(max(1, *(count for _, count in wants)), self._vocab_size))
            chosen = raw.gather(1, possible.index_select(0, picked).unsqueeze(1)).squeeze(1)
            results += [chosen, top.values, top.indices]
        return Drawn(self._transfers.download(results), len(seats), errors, wants)

    def _shape(self, request: Request) -> _Shape | None:
        params = request.sampling
        shape = _Shape()
        if params.logit_bias:
            shape.bias_ids = self._transfers.upload(np.array(list(params.logit_bias), dtype=np.int64))
            shape.bias = self._transfers.upload(np.array(list(params.logit_bias.values()), dtype=np.float32))
        if params.min_tokens:
            endings = sorted(request.eos_token_ids | set(params.stop_token_ids))
            if endings:
                shape.ending_ids = self._transfers.upload(np.array(endings, dtype=np.int64))
        if params.guide is not None:
            if self._guide_compiler is None:
                raise ValueError("guided output needs a tokenizer, and this engine was started without one")
            shape.guide = self._guide_compiler.compile(params.guide)
            shape.guided = request.num_prompt_tokens
        return None if shape == _Shape() else shape

    def _shape_logits(
        self,
        logits: torch.Tensor,
        seats: Sequence[Seat],
        num_outputs: Sequence[int],
        slots: torch.Tensor | None,
        draws: torch.Tensor | None,
    ) -> dict[int, str]:
        """Bias, penalties, the minimum length, then the guide; returns what failed, by row."""
        errors = {row: self._failed[seat.row] for row, seat in enumerate(seats) if seat.row in self._failed}
        shaped = [(row, seat, self._shapes[seat.row]) for row, seat in enumerate(seats) if seat.row in self._shapes]
        for row, _, shape in shaped:
            if shape.bias_ids is not None and shape.bias is not None:
                logits[row].index_add_(0, shape.bias_ids, shape.bias)
        if slots is not None and draws is not None:
            assert self._output_counts is not None
            assert self._prompt_seen is not None
            factors = draws[REPETITION], draws[FREQUENCY], draws[PRESENCE]
            ops.apply_penalties(logits, slots.clamp(min=0), self._output_counts, self._prompt_seen, *factors)
        for row, seat, shape in shaped:
            if shape.ending_ids is not None and num_outputs[row] < seat.request.sampling.min_tokens:
                logits[row].index_fill_(0, shape.ending_ids, -torch.inf)
            if shape.guide is not None:
                try:
                    self._follow_guide(logits[row], seat.request, shape, shape.guide)
                except ValueError as error:
                    errors[row] = str(error)
        return errors

    def _follow_guide(self, logits: torch.Tensor, request: Request, shape: _Shape, guide: GuideMatcher) -> None:
        for token_id in request.token_ids[shape.guided :]:
            guide.accept(token_id)
        shape.guided = request.num_tokens
        logits.masked_fill_(self._transfers.upload(guide.forbidden()), -torch.inf)

    def _penalty_slots(self, seats: Sequence[Seat]) -> torch.Tensor | None:
        """`[R]` int32: rows of the count tables, -1 for requests without penalties; None where no request has any."""
        if self._output_counts is None or not any(seat.request.sampling.penalised for seat in seats):
            return None
        chosen = [seat.row if seat.request.sampling.penalised else -1 for seat in seats]
        return self._transfers.upload(np.array(chosen, dtype=np.int32))

    def _count_known(self, seat: Seat) -> None:
        """Fill the row of the tables from the tokens that are known."""
        if self._output_counts is None or self._prompt_seen is None:
            shape = (self._rows.padding_row, self._vocab_size)
            device = self._rows.last_tokens.device
            self._output_counts = torch.zeros(shape, dtype=torch.int32, device=device)
            self._prompt_seen = torch.zeros(shape, dtype=torch.bool, device=device)
        request = seat.request
        seen = np.zeros(self._vocab_size, dtype=np.bool_)
        seen[list(request.prompt_token_ids)] = True
        output = request.token_ids[request.num_prompt_tokens :]
        counts = np.bincount(np.array(output, dtype=np.int64), minlength=self._vocab_size)
        self._prompt_seen[seat.row].copy_(self._transfers.upload(seen))
        self._output_counts[seat.row].copy_(self._transfers.upload(counts.astype(np.int32)))
