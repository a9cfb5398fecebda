"""Text completions: a validated request into generations, their text into responses and chunks."""

from __future__ import annotations

import codecs
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing

from engine.batch import TokenLogprobs
from serving.chat import MIN_LOGPROB
from serving.openai_errors import BadRequestError
from serving.openai_requests import CompletionRequest
from serving.openai_responses import Completion, CompletionChoice, CompletionLogprobs, encode
from serving.prompts import Prompt, completion_prompt, parse_prompts
from serving.service import Caller, InferenceService, Run
from serving.sse import LastEvents, event
from serving.streaming import StreamUsage, check_stream_options
from serving.text import TextProtocol


def check_completion(body: CompletionRequest) -> None:
    """Raise `BadRequestError` for combinations that cannot be honoured."""
    check_stream_options(body)
    if body.suffix:
        raise BadRequestError("'suffix' is not supported by this server; leave it out.", "suffix")
    if body.best_of is not None and body.best_of != body.num_choices:
        raise BadRequestError("'best_of' is not supported unless it equals n; leave it out.", "best_of")
    if body.directive is not None and body.directive.lower() not in ("auto", "off"):
        raise BadRequestError(
            "a directive speaks through the system message, which a text completion has not; use chat completions",
            "directive",
        )
    if body.echo and body.logprobs is not None:
        raise BadRequestError("log-probabilities of the prompt are not supported: echo excludes logprobs", "logprobs")


def _run(service: InferenceService, body: CompletionRequest, caller: Caller) -> AbstractAsyncContextManager[Run]:
    prompts = parse_prompts(body.prompt)
    return service.run(
        body,
        caller,
        id_prefix="cmpl",
        num_prompts=len(prompts),
        make_prompts=lambda: [completion_prompt(service.text, prompt, service.engine.info) for prompt in prompts],
        logprobs=body.logprobs,
    )


async def complete(service: InferenceService, body: CompletionRequest, caller: Caller) -> Completion:
    """Generate all choices and answer once they are complete."""
    async with _run(service, body, caller) as run:
        texts = _TextChoices(service.text, body, run)
        choices = [texts.empty(index) for index in range(len(run.generations))]
        pieces = [[texts.echoed(index)] for index in range(len(choices))]
        async with aclosing(run.deltas()) as deltas:
            async for delta in deltas:
                choice = choices[delta.index]
                pieces[delta.index].append(delta.text)
                if choice.logprobs is not None:
                    texts.extend_logprobs(choice.logprobs, delta.index, delta.token_ids, delta.logprobs)
                if delta.finish_reason is not None:
                    choice.finish_reason, choice.stop_reason = delta.finish_reason, delta.stop_reason
        for choice in choices:
            choice.text = "".join(pieces[choice.index])
        return Completion(run.id, run.created, run.model, choices, service.fingerprint, run.count.usage(), run.energy())


async def stream_completion(
    service: InferenceService, body: CompletionRequest, caller: Caller
) -> AsyncGenerator[bytes, None]:
    """The events of a streamed answer, without the closing `[DONE]`; those of its end are `LastEvents`."""
    async with _run(service, body, caller) as run:
        usage, texts = StreamUsage(body, run.count), _TextChoices(service.text, body, run)

        def chunk(choices: list[CompletionChoice], last: bool = False) -> bytes:
            energy = usage.in_chunk(run.energy, last)
            return event(
                encode(
                    Completion(run.id, run.created, run.model, choices, service.fingerprint, usage.of_chunk(), energy)
                )
            )

        begun = [False] * len(run.generations)
        running = len(run.generations)
        last = b""
        async with aclosing(run.deltas()) as deltas:
            async for delta in deltas:
                running -= delta.finish_reason is not None
                choice = texts.empty(delta.index)
                choice.text = delta.text
                if not begun[delta.index]:
                    begun[delta.index] = True
                    choice.text = texts.echoed(delta.index) + delta.text
                if choice.logprobs is not None:
                    texts.extend_logprobs(choice.logprobs, delta.index, delta.token_ids, delta.logprobs)
                choice.finish_reason, choice.stop_reason = delta.finish_reason, delta.stop_reason
                if running == 0:
                    last = chunk([choice], last=not usage.included)
                elif choice.text or delta.finish_reason is not None or choice.logprobs is not None or usage.continuous:
                    yield chunk([choice])
        if usage.included:
            usage.last = True
            last += chunk([], last=True)
        yield LastEvents(last + usage.closing(run.energy))


class _TextChoices:
    """Makes the choices of one request: echoed prompts and the legacy log-probabilities."""

    def __init__(self, text: TextProtocol, body: CompletionRequest, run: Run) -> None:
        self._text = text
        self._body = body
        self._run = run
        self._offsets = [_Offset() for _ in run.generations]

    def empty(self, index: int) -> CompletionChoice:
        logprobs = self._body.logprobs
        if logprobs is None:
            return CompletionChoice(index, "", None, None)
        return CompletionChoice(index, "", CompletionLogprobs([], [], [] if logprobs else None, []), None)

    def echoed(self, index: int) -> str:
        if not self._body.echo:
            return ""
        prompt: Prompt = self._run.prompts[index // self._body.num_choices]
        return prompt.text if prompt.text is not None else self._text.decode(prompt.token_ids)

    def extend_logprobs(
        self, entries: CompletionLogprobs, index: int, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs]
    ) -> None:
        for token_id, found in zip(token_ids, logprobs, strict=True):
            entries.tokens.append(self._legacy_token(token_id))
            entries.token_logprobs.append(max(found.logprob, MIN_LOGPROB))
            entries.text_offset.append(self._offsets[index].advance(self._text.token_bytes(token_id)))
            if entries.top_logprobs is not None:
                entries.top_logprobs.append(
                    {
                        self._legacy_token(top_id): max(logprob, MIN_LOGPROB)
                        for top_id, logprob in reversed(found.top)  # of two that look alike the likelier stays
                    }
                )

    def _legacy_token(self, token_id: int) -> str:
        """OpenAI's legacy spelling: the text, or `bytes:\\xe2\\x80` for a piece of a character."""
        raw = self._text.token_bytes(token_id)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


class _Offset:
    """Characters before each token, counted in the bytes of the tokens themselves."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._characters = 0

    def advance(self, raw: bytes) -> int:
        before = self._characters
        self._characters += len(self._decoder.decode(raw))
        return before
