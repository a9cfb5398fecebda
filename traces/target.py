"""The server a replay is aimed at: which model, which endpoint, and how prompts of exact length are made for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from traces.http_stream import Answer, ConnectionLostError, StreamClient
from traces.prompts import MIN_PIECES, WORDS

Endpoint = Literal["completions", "chat"]
PromptForm = Literal["token_ids", "sized_text", "estimated_text"]
_PROBE_WORDS = 64

PATHS: Mapping[Endpoint, str] = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
FORM_DESCRIPTIONS: Mapping[PromptForm, str] = {
    "token_ids": "token ids, exact",
    "sized_text": "text of words that are one token each by the server's /tokenize, exact",
    "estimated_text": "text of as many words as tokens asked for, estimated: the server offers no /tokenize",
}


class TargetError(Exception):
    """The server cannot be used for a replay: why, and what to do."""


@dataclass(frozen=True, slots=True)
class Target:
    """`overhead_tokens`: what the server adds to a prompt text (template, BOS) on this endpoint."""

    model: str
    endpoint: Endpoint
    form: PromptForm
    overhead_tokens: int
    words: Sequence[str]
    token_ids: Sequence[int]

    @property
    def path(self) -> str:
        return PATHS[self.endpoint]


async def find_target(
    client: StreamClient,
    model: str | None = None,
    endpoint: Endpoint | None = None,
    form: PromptForm | None = None,
    allow_ids: bool = True,
) -> Target:
    """Ask the server what it offers. Raises `TargetError` where it cannot be used as asked.

    Token ids on the completions endpoint are preferred, then text sized by `/tokenize`, then text by word count.
    """
    if model is None:
        model = await _only_model(client)
    words, ids = await _single_token_words(client, model)
    wants_ids = allow_ids and form in (None, "token_ids") and endpoint in (None, "completions")
    if wants_ids and len(ids) >= MIN_PIECES and await _takes_ids(client, model, ids):
        return Target(model, "completions", "token_ids", 0, words, ids)
    if form == "token_ids":
        raise TargetError(
            "prompts as token ids need /tokenize and /v1/completions with `prompt` as a list of ids; "
            "this server lacks one of them. Use --prompts text"
        )
    if endpoint is None:
        endpoint = "completions" if await _answers(client, model, "completions") else "chat"
    if not await _answers(client, model, endpoint):
        raise TargetError(
            f"the server does not answer {PATHS[endpoint]} for model {model!r}; check --model and --endpoint"
        )
    overhead = await _overhead(client, model, endpoint, words) if len(words) >= MIN_PIECES else None
    if overhead is None:
        if form == "sized_text":
            raise TargetError("text of exact size needs /tokenize, which this server does not offer")
        return Target(model, endpoint, "estimated_text", 0, WORDS, ())
    return Target(model, endpoint, "sized_text", overhead, words, ids)


def request_body(
    target: Target,
    prompt: str | Sequence[int],
    output_tokens: int,
    ignore_eos: bool,
    extra: Mapping[str, Any],
) -> bytes:
    """JSON of one streamed request."""
    body: dict[str, Any] = {"model": target.model, "stream": True, "stream_options": {"include_usage": True}}
    if target.endpoint == "chat":
        body |= {"messages": [{"role": "user", "content": prompt}], "max_completion_tokens": output_tokens}
    else:
        body |= {"prompt": prompt, "max_tokens": output_tokens}
    body["temperature"] = 0.0
    if ignore_eos:
        body["ignore_eos"] = True
    return msgspec.json.encode(body | dict(extra))


async def _ask(client: StreamClient, path: str, body: Mapping[str, Any]) -> Answer:
    try:
        return await client.post(path, msgspec.json.encode(body))
    except ConnectionLostError as error:
        raise TargetError(f"{path}: {error}") from None
    except OSError as error:
        raise TargetError(f"no connection to the server: {error}") from None


class _ModelCard(msgspec.Struct):
    id: str


class _ModelList(msgspec.Struct):
    data: list[_ModelCard]


class _Tokens(msgspec.Struct):
    count: int
    tokens: list[int] = []


async def _only_model(client: StreamClient) -> str:
    try:
        answer = await client.get("/v1/models")
    except (ConnectionLostError, OSError) as error:
        raise TargetError(f"no connection to the server: {error}") from None
    try:
        models = [card.id for card in msgspec.json.decode(answer.body, type=_ModelList).data]
    except msgspec.DecodeError:
        models = []
    if answer.status != 200 or not models:
        raise TargetError(f"GET /v1/models gave status {answer.status} and no model; name one with --model")
    return models[0]


async def _tokens(client: StreamClient, body: Mapping[str, Any]) -> _Tokens | None:
    """None where the server offers no /tokenize, or not in this form."""
    answer = await _ask(client, "/tokenize", body)
    if answer.status != 200:
        return None
    try:
        return msgspec.json.decode(answer.body, type=_Tokens)
    except msgspec.DecodeError:
        return None


async def _count(client: StreamClient, model: str, text: str) -> int | None:
    found = await _tokens(client, {"model": model, "prompt": text})
    return None if found is None else found.count


async def _single_token_words(client: StreamClient, model: str) -> tuple[list[str], list[int]]:
    """Words that add exactly one token when they follow another, and the ids they become. Empty without /tokenize."""
    if await _count(client, model, WORDS[0]) is None:
        return [], []
    return await _split(client, model, list(WORDS))


async def _split(client: StreamClient, model: str, words: list[str]) -> tuple[list[str], list[int]]:
    """Halve until a group has one token for each word: few calls where most words hold."""
    alone = await _tokens(client, {"model": model, "prompt": WORDS[0]})
    found = await _tokens(client, {"model": model, "prompt": " ".join([WORDS[0], *words])})
    if alone is None or found is None:
        return [], []
    if found.count == alone.count + len(words):
        # A token the server appends (EOS) would stand last in both answers; ids of words start after the first word's.
        ids = found.tokens[alone.count :] if found.tokens[: alone.count] == alone.tokens else []
        return words, list(dict.fromkeys(ids))
    if len(words) == 1:
        return [], []
    middle = len(words) // 2
    first_words, first_ids = await _split(client, model, words[:middle])
    other_words, other_ids = await _split(client, model, words[middle:])
    return first_words + other_words, list(dict.fromkeys(first_ids + other_ids))


async def _overhead(client: StreamClient, model: str, endpoint: Endpoint, words: Sequence[str]) -> int | None:
    """Tokens beyond the words, if they are the same for a short and a long prompt; else None."""
    overheads = set()
    for length in (_PROBE_WORDS, 4 * _PROBE_WORDS):
        text = " ".join((list(words) * (1 + length // len(words)))[:length])
        if endpoint == "chat":
            body = {"messages": [{"role": "user", "content": text}], "add_generation_prompt": True}
            found = await _tokens(client, {"model": model, **body})
            count = None if found is None else found.count
        else:
            count = await _count(client, model, text)
        if count is None:
            return None
        overheads.add(count - length)
    return overheads.pop() if len(overheads) == 1 else None


async def _takes_ids(client: StreamClient, model: str, ids: Sequence[int]) -> bool:
    answer = await _ask(client, PATHS["completions"], {"model": model, "prompt": list(ids[:8]), "max_tokens": 1})
    return answer.status == 200


async def _answers(client: StreamClient, model: str, endpoint: Endpoint) -> bool:
    prompt: dict[str, Any] = {"prompt": "the"}
    if endpoint == "chat":
        prompt = {"messages": [{"role": "user", "content": "the"}]}
    answer = await _ask(client, PATHS[endpoint], {"model": model, "max_tokens": 1, **prompt})
    return answer.status == 200
