"""The two routes that generate. They are asked all the time, so their requests go past FastAPI.

Its router has them like any other, for the document and for methods they do not take; the edge hands POST requests to
the same endpoints directly, behind the same check of the key.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from msgspec import Struct
from starlette.types import Receive, Scope, Send

from serving import openai_responses as responses
from serving.auth import ApiKeys, authenticate
from serving.bodies import read_body
from serving.chat import check_chat, complete_chat, stream_chat
from serving.completions import check_completion, complete, stream_completion
from serving.openai_requests import ChatCompletionRequest, CompletionRequest
from serving.openapi_document import answers, takes
from serving.service import InferenceService
from serving.settings import ApiSettings
from serving.sse import EventStream, until_disconnect

Endpoint = Callable[[Request], Awaitable[Response]]

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


class WithKey:
    """An endpoint as an ASGI application for those who have a key."""

    def __init__(self, endpoint: Endpoint, keys: ApiKeys | None) -> None:
        self._endpoint = endpoint
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        request.state.key_name = authenticate(request, self._keys)
        response = await self._endpoint(request)
        await response(scope, receive, send)


def generation_endpoints(service: InferenceService, settings: ApiSettings) -> dict[str, Endpoint]:
    """By path; each takes POST."""

    async def chat_completions(request: Request) -> Response:
        body, caller = await read_body(request, ChatCompletionRequest, settings.body_timeout_s)
        check_chat(body)
        if body.stream:
            return EventStream(stream_chat(service, body, caller))
        return _json(await until_disconnect(request.receive, complete_chat(service, body, caller)))

    async def completions(request: Request) -> Response:
        body, caller = await read_body(request, CompletionRequest, settings.body_timeout_s)
        check_completion(body)
        if body.stream:
            return EventStream(stream_completion(service, body, caller))
        return _json(await until_disconnect(request.receive, complete(service, body, caller)))

    return {CHAT: chat_completions, COMPLETIONS: completions}


def generation_router(endpoints: Mapping[str, Endpoint], key_check: Any) -> APIRouter:
    """The routes as FastAPI knows them. `key_check`: the dependency that stands before them."""
    router = APIRouter(dependencies=[key_check])
    errors = (401, 404, 503)
    router.add_api_route(
        CHAT,
        endpoints[CHAT],
        methods=["POST"],
        responses=answers(responses.ChatCompletion, *errors, body=True, chunk=responses.ChatCompletionChunk),
        openapi_extra=takes(ChatCompletionRequest),
    )
    router.add_api_route(
        COMPLETIONS,
        endpoints[COMPLETIONS],
        methods=["POST"],
        responses=answers(responses.Completion, *errors, body=True, chunk=responses.Completion),
        openapi_extra=takes(CompletionRequest),
    )
    return router


def _json(struct: Struct) -> Response:
    return Response(responses.encode(struct), media_type="application/json")
