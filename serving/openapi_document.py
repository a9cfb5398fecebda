"""The OpenAPI document: requests from their pydantic models, responses from their msgspec structs."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from serving import openai_requests as requests
from serving import openai_responses as responses
from serving.openai_errors import ErrorResponse

Responses = dict[int | str, dict[str, Any]]

_REF = "#/components/schemas/"

REQUEST_MODELS: tuple[type[BaseModel], ...] = (
    requests.ChatCompletionRequest,
    requests.CompletionRequest,
    requests.TokenizeRequest,
    requests.DetokenizeRequest,
)
RESPONSE_STRUCTS: tuple[type[msgspec.Struct], ...] = (
    responses.ChatCompletion,
    responses.ChatCompletionChunk,
    responses.Completion,
    responses.ModelCard,
    responses.ModelList,
    responses.TokenizeResponse,
    responses.DetokenizeResponse,
    responses.HealthResponse,
    responses.VersionResponse,
    responses.ServiceInfo,
    ErrorResponse,
)

_MEANINGS = {
    400: "A value that cannot be honoured; `param` names the field.",
    401: "The API key is missing or wrong.",
    404: "No such model.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body is not declared as JSON.",
    429: "Over capacity; see Retry-After.",
    431: "The headers are too large.",
    500: "The engine gave the generation up, or the server failed.",
    503: "The engine is not ready; see Retry-After.",
}
_EVERYWHERE = (400, 413, 431, 500)
_BODY = (408, 415, 429)


def json_of(struct: type[msgspec.Struct]) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REF + struct.__name__}}}


def answers(
    struct: type[msgspec.Struct], *errors: int, body: bool = False, chunk: type[msgspec.Struct] | None = None
) -> Responses:
    """The documented responses of an operation: 200 with `struct` or events of `chunk`, errors in OpenAI's shape."""
    content: dict[str, Any] = json_of(struct)
    if chunk is not None:
        content["text/event-stream"] = {"schema": _event_of(chunk)}
    described: Responses = {200: {"description": "The answer.", "content": content}}
    for status in sorted({*_EVERYWHERE, *errors, *(_BODY if body else ())}):
        described[status] = {"description": _MEANINGS[status], "content": json_of(ErrorResponse)}
    return described


def _event_of(chunk: type[msgspec.Struct]) -> dict[str, Any]:
    """One event of a stream: a chunk, an error, or `[DONE]` at the end."""

    def json_text(struct: type[msgspec.Struct]) -> dict[str, Any]:
        schema = {"$ref": _REF + struct.__name__}
        return {"type": "string", "contentMediaType": "application/json", "contentSchema": schema}

    data = {"anyOf": [{"const": "[DONE]"}, json_text(chunk), json_text(ErrorResponse)]}
    return {"type": "object", "required": ["data"], "properties": {"data": data}}


def takes(model: type[BaseModel]) -> dict[str, Any]:
    """`openapi_extra` of an operation that reads `model` from its body."""
    content = {"application/json": {"schema": {"$ref": _REF + model.__name__}}}
    return {"requestBody": {"required": True, "content": content}}


def build_document(app: FastAPI, with_keys: bool) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    _, request_schemas = models_json_schema(
        [(model, "validation") for model in REQUEST_MODELS], ref_template=_REF + "{model}"
    )
    schemas.update(request_schemas["$defs"])
    _, response_schemas = msgspec.json.schema_components(RESPONSE_STRUCTS, ref_template=_REF + "{name}")
    schemas.update(response_schemas)
    for operation in (operation for path in document["paths"].values() for operation in path.values()):
        operation["responses"].pop("422", None)
    if with_keys:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document
