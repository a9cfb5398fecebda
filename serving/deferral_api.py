"""Routes of the inference API for deferred chat requests: leave one, look for its answer, take it back."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from msgspec import Struct

from serving.auth import authenticate
from serving.deferral_queue import DeferralQueue, Deferred
from serving.openai_errors import ApiError, BadRequestError
from serving.settings import ApiSettings


class DeferredBody(Struct, forbid_unknown_fields=True):
    """`request`: a body of POST /v1/chat/completions; `deferrable_until`: seconds since 1970 (UTC)."""

    deferrable_until: float
    request: msgspec.Raw


class DeferredAnswer(Struct):
    """`answer`: the chat completion once `status` is done."""

    id: str
    status: str
    deferrable_until: float
    accepted_unix_s: float
    finished_unix_s: float | None
    answer: msgspec.Raw
    error: str | None


def deferral_router(queue: DeferralQueue, settings: ApiSettings) -> APIRouter:
    """Behind the same keys as the inference API; each key's owner sees its own requests alone."""

    async def check_key(request: Request) -> None:
        request.state.key_name = authenticate(request, settings.api_keys)

    router = APIRouter(prefix="/v1/deferred", dependencies=[Depends(check_key)], include_in_schema=False)

    def owned(request: Request, identity: str) -> Deferred:
        kept = queue.find(identity, request.state.key_name)
        if kept is None:
            raise ApiError(404, "there is no such deferred request", code="not_found")
        return kept

    @router.post("")
    async def leave(request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "send the body as `Content-Type: application/json`", code="not_json")
        async with asyncio.timeout(settings.body_timeout_s):
            raw = await request.body()
        try:
            body = msgspec.json.decode(raw, type=DeferredBody)
        except (msgspec.MsgspecError, UnicodeError) as error:
            raise BadRequestError(f"the body cannot be read: {error}", code="invalid_json") from None
        kept = await queue.accept(bytes(body.request), body.deferrable_until, request.state.key_name)
        return _answer(kept, 202)

    @router.get("/{identity}")
    async def look(request: Request, identity: str) -> Response:
        return _answer(owned(request, identity))

    @router.delete("/{identity}")
    async def take_back(request: Request, identity: str) -> Response:
        kept = owned(request, identity)
        if kept.status == "running":
            raise ApiError(409, "the request runs now; its answer will be kept", code="running")
        await queue.cancel(kept)
        return Response(status_code=204)

    return router


def _answer(kept: Deferred, status: int = 200) -> Response:
    fields: dict[str, Any] = {name: getattr(kept, name) for name in DeferredAnswer.__struct_fields__}
    return Response(msgspec.json.encode(DeferredAnswer(**fields)), status, media_type="application/json")
