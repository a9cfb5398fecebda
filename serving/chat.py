"""Chat completions: a validated request into generations, their text into responses and chunks."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing

from msgspec import UNSET

from engine.batch import TokenLogprobs
from serving.generation import TextDelta
from serving.openai_errors import BadRequestError
from serving.openai_requests import ChatCompletionRequest
from serving.openai_responses import (
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
    ChatMessage,
    ChoiceLogprobs,
    TokenLogprob,
    TopLogprob,
    encode,
)
from serving.prompts import chat_prompt
from serving.service import Caller, InferenceService, Run
from serving.sse import LastEvents, event
from serving.streaming import StreamUsage, check_stream_options
from serving.text import TextProtocol

# What OpenAI writes for a probability of zero: JSON has no infinity.
MIN_LOGPROB = -9999.0


def check_chat(body: ChatCompletionRequest) -> None:
    """Raise `BadRequestError` for combinations that cannot be honoured."""
    check_stream_options(body)
    if body.tools and body.tool_choice != "none":
        raise BadRequestError("'tools' is not supported yet; leave it out, or set tool_choice to 'none'.", "tools")
    if body.tool_choice not in (None, "none", "auto"):
        raise BadRequestError("'tool_choice' must be 'none': tools are not supported yet.", "tool_choice")
    if body.top_logprobs and not body.logprobs:
        raise BadRequestError("top_logprobs needs logprobs=true", "top_logprobs")


def _run(service: InferenceService, body: ChatCompletionRequest, caller: Caller) -> AbstractAsyncContextManager[Run]:
    decision = service.steering.decide(body, caller)
    directed = service.steering.directed(decision)
    return service.run(
        body,
        caller,
        id_prefix="chatcmpl",
        num_prompts=1,
        make_prompts=lambda: [chat_prompt(service.text, body.messages, service.engine.info, directed)],
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        decision=decision,
    )


async def complete_chat(service: InferenceService, body: ChatCompletionRequest, caller: Caller) -> ChatCompletion:
    """Generate all choices and answer once they are complete."""
    async with _run(service, body, caller) as run:
        choices = [
            ChatChoice(index, ChatMessage(""), ChoiceLogprobs([]) if body.logprobs else None, "stop")
            for index in range(len(run.generations))
        ]
        pieces: list[list[str]] = [[] for _ in choices]
        async with aclosing(run.deltas()) as deltas:
            async for delta in deltas:
                choice = choices[delta.index]
                pieces[delta.index].append(delta.text)
                if choice.logprobs is not None:
                    choice.logprobs.content.extend(chat_logprobs(service.text, delta.token_ids, delta.logprobs))
                if delta.finish_reason is not None:
                    choice.finish_reason, choice.stop_reason = delta.finish_reason, delta.stop_reason
        for choice in choices:
            choice.message.content = "".join(pieces[choice.index])
        return ChatCompletion(
            run.id, run.created, run.model, choices, run.count.usage(), service.fingerprint, run.energy()
        )


async def stream_chat(
    service: InferenceService, body: ChatCompletionRequest, caller: Caller
) -> AsyncGenerator[bytes, None]:
    """The events of a streamed answer, without the closing `[DONE]`; those of its end are `LastEvents`."""
    async with _run(service, body, caller) as run:
        usage = StreamUsage(body, run.count)

        def chunk(choices: list[ChatChunkChoice], last: bool = False) -> bytes:
            energy = usage.in_chunk(run.energy, last)
            return event(
                encode(
                    ChatCompletionChunk(
                        run.id, run.created, run.model, choices, service.fingerprint, usage.of_chunk(), energy
                    )
                )
            )

        begun = [False] * len(run.generations)
        running = len(run.generations)
        last = b""
        async with aclosing(run.deltas()) as deltas:
            async for delta in deltas:
                running -= delta.finish_reason is not None
                events = b""
                if not begun[delta.index]:
                    begun[delta.index] = True
                    events = chunk([ChatChunkChoice(delta.index, ChatDelta("assistant", ""))])
                if delta.text or delta.finish_reason is not None or body.logprobs or usage.continuous:
                    choice = _chunk_choice(service.text, delta, bool(body.logprobs))
                    events += chunk([choice], last=running == 0 and not usage.included)
                if running == 0:
                    last = events
                elif events:
                    yield events
        if usage.included:
            usage.last = True
            last += chunk([], last=True)
        yield LastEvents(last + usage.closing(run.energy))


def _chunk_choice(text: TextProtocol, delta: TextDelta, with_logprobs: bool) -> ChatChunkChoice:
    return ChatChunkChoice(
        delta.index,
        ChatDelta(content=delta.text),
        ChoiceLogprobs(chat_logprobs(text, delta.token_ids, delta.logprobs)) if with_logprobs else None,
        delta.finish_reason,
        UNSET if delta.stop_reason is None else delta.stop_reason,
    )


def chat_logprobs(
    text: TextProtocol, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs]
) -> list[TokenLogprob]:
    def top(found: TokenLogprobs) -> list[TopLogprob]:
        return [
            TopLogprob(text.token_text(token_id), max(logprob, MIN_LOGPROB), list(text.token_bytes(token_id)))
            for token_id, logprob in found.top
        ]

    return [
        TokenLogprob(
            text.token_text(token_id), max(found.logprob, MIN_LOGPROB), list(text.token_bytes(token_id)), top(found)
        )
        for token_id, found in zip(token_ids, logprobs, strict=True)
    ]
