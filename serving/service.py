"""One request through the engine: admitted, planned, generated, counted. Chat and text completions share it."""

from __future__ import annotations

import asyncio
import hashlib
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from msgspec import UnsetType

from carbon.plane_values import DirectiveDecision
from engine.client_protocol import EngineClientProtocol, Generation
from serving.fan_in import announcing, merge, waiting_for
from serving.generation import TextDelta, text_deltas
from serving.guides import asks_guide, guide_of
from serving.limits import Admission
from serving.metrics import ApiMetrics
from serving.openai_errors import ApiError, ModelNotFoundError, NotReadyError
from serving.openai_requests import GenerationBody
from serving.openai_responses import EnergyUsage, PromptTokensDetails, Usage
from serving.prompts import Prompt
from serving.sampling import sampling_params, text_options
from serving.settings import ApiSettings
from serving.steering import Steering
from serving.text import TextProtocol
from serving.trace_context import TraceContext

# Below this many bytes a body is tokenised on the event loop: cheaper than the way to a thread and back.
INLINE_BODY_BYTES = 4096
MAX_TOKENISING_THREADS = 4

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. `key_name` separates the prefix caches of the owners of API keys. `directive` and `task`: what the
    headers say of them. `trace`: the span of the client's that asks."""

    key_name: str | None
    arrival_s: float
    body_bytes: int
    directive: str | None = None
    task: str | None = None
    trace: TraceContext | None = None

    @property
    def small(self) -> bool:
        return self.body_bytes < INLINE_BODY_BYTES


@dataclass(slots=True)
class UsageCount:
    """Tokens of a request. A prompt counts once, however many choices it has."""

    prompt_tokens: int
    num_choices: int
    completion_tokens: int = 0
    _cached_tokens: dict[int, int] = field(default_factory=dict)

    def add(self, delta: TextDelta) -> None:
        self.completion_tokens += len(delta.token_ids)
        prompt, choice = divmod(delta.index, self.num_choices)
        if choice == 0 and delta.num_cached_tokens:
            self._cached_tokens[prompt] = delta.num_cached_tokens

    def usage(self) -> Usage:
        return Usage(
            self.prompt_tokens,
            self.completion_tokens,
            self.prompt_tokens + self.completion_tokens,
            PromptTokensDetails(sum(self._cached_tokens.values())),
        )


class InferenceService:
    """The engine, the tokenizer and what is counted about them, as the endpoints use them."""

    def __init__(
        self,
        engine: EngineClientProtocol,
        text: TextProtocol,
        settings: ApiSettings,
        steering: Steering | None = None,
    ) -> None:
        self.engine = engine
        self.text = text
        self.steering = steering or Steering()
        self.admission = Admission(engine.info.max_num_seqs, settings.max_queued_requests)
        self.metrics = ApiMetrics(engine, self.admission)
        self.created_s = int(time.time())
        self._threads = asyncio.Semaphore(MAX_TOKENISING_THREADS)
        info = engine.info
        setup = f"{info.model_id} {info.weight_format} {info.device}"
        self.fingerprint = "gs_" + hashlib.sha256(setup.encode()).hexdigest()[:12]

    def check_model(self, model: str | None) -> str:
        """The served model's name; `None` asks for whichever it is. Raises `ModelNotFoundError`."""
        served = self.engine.info.model_id
        if model is not None and model != served:
            raise ModelNotFoundError(model, served)
        return served

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
        """Hold places for the request's sequences while it is tokenised and generated.

        Raises `ApiError`: 404 for another model, 503 when the engine is not ready, 429 over capacity, and 400.
        """
        model = self.check_model(body.model)
        health = self.engine.health
        try:
            if not health.ready:
                raise NotReadyError(health.reason)
            with self.admission.admit(num_prompts * body.num_choices):
                run = await self._plan(model, body, caller, id_prefix, make_prompts, logprobs, decision)
                self.metrics.admitted(
                    run.count.prompt_tokens, body.num_choices, [plan.sampling.max_tokens for plan in run.generations]
                )
                with self.steering.following(run.generations):
                    yield run
                    self.steering.learn(run)
                duration_s = time.monotonic() - caller.arrival_s
                self.metrics.request_done(duration_s)
                self.admission.record_duration(duration_s)
        except ApiError as error:
            self.metrics.rejected(error.status)
            raise

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
        request_id = f"{id_prefix}-{uuid.uuid4().hex}"

        def plan() -> Run:
            guide = guide_of(body)
            prompts = make_prompts()
            cap = decision.max_tokens if decision is not None else None
            generations = tuple(
                Generation(
                    f"{request_id}-{position * body.num_choices + choice}",
                    prompt.token_ids,
                    sampling_params(body, self.engine.info, len(prompt.token_ids), logprobs, guide, choice, cap),
                    body.priority or 0,
                    _cache_salt(caller.key_name, body.cache_salt),
                )
                for position, prompt in enumerate(prompts)
                for choice in range(body.num_choices)
            )
            prompt_tokens = sum(len(prompt.token_ids) for prompt in prompts)
            return Run(
                self,
                request_id,
                model,
                body,
                caller,
                prompts,
                generations,
                UsageCount(prompt_tokens, body.num_choices),
                decision,
            )

        return await self.offload(plan, small=caller.small and not asks_guide(body))

    async def offload(self, work: Callable[[], T], small: bool) -> T:
        """Run `work` in a thread, so that it holds up no stream, unless it is small."""
        if small:
            return work()
        async with self._threads:
            return await asyncio.to_thread(work)


def _cache_salt(key_name: str | None, asked: str | None) -> str:
    return (asked or "") if key_name is None else f"{key_name}\n{asked or ''}"


@dataclass(frozen=True, slots=True)
class Run:
    """A request that was admitted: its identity, its sequences, and what it has used so far."""

    service: InferenceService
    id: str
    model: str
    body: GenerationBody
    caller: Caller
    prompts: Sequence[Prompt]
    generations: tuple[Generation, ...]
    count: UsageCount
    decision: DirectiveDecision | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    def energy(self) -> EnergyUsage | UnsetType:
        """Joules and grams of the whole request, once all its sequences have ended; absent without the planes."""
        return self.service.steering.report(self.generations, self.decision)

    async def deltas(self) -> AsyncGenerator[TextDelta, None]:
        """Text of all choices as it comes, already counted in `count`."""
        service, options = self.service, text_options(self.body)
        block_size, num_choices = service.engine.info.block_size, self.body.num_choices
        streams: list[AsyncGenerator[TextDelta, None]] = []
        for index, generation in enumerate(self.generations):
            timer = service.metrics.timer(self.caller.arrival_s)
            stream = text_deltas(service.engine, service.text, generation, options, index, timer)
            # The prompt's keys and values are computed once: its first choice leaves them to the others.
            if num_choices > 1 and len(generation.prompt_token_ids) > block_size:
                if index % num_choices == 0:
                    computed = asyncio.Event()
                    stream = announcing(stream, computed)
                else:
                    stream = waiting_for(computed, stream)
            streams.append(stream)
        merged = merge(streams)
        try:
            async for delta in merged:
                self.count.add(delta)
                if delta.finish_reason is not None:
                    service.steering.finished(self.generations[delta.index].request_id)
                yield delta
        finally:
            await merged.aclose()
