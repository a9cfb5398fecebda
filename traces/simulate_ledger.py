"""Joules of each request in a simulation, by the rule of `power.attribution` (method `work_share`).

There the energy of a step must be inferred from a counter; here it is known for every step, so that the rule has a
closed form. Of each step the idle power's part is taken out and split equally among the resident requests; the rest
goes by `WorkModel` weights. Over a run of decode steps a request's weight grows by the same amount each step, which has
a closed form too (`simulate_decoders`). A test holds the ledger against the `Attributor`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.batch import Batch
from power.work import WorkModel
from traces.simulate_board import DecodeRun
from traces.simulate_request import SimulatedRequest
from traces.twin_executor import StepEnergy


class Ledger:
    """Running totals, J. `closure_error_j` is what was drawn less what was handed out."""

    def __init__(self, work_model: WorkModel) -> None:
        self.work_model = work_model
        self.residents = 0
        self.prefill_j = 0.0
        self.decode_j = 0.0
        self.request_idle_j = 0.0
        self.idle_j = 0.0
        self._each_j = 0.0
        self._granted_j = 0.0

    def arrive(self, request: SimulatedRequest) -> None:
        request.idle_mark_j = self._each_j
        self.residents += 1

    def leave(self, request: SimulatedRequest) -> float:
        """The idle joules of a request that has finished."""
        self.residents -= 1
        idle_j = self._each_j - request.idle_mark_j
        self.request_idle_j += idle_j
        return idle_j

    def rest(self, joules: float) -> None:
        """Idle time: nobody's when nobody is resident."""
        if self.residents:
            self._each_j += joules / self.residents
            self._granted_j += joules
        else:
            self.idle_j += joules

    def step(self, energy: StepEnergy, batch: Batch, others: float = 0.0) -> float:
        """One step of `batch`, before its result is taken in. The weights are `WorkModel.weights`; `others`: that of
        requests that decode beside the batch and are booked elsewhere. Dynamic joules over all weights."""
        model, total = self.work_model, energy.total
        cached_cost, token_cost, decoding = model.kv_cost + model.pair_cost, model.token_cost, energy.decoding
        per_decode = model.weights_cost / decoding if decoding else 0.0
        dynamic_j = energy.joules - energy.idle_j
        scheduled_requests: Sequence[Any] = batch.requests  # of `SimulatedRequest`s, which the engine does not know
        if not total.prefill_tokens:
            weight = total.decode_kv_tokens * cached_cost + decoding * per_decode + total.decode_sequences * token_cost
            unit = dynamic_j / weight
            per_token_j = cached_cost * unit
            for scheduled in scheduled_requests:
                tokens = scheduled.num_tokens
                drawn_j = (per_decode + tokens * token_cost) * unit
                scheduled.request.decode_j += (scheduled.start + tokens) * per_token_j + drawn_j
            self.decode_j += dynamic_j
            self.rest(energy.idle_j)
            return unit
        per_prompt_token = token_cost if decoding else token_cost + model.weights_cost / total.prefill_tokens
        shares: list[tuple[SimulatedRequest, float, float]] = []
        prefill_weight, decode_weight = 0.0, others
        for scheduled in scheduled_requests:
            request, start, tokens = scheduled.request, scheduled.start, scheduled.num_tokens
            left, context = request.prefill_end - start, start + tokens
            if left <= 0:
                prefill, drawn = 0.0, context * cached_cost + tokens * token_cost + per_decode
            else:
                prompt = min(left, tokens)
                pairs = prompt * max(context - prompt / 2, prompt / 2)
                prefill = prompt * per_prompt_token + pairs * model.pair_cost + context * model.kv_cost
                drawn = (tokens - prompt) * token_cost + per_decode if prompt < tokens else 0.0
            prefill_weight += prefill
            decode_weight += drawn
            shares.append((request, prefill, drawn))
        unit = dynamic_j / (prefill_weight + decode_weight)
        for request, prefill, drawn in shares:
            request.prefill_j += prefill * unit
            request.decode_j += drawn * unit
        self.prefill_j += prefill_weight * unit
        self.decode_j += decode_weight * unit
        self.rest(energy.idle_j)
        return unit

    def decode_run(self, run: DecodeRun) -> None:
        """Decode steps whose joules come to the requests later (`simulate_decoders`)."""
        self.decode_j += run.dynamic_j
        self.rest(run.idle_j)

    @property
    def all_idle_j(self) -> float:
        """Claimed by requests or not."""
        return self._granted_j + self.idle_j

    def closure_error_j(self, drawn_j: float) -> float:
        """Idle joules still to be claimed by residents count as handed out."""
        return drawn_j - self.prefill_j - self.decode_j - self._granted_j - self.idle_j
