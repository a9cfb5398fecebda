"""Finished requests on their way to the ledger: each waits until the meter has covered its last step.

Nothing here is waited for by a request. A figure that does not settle in time is taken as it is, and says so by its
method; without planes the row goes at once.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from carbon.plane_values import DirectiveDecision
from serving.generation import TextDelta
from serving.ledger.rows import RequestRow
from serving.openai_requests import ChatCompletionRequest
from serving.openai_responses import EnergyUsage
from serving.service import Run
from serving.steering import Steering
from serving.trace_context import RequestTrace

logger = logging.getLogger(__name__)

SETTLE_S = 3.0
MAX_PENDING = 20_000
MAX_SWEPT = 16
"""So many are passed on before others get their turn: each takes about a tenth of a millisecond."""


@dataclass(slots=True)
class _Choice:
    first_s: float
    last_s: float
    tokens: int


@dataclass(slots=True)
class RequestLife:
    """What is seen of a request while it is served. Times are monotonic seconds. `answer`: kept only where wanted.
    `admitted_s`: when the engine began with the first of its choices."""

    answer: list[str] | None = None
    finish_reason: str | None = None
    admitted_s: float | None = None
    choices: dict[int, _Choice] = field(default_factory=dict)

    def saw(self, delta: TextDelta, now_s: float) -> None:
        if delta.admitted_s is not None and (self.admitted_s is None or delta.admitted_s < self.admitted_s):
            self.admitted_s = delta.admitted_s
        if delta.token_ids:
            choice = self.choices.get(delta.index)
            if choice is None:
                self.choices[delta.index] = _Choice(now_s, now_s, len(delta.token_ids))
            else:
                choice.last_s, choice.tokens = now_s, choice.tokens + len(delta.token_ids)
        if self.answer is not None and delta.index == 0:
            self.answer.append(delta.text)
        if delta.finish_reason is not None:
            self.finish_reason = str(delta.finish_reason)

    @property
    def first_s(self) -> float | None:
        return min((choice.first_s for choice in self.choices.values()), default=None)

    @property
    def tpot_s(self) -> float | None:
        """Mean time between tokens over all choices; None while no choice has two."""
        spans = [(choice.last_s - choice.first_s, choice.tokens - 1) for choice in self.choices.values()]
        gaps = sum(count for _, count in spans if count > 0)
        return sum(span for span, count in spans if count > 0) / gaps if gaps else None


@dataclass(frozen=True, slots=True)
class Finished:
    """A request that has ended, before its energy is known. `trace`: where requests are traced."""

    request_id: str
    generation_ids: tuple[str, ...]
    decision: DirectiveDecision | None
    model: str
    tenant: str | None
    endpoint: str
    task_class: str | None
    priority: int | None
    arrived_unix_s: float
    finished_unix_s: float
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    choices: int
    queue_s: float | None
    ttft_s: float | None
    tpot_s: float | None
    e2e_s: float
    finish_reason: str
    status: int
    policy_mode: str | None
    prompt_text: str | None = None
    answer_text: str | None = None
    trace: RequestTrace | None = None


OnSettled = Callable[[Finished, EnergyUsage | None], None]


class RequestLog:
    """`finish` from the event loop; `sweep` a few times a second. `on_settled` gets each request once, with its energy
    (None without planes)."""

    def __init__(
        self, steering: Steering, on_settled: Sequence[OnSettled], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._steering = steering
        self._on_settled = tuple(on_settled)
        self._clock = clock
        self._pending: deque[tuple[float, Finished]] = deque()
        self.unsettled = 0

    def also(self, take: OnSettled) -> None:
        """One more that is told of each settled request."""
        self._on_settled += (take,)

    @property
    def pending(self) -> int:
        return len(self._pending)

    def finish(self, finished: Finished) -> None:
        if self._steering.power is None:
            self._settle(finished)
            return
        self._pending.append((self._clock() + SETTLE_S, finished))
        while len(self._pending) > MAX_PENDING:
            self._settle(self._pending.popleft()[1])

    def sweep(self, *, everything: bool = False, at_most: int = MAX_SWEPT) -> bool:
        """Pass on what has settled or has waited long enough, oldest first; whether more may be due at once.

        Requests settle in about the order in which they end, so nothing is looked for behind one that waits.
        """
        now = self._clock()
        for _ in range(at_most if not everything else len(self._pending)):
            if not self._pending:
                return False
            due_s, finished = self._pending[0]
            settled = self._is_settled(finished)
            if not (settled or everything or now >= due_s):
                return False
            self._pending.popleft()
            self.unsettled += not settled
            self._settle(finished)
        return bool(self._pending)

    def _is_settled(self, finished: Finished) -> bool:
        power = self._steering.power
        if power is None:
            return True
        figures = [power.request_energy(one) for one in finished.generation_ids]
        return all(figure is not None and figure.settled for figure in figures)

    def _settle(self, finished: Finished) -> None:
        try:
            usage = self._steering.settled(finished.generation_ids, finished.decision)
        except Exception:
            logger.exception("the energy of a request could not be worked out; it is recorded without")
            usage = None
        for take in self._on_settled:
            try:
                take(finished, usage)
            except Exception:
                logger.exception("a finished request could not be recorded; serving goes on")


def finished_of(
    run: Run,
    life: RequestLife,
    status: int,
    policy_mode: str | None,
    ended_s: float,
    with_text: bool,
    trace: RequestTrace | None = None,
) -> Finished:
    """What is to be kept of a run that has ended now. `ended_s`: monotonic."""
    body, caller, count, wall_s = run.body, run.caller, run.count, time.time()
    first_s, e2e_s = life.first_s, ended_s - caller.arrival_s
    is_chat = isinstance(body, ChatCompletionRequest)
    decision = run.decision
    return Finished(
        request_id=run.id,
        generation_ids=tuple(generation.request_id for generation in run.generations),
        decision=decision,
        model=run.model,
        tenant=caller.key_name,
        endpoint="/v1/chat/completions" if is_chat else "/v1/completions",
        task_class=decision.prompt_class if decision is not None else body.task or caller.task,
        priority=body.priority,
        arrived_unix_s=wall_s - e2e_s,
        finished_unix_s=wall_s,
        prompt_tokens=count.prompt_tokens,
        completion_tokens=count.completion_tokens,
        cached_tokens=count.usage().prompt_tokens_details.cached_tokens,
        choices=len(run.generations),
        queue_s=max(0.0, life.admitted_s - caller.arrival_s) if life.admitted_s is not None else None,
        ttft_s=first_s - caller.arrival_s if first_s is not None else None,
        tpot_s=life.tpot_s,
        e2e_s=e2e_s,
        finish_reason=life.finish_reason
        if status == 200 and life.finish_reason
        else "error"
        if status >= 500
        else "abort",
        status=status,
        policy_mode=policy_mode,
        prompt_text=_prompt_text(run) if with_text else None,
        answer_text="".join(life.answer) if with_text and life.answer is not None else None,
        trace=trace,
    )


def _prompt_text(run: Run) -> str:
    body = run.body
    if not isinstance(body, ChatCompletionRequest):
        return str(getattr(body, "prompt", ""))
    parts = []
    for message in body.messages:
        content = message.content
        text = content if isinstance(content, str) else "\n".join(part.text for part in content or ())
        parts.append(f"{message.role}: {text}")
    return "\n".join(parts)


def row_of(finished: Finished, usage: EnergyUsage | None, basis: str | None, boundary: str | None) -> RequestRow:
    """The ledger's row. `basis`, `boundary`: what the intensity in `usage` counts."""
    known = usage is not None and usage.carbon_intensity_g_per_kwh is not None
    return RequestRow(
        request_id=finished.request_id,
        arrived_us=round(finished.arrived_unix_s * 1e6),
        finished_us=round(finished.finished_unix_s * 1e6),
        model=finished.model,
        tenant=finished.tenant,
        endpoint=finished.endpoint,
        task_class=finished.task_class,
        directive=finished.decision.level_id if finished.decision else None,
        directive_reason=str(finished.decision.reason) if finished.decision else None,
        policy_revision=usage.policy_revision if usage else None,
        policy_mode=finished.policy_mode,
        priority=finished.priority,
        prompt_tokens=finished.prompt_tokens,
        completion_tokens=finished.completion_tokens,
        cached_tokens=finished.cached_tokens,
        choices=finished.choices,
        queue_s=finished.queue_s,
        ttft_s=finished.ttft_s,
        tpot_s=finished.tpot_s,
        e2e_s=finished.e2e_s,
        energy_j=usage.energy_joules if usage else None,
        prefill_j=usage.prefill_joules if usage else None,
        decode_j=usage.decode_joules if usage else None,
        idle_j=usage.idle_joules if usage else None,
        energy_method=usage.method if usage else None,
        energy_source=usage.source if usage else None,
        energy_scope=usage.scope if usage else None,
        attribution_method=usage.attribution_method if usage else None,
        energy_uncertainty_percent=usage.uncertainty_percent if usage else None,
        operational_g=usage.operational_grams if usage else None,
        embodied_g=usage.embodied_grams if usage else None,
        pue=usage.pue if usage else None,
        intensity_g_per_kwh=usage.carbon_intensity_g_per_kwh if usage else None,
        intensity_source=usage.carbon_source if usage else None,
        intensity_kind=usage.carbon_kind if usage else None,
        intensity_tier=usage.carbon_tier if usage else None,
        intensity_basis=basis if known else None,
        intensity_boundary=boundary if known else None,
        intensity_age_s=usage.carbon_age_seconds if usage else None,
        zone=usage.zone if usage else None,
        finish_reason=finished.finish_reason,
        status=finished.status,
        prompt_text=finished.prompt_text,
        answer_text=finished.answer_text,
    )
