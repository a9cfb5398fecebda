"""What a streamed OpenAI answer says: when each token chunk came, how many tokens there were, what they cost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import msgspec

from traces.http_stream import Answer

DONE = b"[DONE]"


class _Delta(msgspec.Struct):
    role: str | None = None
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: msgspec.Raw | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None

    @property
    def carries_token(self) -> bool:
        """As vllm's client decides: a role or a finish alone is no token, an empty text inside a stream is one."""
        if self.delta is None:
            return bool(self.text) or (self.text == "" and self.finish_reason is None)
        delta = self.delta
        if delta.content or delta.reasoning or delta.reasoning_content or _present(delta.tool_calls):
            return True
        return delta.content == "" and delta.role is None and self.finish_reason is None


class _CachedTokens(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _CachedTokens | None = None


class _Energy(msgspec.Struct):
    """The `energy` object of our own server's answers."""

    energy_joules: float | None = None
    method: str | None = None
    grams_co2e: float | None = None
    directive: str | None = None


class _ErrorBody(msgspec.Struct):
    message: str = ""


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    energy: _Energy | None = None
    error: _ErrorBody | None = None


_CHUNKS = msgspec.json.Decoder(_Chunk)


@dataclass(frozen=True, slots=True)
class StreamedAnswer:
    """`token_stamps_s`: `time.perf_counter()` at each chunk that carries tokens. `error`: why it is no answer."""

    token_stamps_s: tuple[float, ...] = ()
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    finish_reason: str | None = None
    energy_j: float | None = None
    energy_method: str | None = None
    co2e_g: float | None = None
    directive: str | None = None
    error: str | None = None


def _present(raw: msgspec.Raw | None) -> bool:
    return raw is not None and bytes(raw) not in (b"null", b"[]")


def events(pieces: Iterable[tuple[float, bytes]]) -> Iterator[tuple[float, bytes]]:
    """Data of each server-sent event with the arrival of the piece that completed it; comments are left out."""
    pending = b""
    for arrived_s, piece in pieces:
        pending += piece
        if b"\r" in pending:
            pending = pending.replace(b"\r\n", b"\n")
        *complete, pending = pending.split(b"\n\n")
        for block in complete:
            lines = [line[5:].lstrip(b" ") for line in block.split(b"\n") if line.startswith(b"data:")]
            if lines:
                yield arrived_s, b"\n".join(lines)


def read_answer(answer: Answer) -> StreamedAnswer:
    """Read a complete or partial answer; what is wrong with it stands in `error`."""
    if answer.status != 200:
        return StreamedAnswer(error=_status_error(answer))
    stamps: list[float] = []
    usage = _Usage()
    energy = _Energy()
    finish_reason: str | None = None
    error: str | None = None
    ended = False
    for arrived_s, data in events(answer.pieces):
        if data == DONE:
            ended = True
            continue
        try:
            chunk = _CHUNKS.decode(data)
        except msgspec.DecodeError as problem:
            error = error or f"a chunk of the stream cannot be read: {problem}"
            continue
        if chunk.error is not None:
            error = error or f"the server reported: {chunk.error.message}"
        if chunk.choices:
            if chunk.choices[0].carries_token:
                stamps.append(arrived_s)
            finish_reason = chunk.choices[0].finish_reason or finish_reason
        usage = chunk.usage or usage
        energy = chunk.energy or energy
    if error is None and not stamps:
        error = "the stream held no token"
    if error is None and not ended:
        error = "the stream ended without [DONE]"
    details = usage.prompt_tokens_details
    return StreamedAnswer(
        token_stamps_s=tuple(stamps),
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_tokens=details.cached_tokens if details else None,
        finish_reason=finish_reason,
        energy_j=energy.energy_joules,
        energy_method=energy.method,
        co2e_g=energy.grams_co2e,
        directive=energy.directive,
        error=error,
    )


def _status_error(answer: Answer) -> str:
    try:
        chunk = _CHUNKS.decode(answer.body)
        message = chunk.error.message if chunk.error else ""
    except msgspec.DecodeError:
        message = ""
    return f"HTTP {answer.status}: {message or answer.body[:200].decode('utf-8', 'replace')}"
