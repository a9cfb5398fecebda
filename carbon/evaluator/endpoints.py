"""Answers from an OpenAI-compatible endpoint: the served model's for each level, or a judge's verdict."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import httpx

RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
MAX_BYTES = 4 * 1024 * 1024


class EndpointError(Exception):
    """The endpoint gave no usable answer."""


@dataclass(frozen=True, slots=True)
class Answer:
    """`energy_j`, `grams`: what the endpoint reported for it (gridserve does); None where it does not."""

    text: str
    prompt_tokens: int
    output_tokens: int
    energy_j: float | None = None
    grams: float | None = None


class Endpoint(Protocol):
    async def answer(
        self, messages: Sequence[Mapping[str, Any]], *, max_tokens: int, directive: str | None = None
    ) -> Answer:
        """Raises `EndpointError` when there is none."""
        ...


class ChatEndpoint:
    """`POST {base_url}/chat/completions` with temperature 0 and bounded retries.

    `base_url`: https, or http on loopback. `directive` of a call travels as the body field of the same name, which
    gridserve reads and other servers are not sent.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str | None = None,
        attempts: int = 3,
        timeout_s: float = 120.0,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        url = httpx.URL(base_url)
        if url.scheme != "https" and url.host not in ("127.0.0.1", "::1", "localhost"):
            raise ValueError(f"{base_url} is not encrypted; use https (http is for loopback only)")
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self.model = model
        self._attempts = attempts
        self._sleep = sleep
        self._client = httpx.AsyncClient(
            base_url=base_url.rstrip("/") + "/",
            headers=headers,
            timeout=timeout_s,
            follow_redirects=False,
            transport=transport,
            trust_env=False,
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def answer(
        self, messages: Sequence[Mapping[str, Any]], *, max_tokens: int, directive: str | None = None
    ) -> Answer:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": list(messages),
            "max_tokens": max_tokens,
            "temperature": 0,
        }
        if directive is not None:
            body["directive"] = directive
        problem = "no attempt was made"
        for attempt in range(self._attempts):
            if attempt:
                await self._sleep(min(30.0, 2.0**attempt) * (0.5 + 0.5 * random.random()))
            try:
                response = await self._client.post("chat/completions", json=body)
            except httpx.HTTPError as error:
                problem = type(error).__name__
                continue
            if response.status_code == 200 and len(response.content) <= MAX_BYTES:
                return _read(response)
            problem = f"status {response.status_code}"
            if response.status_code not in RETRIED:
                break
        raise EndpointError(f"the endpoint of {self.model!r} gave no answer: {problem}")


def _read(response: httpx.Response) -> Answer:
    try:
        body = response.json()
        text = body["choices"][0]["message"]["content"]
        usage = body.get("usage") or {}
        energy = body.get("energy") or {}
        return Answer(
            text=str(text or ""),
            prompt_tokens=int(usage.get("prompt_tokens", 0)),
            output_tokens=int(usage.get("completion_tokens", 0)),
            energy_j=_number(energy.get("energy_joules")),
            grams=_number(energy.get("grams_co2e")),
        )
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise EndpointError("the endpoint's answer is not a chat completion") from None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
