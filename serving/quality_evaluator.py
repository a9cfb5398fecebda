"""The evaluator inside the server: when the grid is clean, the levels' answers to kept prompts are judged against L0's.

Its requests are ordinary ones of low priority under a name of their own, so that their joules and grams stand in the
ledger and the metrics like anybody's. A run that fails costs the knowledge it would have brought, nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from carbon.evaluator.endpoints import Answer, ChatEndpoint, Endpoint, EndpointError
from carbon.evaluator.judges import CostCap, ExactMatchJudge, Judge, JudgeCost, ModelJudge
from carbon.evaluator.prompt_file import read_prompts
from carbon.evaluator.retention import KeptPrompt
from carbon.evaluator.run import EvaluationPlan, EvaluationResult, evaluate
from carbon.evaluator.schedule import ForecastSchedule, ScheduleDecision, SproutSchedule
from serving.admin_schema import EvaluatorRunState
from serving.bodies import parse_body
from serving.chat import complete_chat
from serving.control_plane import ControlPlane
from serving.openai_errors import ApiError
from serving.openai_requests import ChatCompletionRequest
from serving.openai_responses import EnergyUsage
from serving.policy.directives_section import Evaluator
from serving.prompt_keeper import PromptKeeper
from serving.service import Caller, InferenceService
from serving.steering import EVALUATOR
from serving.tenants_gate import LOW_PRIORITY

logger = logging.getLogger(__name__)

MAX_RUNS = 50
BUSY_S = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
"""Waits before a request that the server refused for lack of room is sent again."""


class ServedEndpoint:
    """The served model, asked inside the process."""

    def __init__(self, service: InferenceService) -> None:
        self._service = service

    async def answer(
        self, messages: Sequence[Mapping[str, Any]], *, max_tokens: int, directive: str | None = None
    ) -> Answer:
        raw = msgspec.json.encode(
            {
                "messages": list(messages),
                "max_completion_tokens": min(max_tokens, self._service.engine.info.max_model_len // 2),
                "temperature": 0,
                "priority": LOW_PRIORITY,
                "directive": directive or "off",
            }
        )
        body = parse_body(raw, ChatCompletionRequest)
        for wait_s in (*BUSY_S, None):
            try:
                done = await complete_chat(self._service, body, Caller(EVALUATOR, time.monotonic(), len(raw)))
            except ApiError as error:
                if error.status not in (429, 503) or wait_s is None:
                    raise EndpointError(f"the served model gave no answer: {error.message}") from None
                await asyncio.sleep(wait_s)
                continue
            energy = done.energy if isinstance(done.energy, EnergyUsage) else None
            return Answer(
                text=done.choices[0].message.content or "",
                prompt_tokens=done.usage.prompt_tokens,
                output_tokens=done.usage.completion_tokens,
                energy_j=energy.energy_joules if energy is not None else None,
                grams=energy.grams_co2e if energy is not None else None,
            )
        raise AssertionError("unreachable: the last try answers or raises")


class QualityEvaluator:
    """`turn` is the background job; `run` judges now. Only one run at a time."""

    def __init__(
        self, control: ControlPlane, service: InferenceService, keeper: PromptKeeper | None, folder: Path = Path()
    ) -> None:
        self._control = control
        self._service = service
        self._keeper = keeper
        self._folder = folder
        self._busy = asyncio.Lock()
        self._begun: asyncio.Task[EvaluatorRunState] | None = None
        self.runs: deque[EvaluatorRunState] = deque(maxlen=MAX_RUNS)
        self.waiting_for: str | None = None
        """Why a run that is due does not begin; None while none is due or one runs."""

    @property
    def running(self) -> bool:
        return self._busy.locked()

    def due(self) -> ScheduleDecision:
        """Whether a run should begin now, by the policy's schedule."""
        evaluator, plane = self._control.evaluator, self._control.carbon
        if evaluator is None or plane is None:
            return ScheduleDecision(False, "the policy has no directives to judge")
        if not evaluator.enabled:
            return ScheduleDecision(False, "the policy says enabled: false")
        return plane.evaluation_due(_schedule(evaluator))

    async def turn(self) -> None:
        """Begin a run if one is due and there is something to judge."""
        due = self.due()
        self.waiting_for = None
        if not due.run or self.running:
            return
        if not await self.prompts():
            self.waiting_for = NOTHING_TO_JUDGE
            return
        await self.run(due.reason, "schedule")

    async def prompts(self) -> dict[str, list[KeptPrompt]]:
        """What could be judged now: kept prompts, and those of the policy's file. Raises `ValueError`, `OSError`."""
        evaluator = self._control.evaluator
        if evaluator is None:
            return {}
        found: dict[str, list[KeptPrompt]] = {}
        if evaluator.prompts is not None:
            found = await asyncio.to_thread(read_prompts, self._folder / evaluator.prompts)
        if self._keeper is not None and self._control.keeps_prompts and evaluator.judge != "exact":
            for name, kept in (await self._keeper.sample(evaluator.max_prompts)).items():
                found.setdefault(name, []).extend(kept)
        return found

    async def begin(self, reason: str, actor: str) -> None:
        """Judge now, without waiting for the end. Raises `ValueError` or `OSError` where there is nothing to judge."""
        if not await self.prompts():
            raise ValueError(NOTHING_TO_JUDGE)
        self._begun = asyncio.create_task(self.run(reason, actor), name="evaluator")
        # The run takes its place before anybody can begin another.
        await asyncio.sleep(0)

    async def close(self) -> None:
        """Cut a run that was begun by hand; what it had judged is lost."""
        if self._begun is not None and not self._begun.done():
            self._begun.cancel()
            await asyncio.gather(self._begun, return_exceptions=True)

    async def run(self, reason: str, actor: str) -> EvaluatorRunState:
        """Judge now. Raises `ValueError` where there is nothing to judge; a failing run is on record and returned."""
        control, plane = self._control, self._control.carbon
        evaluator = control.evaluator
        if evaluator is None or plane is None:
            raise ValueError("the policy in force has no directives to judge")
        async with self._busy:
            prompts = await self.prompts()
            if not prompts:
                raise ValueError(NOTHING_TO_JUDGE)
            began = time.time()
            served = ServedEndpoint(self._service)
            judge, remote = _judge(evaluator, served)
            plan = EvaluationPlan(
                share=max(0.5, min(1.0, plane.settings.plan.quality_floor or 0.95)),
                min_prompts=round(plane.settings.plan.min_judged),
                max_prompts=evaluator.max_prompts,
                max_tokens=evaluator.max_tokens,
                directive_in_field=True,
            )
            result, error = EvaluationResult(), None
            try:
                result = await evaluate(prompts, plane.settings.levels, served, judge, plan)
                await plane.learn_quality(result)
                await plane.replan()
            except Exception as problem:
                logger.exception("a run of the evaluator failed")
                error = f"{type(problem).__name__}: {problem}"
            finally:
                if remote is not None:
                    await remote.close()
            done = _run_of(result, judge, evaluator.judge, began, reason, error, plane.settings.levels.ids)
        self.runs.append(done)
        control.audit(
            "evaluation",
            actor,
            asked={"reason": reason, "judge": evaluator.judge, "classes": {k: len(v) for k, v in prompts.items()}},
            result="failed" if error else "finished",
            inputs=msgspec.to_builtins(done),
            reason=error or done.ended_by,
        )
        await asyncio.to_thread(control.save_learned)
        return done


NOTHING_TO_JUDGE = (
    "there are no prompts to judge: let tenants agree (keep_prompts), or name a file in directives.evaluator.prompts"
)


def _schedule(evaluator: Evaluator) -> ForecastSchedule | SproutSchedule:
    grace_h, idle_h = evaluator.hours
    if evaluator.schedule == "sprout":
        return SproutSchedule(max_idle_h=idle_h, grace_h=grace_h)
    return ForecastSchedule(max_age_h=idle_h, min_age_h=grace_h)


def _judge(evaluator: Evaluator, served: Endpoint) -> tuple[Judge, ChatEndpoint | None]:
    """The policy's judge, and the connection to close after it. Raises `ValueError` for a key that is not set."""
    if evaluator.judge == "exact":
        return ExactMatchJudge(), None
    if evaluator.judge == "self" or evaluator.endpoint is None:
        return ModelJudge(served, served_by_gridserve=True), None
    asked = evaluator.endpoint
    key = os.environ.get(asked.key_env) if asked.key_env is not None else None
    if asked.key_env is not None and not key:
        raise ValueError(f"the environment variable {asked.key_env} with the judge's key is empty or not set")
    cap = CostCap(asked.max_calls, asked.max_cost, asked.prompt_price_per_million, asked.output_price_per_million)
    remote = ChatEndpoint(asked.url, asked.model, api_key=key)
    return ModelJudge(remote, cap), remote


def _run_of(
    result: EvaluationResult,
    judge: Judge,
    name: str,
    began_unix_s: float,
    reason: str,
    error: str | None,
    ids: Sequence[str],
) -> EvaluatorRunState:
    cost, judging = result.cost, judge.cost if isinstance(judge, ModelJudge) else JudgeCost()
    return EvaluatorRunState(
        started_unix_s=began_unix_s,
        finished_unix_s=time.time(),
        reason=reason,
        judge=name,
        judged=len(result.duels),
        verdicts={f"{key} {ids[level]}": str(verdict) for (key, level), verdict in result.verdicts.items()},
        ended_by=result.ended_by,
        generations=cost.generations,
        joules=cost.energy_j if cost.unreported == 0 else None,
        grams=cost.grams if cost.without_grams == 0 else None,
        judge_calls=judging.calls,
        judge_joules=judging.energy_j if judging.unreported == 0 else None,
        judge_grams=judging.grams if judging.without_grams == 0 else None,
        judge_cost=judging.money,
        failures=cost.failures,
        inconsistent=result.inconsistent,
        unreadable=result.unreadable,
        spared=result.spared,
        error=error,
    )
