"""Streams of the inference API: words as they come, then the energy of the answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import msgspec

CONNECT_TIMEOUT_S = 3.0
READ_TIMEOUT_S = 120.0


class Energy(msgspec.Struct, frozen=True):
    """Of the answer, from its final chunk. What is not known is null, `unknown` says why."""

    energy_joules: float | None = None
    grams_co2e: float | None = None
    method: str | None = None
    source: str | None = None
    uncertainty_percent: float | None = None
    carbon_intensity_g_per_kwh: float | None = None
    carbon_tier: str | None = None
    directive: str | None = None
    directive_reason: str | None = None
    unknown: str | None = None


@dataclass(frozen=True)
class Piece:
    """A part of the stream: some text, or at the end the counts and the energy."""

    text: str = ""
    completion_tokens: int | None = None
    energy: Energy | None = None


@dataclass
class Answer:
    """One answer as it grows; written by one thread, read by another. `error` null: all is well so far."""

    directive: str
    text: str = ""
    pieces: int = 0
    completion_tokens: int | None = None
    energy: Energy | None = None
    error: str | None = None
    done: bool = False
    started_s: float = field(default_factory=time.monotonic)
    first_token_s: float | None = None
    ended_s: float | None = None

    def add(self, piece: Piece) -> None:
        if piece.text:
            if self.first_token_s is None:
                self.first_token_s = time.monotonic() - self.started_s
            self.text += piece.text
            self.pieces += 1
        self.completion_tokens = piece.completion_tokens or self.completion_tokens
        self.energy = piece.energy or self.energy

    def finish(self) -> None:
        self.ended_s = time.monotonic() - self.started_s
        self.done = True


def model_of(base_url: str, api_key: str | None) -> str:
    """The first model served. Raises `httpx.HTTPError` or `ValueError`."""
    response = httpx.get(f"{base_url}/v1/models", headers=_headers(api_key), timeout=CONNECT_TIMEOUT_S, trust_env=False)
    response.raise_for_status()
    models = response.json().get("data", [])
    if not models:
        raise ValueError("the inference API serves no model")
    return str(models[0]["id"])


def stream(base_url: str, api_key: str | None, body: dict[str, Any]) -> Iterator[Piece]:
    """Pieces of one streamed chat completion. Raises `httpx.HTTPError` or `ValueError` with the server's words."""
    timeout = httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
    url = f"{base_url}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, headers=_headers(api_key), timeout=timeout, trust_env=False) as response:
        if response.is_error:
            raise ValueError(_refusal(response.read(), response.status_code))
        for line in response.iter_lines():
            if line.startswith("data:") and line[5:].strip() != "[DONE]":
                piece = parse(line[5:].strip())
                if piece is not None:
                    yield piece


def parse(data: str) -> Piece | None:
    """One event. Raises `ValueError` for an error that came inside the stream."""
    chunk = msgspec.json.decode(data)
    if chunk.get("error"):
        raise ValueError(str(chunk["error"].get("message", chunk["error"])))
    choices, usage, energy = chunk.get("choices") or [], chunk.get("usage") or {}, chunk.get("energy")
    text = (choices[0].get("delta") or {}).get("content") or "" if choices else ""
    if not text and not usage and energy is None:
        return None
    return Piece(text, usage.get("completion_tokens"), msgspec.convert(energy, Energy) if energy else None)


def run(answer: Answer, base_url: str, api_key: str | None, body: dict[str, Any]) -> threading.Thread:
    """Fill `answer` in a thread of its own; it ends with the stream."""

    def fill() -> None:
        try:
            for piece in stream(base_url, api_key, body):
                answer.add(piece)
        except (httpx.HTTPError, ValueError, msgspec.MsgspecError) as error:
            answer.error = str(error) or type(error).__name__
        finally:
            answer.finish()

    thread = threading.Thread(target=fill, name=f"chat {answer.directive}", daemon=True)
    thread.start()
    return thread


def _headers(api_key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {api_key}"} if api_key else {}


def _refusal(content: bytes, status: int) -> str:
    try:
        return f"HTTP {status}: {msgspec.json.decode(content)['error']['message']}"
    except (msgspec.MsgspecError, KeyError, TypeError):
        return f"HTTP {status}"
