"""The inference service with tenants: who may run now, and what each finished request leaves behind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, fields
from typing import Protocol

from carbon.plane_values import DirectiveDecision
from engine.client_protocol import EngineClientProtocol
from serving.generation import TextDelta
from serving.openai_errors import ApiError
from serving.openai_requests import GenerationBody
from serving.prompts import Prompt
from serving.request_log import Finished, RequestLife, RequestLog, finished_of
from serving.service import Caller, InferenceService, Run
from serving.settings import ApiSettings
from serving.steering import EVALUATOR, Steering
from serving.text import TextProtocol
from serving.tracing import RequestTracer

HTTP_OK = 200
CLIENT_CLOSED = 499


class Gate(Protocol):
    """Decides whether a request may run now."""

    async def enter(self, body: GenerationBody, caller: Caller) -> None:
        """Return when it may, at once or later. Raises `ApiError` 429 or 400 when it may not."""
        ...


class OpenGate:
    async def enter(self, body: GenerationBody, caller: Caller) -> None:
        return None


@dataclass(frozen=True, slots=True)
class WatchedRun(Run):
    """A run whose tokens are timed as they pass."""

    life: RequestLife = field(default_factory=RequestLife)

    async def deltas(self) -> AsyncGenerator[TextDelta, None]:
        life = self.life
        async with aclosing(Run.deltas(self)) as deltas:
            async for delta in deltas:
                life.saw(delta, time.monotonic())
                yield delta


class TenantService(InferenceService):
    """`keep_text`: whether a tenant agreed to have prompts and answers kept. `policy_mode`: of the policy in force.
    `on_answered`: told of each request of a client that was answered. `tracer`: where requests are traced."""

    def __init__(
        self,
        engine: EngineClientProtocol,
        text: TextProtocol,
        settings: ApiSettings,
        steering: Steering,
        log: RequestLog,
        *,
        gate: Gate | None = None,
        keep_text: Callable[[str | None], bool] = lambda tenant: False,
        policy_mode: Callable[[], str | None] = lambda: None,
        on_finished: Callable[[Finished], None] = lambda finished: None,
        on_answered: Callable[[Run], None] = lambda run: None,
        tracer: RequestTracer | None = None,
    ) -> None:
        super().__init__(engine, text, settings, steering)
        self._log = log
        self._gate: Gate = gate or OpenGate()
        self._keep_text = keep_text
        self._policy_mode = policy_mode
        self._on_finished = on_finished
        self._on_answered = on_answered
        self._tracer = tracer

    @asynccontextmanager
    async def run(
        self,
        body: GenerationBody,
        caller: Caller,
        *,
        id_prefix: str,
        num_prompts: int,
        make_prompts: Callable[[], Sequence[Prompt]],
        logprobs: int | None,
        decision: DirectiveDecision | None = None,
    ) -> AsyncIterator[Run]:
        """As `InferenceService.run`, behind the gate and onto the record. Raises `ApiError` 429 from the gate too."""
        self.check_model(body.model)
        try:
            await self._gate.enter(body, caller)
        except ApiError as error:
            self.metrics.rejected(error.status)
            self._refused(body, caller, error)
            raise
        begun: Run | None = None
        status = HTTP_OK
        try:
            async with super().run(
                body,
                caller,
                id_prefix=id_prefix,
                num_prompts=num_prompts,
                make_prompts=make_prompts,
                logprobs=logprobs,
                decision=decision,
            ) as run:
                begun = run
                yield run
        except ApiError as error:
            status = error.status
            if begun is None:
                self._refused(body, caller, error)
            raise
        except (asyncio.CancelledError, GeneratorExit):
            status = CLIENT_CLOSED
            raise
        except Exception:
            status = 500
            raise
        finally:
            if begun is not None:
                self._record(begun, status)

    def _record(self, run: Run, status: int) -> None:
        assert isinstance(run, WatchedRun)
        with_text = self._keep_text(run.caller.key_name)
        trace = self._tracer.ended(run) if self._tracer is not None else None
        mode = self._policy_mode()
        finished = finished_of(run, run.life, status, mode, time.monotonic(), with_text, trace)
        self._on_finished(finished)
        self._log.finish(finished)
        if status == HTTP_OK and run.caller.key_name != EVALUATOR:
            self._on_answered(run)

    def _refused(self, body: GenerationBody, caller: Caller, error: ApiError) -> None:
        if self._tracer is not None:
            self._tracer.refused(body, caller, self.engine.info.model_id, error)

    async def _plan(
        self,
        model: str,
        body: GenerationBody,
        caller: Caller,
        id_prefix: str,
        make_prompts: Callable[[], Sequence[Prompt]],
        logprobs: int | None,
        decision: DirectiveDecision | None,
    ) -> Run:
        run = await super()._plan(model, body, caller, id_prefix, make_prompts, logprobs, decision)
        life = RequestLife([] if self._keep_text(caller.key_name) else None)
        return WatchedRun(**{one.name: getattr(run, one.name) for one in fields(Run)}, life=life)
