"""Reading a request's body: JSON only, an object only, validated; every fault is a 4xx that says what and where."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, TypeVar

import msgspec
from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from serving.openai_errors import ApiError, BadRequestError
from serving.service import Caller
from serving.trace_context import read_trace_context
from serving.unsupported import refuse_unsupported

Model = TypeVar("Model", bound=BaseModel)

# Larger bodies are parsed in a thread, so that they do not hold up the streams of others.
INLINE_PARSE_BYTES = 64 * 1024
MAX_HEADER_CHARS = 64

_decode = msgspec.json.Decoder().decode


async def read_body(request: Request, model: type[Model], timeout_s: float) -> tuple[Model, Caller]:
    """The validated body and its sender, whose key was checked before. Raises `ApiError` 400, 408, 413 or 415."""
    arrival_s = time.monotonic()
    _check_content_type(request.headers.get("content-type", ""))
    try:
        async with asyncio.timeout(timeout_s):
            raw = await request.body()
    except TimeoutError:
        raise ApiError(
            HTTPStatus.REQUEST_TIMEOUT,
            f"the body did not arrive within {timeout_s:g} s",
            headers={"Connection": "close"},
        ) from None
    if len(raw) <= INLINE_PARSE_BYTES:
        body = parse_body(raw, model)
    else:
        body = await asyncio.to_thread(parse_body, raw, model)
    headers = request.headers
    return body, Caller(
        request.state.key_name,
        arrival_s,
        len(raw),
        _short_header(headers.get("x-gridserve-directive")),
        _short_header(headers.get("x-gridserve-task")),
        read_trace_context(headers),
    )


def parse_body(raw: bytes, model: type[Model]) -> Model:
    """Decode and validate. Raises `BadRequestError`; `param` names the field at fault."""
    try:
        value = _decode(raw)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise BadRequestError(f"the body is not valid JSON: {error}", code="invalid_json") from None
    except RecursionError:
        raise BadRequestError("the body nests too deeply", code="invalid_json") from None
    if not isinstance(value, dict):
        raise BadRequestError(f"the body must be a JSON object, got {_json_type(value)}", code="invalid_json")
    try:
        body = model.model_validate(value)
    except ValidationError as error:
        raise _fault(error, value) from None
    refuse_unsupported(body)
    return body


def _short_header(value: str | None) -> str | None:
    return value[:MAX_HEADER_CHARS] if value else None


def _check_content_type(header: str) -> None:
    """JSON only: a browser cannot send it across origins without asking first."""
    kind = header.partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise ApiError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send the body as `Content-Type: application/json`", code="not_json"
        )


def _fault(error: ValidationError, value: dict[str, Any]) -> BadRequestError:
    """The fault that lies deepest: of a union's branches, the one that came furthest was meant."""
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    paths = [_path(_location(fault), value) for fault in faults]
    deepest = max(range(len(faults)), key=lambda position: len(paths[position]))
    param = "".join(paths[deepest]).removeprefix(".")[:200] or None
    message = faults[deepest]["msg"].removeprefix("Value error, ")
    return BadRequestError(f"{param}: {message}" if param else message, param)


def _location(fault: ErrorDetails) -> tuple[int | str, ...]:
    return (*fault["loc"], "role") if fault["type"].startswith("union_tag") else fault["loc"]


def _path(location: Sequence[int | str], value: Any) -> list[str]:
    """Steps of `messages[0].content` from pydantic's location, without the names of union branches."""
    path: list[str] = []
    for step in location:
        if isinstance(value, dict) and isinstance(step, str) and (step in value or step == location[-1]):
            path.append(f".{step}")
            value = value.get(step)
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            path.append(f"[{step}]")
            value = value[step]
    return path


def _json_type(value: Any) -> str:
    if value is None:
        return "null"
    names = {list: "an array", str: "a string", bool: "a boolean"}
    return names.get(type(value), "a number")
