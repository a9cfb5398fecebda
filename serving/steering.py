"""Power and carbon of the requests being served: which directive each gets, what each cost.

Both planes are optional. Nothing here waits, and a plane that fails costs a request its figures, never its answer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from msgspec import UNSET, UnsetType

from carbon.accounting import JOULES_PER_KWH, RequestFootprint
from carbon.accounting import RequestEnergy as ChargedEnergy
from carbon.directives import AUTO, OFF, DirectiveRefusedError, Reason, RequestTraits, asked_directive
from carbon.plane import CarbonPlane
from carbon.plane_values import DirectiveDecision, Outcome
from engine.batch import StepRecord
from engine.client_protocol import EngineStats, Generation
from power.books import RequestEnergy
from power.plane import PowerPlane
from power.quantities import weakest
from serving.openai_errors import ApiError, BadRequestError
from serving.openai_requests import ChatCompletionRequest
from serving.openai_responses import EnergyUsage

if TYPE_CHECKING:
    from serving.service import Caller, Run

logger = logging.getLogger(__name__)

Directed = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]
# A pace is told to the engine when it has moved by more than this; steps differ that much by themselves.
PACE_STEP = 0.02
EVALUATOR = "gridserve-evaluator"
"""Whose name the quality evaluator's own requests carry; they teach nothing of the traffic."""


class Steering:
    """The planes behind the inference API.

    `undirected`: prompt classes whose answers are never shortened. `set_pace` slows the engine as a simulated
    device's clock says.
    """

    def __init__(
        self,
        power: PowerPlane | None = None,
        carbon: CarbonPlane | None = None,
        policy_revision: str | None = None,
        undirected: frozenset[str] = frozenset(),
        set_pace: Callable[[float], None] = lambda factor: None,
    ) -> None:
        self.power = power
        self.carbon = carbon
        self.policy_revision = policy_revision
        self.directive_of: Callable[[str], str] = lambda tenant: AUTO
        """The directive the policy's rules give a tenant's requests that ask for auto: auto, off or a level."""
        self._undirected = undirected
        self.set_pace = set_pace
        self._pace = 1.0
        self._energies: dict[str, RequestEnergy | None] = {}

    def follow_policy(
        self, revision: str, undirected: frozenset[str], directive_of: Callable[[str], str] = lambda tenant: AUTO
    ) -> None:
        """Take over what a policy says of directives; requests already decided keep theirs."""
        self.policy_revision = revision
        self._undirected = undirected
        self.directive_of = directive_of

    def on_step(self, record: StepRecord, stats: EngineStats) -> None:
        """Account a step of the engine."""
        if self.power is None:
            return
        self.power.on_step(record)
        self.power.set_queue(stats.waiting)
        pace = self.power.stretch_factor(record)
        if abs(pace - self._pace) > PACE_STEP * self._pace:
            self._pace = pace
            self.set_pace(pace)

    def decide(self, body: ChatCompletionRequest, caller: Caller) -> DirectiveDecision | None:
        """The directive of a chat request; None without a carbon plane.

        Raises `BadRequestError` for a directive that is unknown or not allowed, `ApiError` 429 for a used-up budget.
        """
        try:
            asked = asked_directive(body.directive, caller.directive)
            if self.carbon is None:
                if asked.lower() not in ("auto", "off"):
                    raise DirectiveRefusedError("this server runs without directives; leave it out")
                return None
            structured, tools = _is_structured(body), bool(body.tools) and body.tool_choice != "none"
            tenant = caller.key_name or ""
            prompt = (tenant, _last_user_text(body), body.task or caller.task)
            ruled = self.directive_of(tenant) if asked.lower() == AUTO and not (structured or tools) else AUTO
            decision = self._select(*prompt, RequestTraits(asked if ruled == AUTO else ruled, structured, tools))
            if ruled != AUTO:
                decision = replace(decision, reason=Reason.TENANT)
            if decision.prompt_class in self._undirected and asked.lower() == AUTO:
                decision = replace(self._select(*prompt, RequestTraits(OFF)), reason=Reason.TENANT)
        except DirectiveRefusedError as error:
            raise BadRequestError(str(error), "directive") from None
        if decision.refused:
            seconds = max(1, round(decision.retry_after_s or 60))
            raise ApiError(
                429,
                f"the carbon budget of {decision.tenant!r} is used up; it reopens in {seconds} s",
                code="carbon_budget_exceeded",
                headers={"Retry-After": str(seconds)},
            )
        return decision

    def _select(
        self, tenant: str, text: str | None, prompt_class: str | None, traits: RequestTraits
    ) -> DirectiveDecision:
        assert self.carbon is not None
        return self.carbon.select(tenant=tenant, prompt_text=text, prompt_class=prompt_class, traits=traits)

    def directed(self, decision: DirectiveDecision | None) -> Directed | None:
        """What puts the decided directive into a conversation."""
        carbon = self.carbon
        if carbon is None or decision is None or decision.text is None:
            return None
        return lambda messages: carbon.apply_directive(messages, decision)

    @contextmanager
    def following(self, generations: Sequence[Generation]) -> Iterator[None]:
        """Count these sequences from admission until they end, however that is."""
        if self.power is None:
            yield
            return
        for generation in generations:
            self.power.admit(generation.request_id, len(generation.prompt_token_ids))
        try:
            yield
        finally:
            for generation in generations:
                self.finished(generation.request_id)
                self._energies.pop(generation.request_id, None)

    def finished(self, request_id: str) -> None:
        """The sequence has drawn its last token."""
        if self.power is not None and request_id not in self._energies:
            self._energies[request_id] = self.power.finish(request_id)

    def report(self, generations: Sequence[Generation], decision: DirectiveDecision | None) -> EnergyUsage | UnsetType:
        """The `energy` object of a finished request; absent when neither plane runs."""
        if self.power is None and self.carbon is None:
            return UNSET
        try:
            return self._usage_of([self._energies.get(generation.request_id) for generation in generations], decision)
        except Exception:
            logger.exception("the energy of a request could not be reported; its answer is complete")
            return UNSET

    def settled(self, request_ids: Sequence[str], decision: DirectiveDecision | None) -> EnergyUsage | None:
        """The `energy` object of a request that has left, by the newest figures; None without the planes."""
        if self.power is None and self.carbon is None:
            return None
        power = self.power
        found = [power.request_energy(request_id) if power is not None else None for request_id in request_ids]
        return self._usage_of(found, decision)

    def _usage_of(self, found: Sequence[RequestEnergy | None], decision: DirectiveDecision | None) -> EnergyUsage:
        charged, energies = self._charged(found)
        footprint = self.carbon.footprint(charged) if self.carbon is not None else None
        return self._usage(charged, energies, footprint, decision)

    def learn(self, run: Run) -> None:
        """Tell the carbon plane what a finished request took."""
        if self.carbon is None or run.decision is None or run.caller.key_name == EVALUATOR:
            return
        try:
            charged, _ = self._charged([self._energies.get(one.request_id) for one in run.generations])
            total_g = self.carbon.footprint(charged).total_g
            self.carbon.observe(
                Outcome(
                    run.decision,
                    run.count.prompt_tokens,
                    run.count.completion_tokens,
                    charged,
                    total_g,
                    prompt_text=_last_user_text(run.body) if isinstance(run.body, ChatCompletionRequest) else None,
                    declared_class=run.body.task or run.caller.task,
                )
            )
        except Exception:
            logger.exception("the carbon plane did not take an outcome; serving goes on")

    def _charged(self, found: Sequence[RequestEnergy | None]) -> tuple[ChargedEnergy, list[RequestEnergy]]:
        """Joules of all sequences of a request together."""
        energies = [energy for energy in found if energy is not None]
        if self.power is None or not energies or len(energies) < len(found):
            why = "no power device" if self.power is None else "not attributed"
            return ChargedEnergy(None, why), []
        idle = [energy.idle_j for energy in energies if energy.idle_j is not None]
        idle_j = sum(idle) if len(idle) == len(energies) else None
        idle_w = self.power.idle_power_w
        method = weakest(energy.method for energy in energies)
        charged = ChargedEnergy(
            sum(energy.joules for energy in energies),
            str(method),
            prefill_j=sum(energy.prefill_j for energy in energies),
            decode_j=sum(energy.decode_j for energy in energies),
            idle_j=idle_j,
            # Idle power is split by residency, so idle joules over idle watts is the request's share of device time.
            device_s=idle_j / idle_w if idle_j is not None and idle_w else None,
        )
        return charged, energies

    def _usage(
        self,
        charged: ChargedEnergy,
        energies: Sequence[RequestEnergy],
        footprint: RequestFootprint | None,
        decision: DirectiveDecision | None,
    ) -> EnergyUsage:
        known = charged.energy_j is not None and bool(energies)
        duration_s = max((energy.duration_s for energy in energies), default=None)
        bounds = [energy.uncertainty_percent for energy in energies if energy.uncertainty_percent is not None]
        intensity = footprint.intensity if footprint is not None else None
        missing = [] if known else [f"energy: {charged.method}"]
        if footprint is None:
            missing.append("grams: no carbon feed is configured")
        elif footprint.reason:
            missing.append(footprint.reason)
        missing += sorted({energy.idle_reason for energy in energies if energy.idle_reason})
        return EnergyUsage(
            energy_joules=charged.energy_j,
            energy_kwh=None if charged.energy_j is None else charged.energy_j / JOULES_PER_KWH,
            prefill_joules=charged.prefill_j,
            decode_joules=charged.decode_j,
            idle_joules=charged.idle_j,
            avg_power_watts=charged.energy_j / duration_s if charged.energy_j is not None and duration_s else None,
            duration_seconds=duration_s,
            method=charged.method if known else None,
            source=str(energies[0].source) if known else None,
            scope=str(energies[0].scope) if known else None,
            attribution_method=energies[0].attribution_method if known else None,
            uncertainty_percent=max(bounds) if known and len(bounds) == len(energies) else None,
            settled=all(energy.settled for energy in energies) if known else None,
            grams_co2e=footprint.total_g if footprint else None,
            operational_grams=footprint.operational_g if footprint else None,
            embodied_grams=footprint.embodied_g if footprint else None,
            pue=footprint.pue if footprint else None,
            carbon_intensity_g_per_kwh=intensity.g_per_kwh if intensity else None,
            carbon_source=intensity.source if intensity else None,
            carbon_kind=intensity.kind if intensity else None,
            carbon_tier=intensity.tier if intensity else None,
            carbon_age_seconds=intensity.age_s if intensity else None,
            zone=intensity.zone if intensity else None,
            directive=decision.level_id if decision else None,
            directive_reason=str(decision.reason) if decision else None,
            policy_revision=self.policy_revision,
            unknown="; ".join(missing) or None,
        )


def _is_structured(body: ChatCompletionRequest) -> bool:
    form = body.response_format
    asked = (body.structured_outputs, body.guided_json, body.guided_regex, body.guided_choice)
    return (form is not None and form.type != "text") or any(value is not None for value in asked)


def _last_user_text(body: ChatCompletionRequest) -> str | None:
    """The words of the last user message, for classing the prompt."""
    for message in reversed(body.messages):
        if message.role == "user" and message.content is not None:
            if isinstance(message.content, str):
                return message.content
            return "\n".join(part.text for part in message.content)
    return None
