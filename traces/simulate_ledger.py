"""Joules of each request in a simulation, by the rule of `power.attribution` (method `work_share`).

There the energy of a step must be inferred from a counter; here it is known for every step, so that the rule has a
closed form. Of each step the idle power's part is taken out and split equally among the resident requests; the rest
goes by `WorkModel` weights. For a run of `k` decode steps a request's weight grows by the same amount each step, so
its share is `weight * sum(D / W) + growth * sum(n D / W)`. A test holds the ledger against the `Attributor`.
"""

from __future__ import annotations

from collections.abc import Sequence

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

    def step(self, energy: StepEnergy, by_id: dict[str, SimulatedRequest]) -> None:
        weights = self.work_model.weights(energy.work)
        total = 0.0
        for _, prefill, decode in weights:
            total += prefill + decode
        unit = (energy.joules - energy.idle_j) / total
        for request_id, prefill, decode in weights:
            request = by_id[request_id]
            if prefill:
                request.prefill_j += prefill * unit
                self.prefill_j += prefill * unit
            request.decode_j += decode * unit
            self.decode_j += decode * unit
        self.rest(energy.idle_j)

    def decode_run(self, run: DecodeRun, decoders: Sequence[SimulatedRequest]) -> None:
        """`decoders` as they stood before the run: each reads one more cached token with every step."""
        model = self.work_model
        cached = model.kv_cost + model.pair_cost
        fixed_j = (model.weights_cost / len(decoders) + model.token_cost) * run.unit_j
        growth_j = cached * run.moment_j + fixed_j
        per_token_j = cached * run.unit_j
        total = 0.0
        for request in decoders:
            joules = (request.num_computed_tokens + 1) * per_token_j + growth_j
            request.decode_j += joules
            total += joules
        self.decode_j += total
        self.rest(run.idle_j)

    @property
    def all_idle_j(self) -> float:
        """Claimed by requests or not."""
        return self._granted_j + self.idle_j

    def closure_error_j(self, drawn_j: float) -> float:
        """Idle joules still to be claimed by residents count as handed out."""
        return drawn_j - self.prefill_j - self.decode_j - self._granted_j - self.idle_j
