"""What the admin API's routes share: bodies in, structs out, and how both are documented."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import Response
from msgspec import Struct

from serving import admin_schema as schema
from serving.admin_errors import AdminError

MAX_BODY_BYTES = 1024 * 1024
_REF = "#/components/schemas/"
_MEANINGS = {
    401: "No token, or a wrong one.",
    403: "The token's role is too low.",
    404: "There is no such thing, or no such part runs here.",
    409: "The policy changed meanwhile; `current_revision` is in force.",
    422: "The body or a parameter cannot be honoured.",
    503: "A part this needs cannot be used now.",
}

T = TypeVar("T", bound=Struct)


def answer(struct: Struct, status: int = 200) -> Response:
    return Response(msgspec.json.encode(struct), status, {"Cache-Control": "no-store"}, "application/json")


async def body_of(request: Request, kind: type[T]) -> T:
    """The request's body as a struct. Raises `AdminError` 413, 415 or 422."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise AdminError(415, "send the body as `Content-Type: application/json`")
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > MAX_BODY_BYTES:
            raise AdminError(413, f"the body is larger than {MAX_BODY_BYTES} bytes", headers={"Connection": "close"})
    try:
        return msgspec.json.decode(bytes(raw), type=kind)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise AdminError(422, f"the body cannot be read: {error}") from None


def number(request: Request, name: str, default: float | None = None) -> float | None:
    """A number of the query. Raises `AdminError` 422."""
    text = request.query_params.get(name)
    if text is None or text == "":
        return default
    try:
        value = float(text)
    except ValueError:
        raise AdminError(422, f"{name} must be a number, got {text[:40]!r}") from None
    if not -1e15 < value < 1e15:
        raise AdminError(422, f"{name} must be a finite number, got {text[:40]!r}")
    return value


def whole(request: Request, name: str, default: int, low: int, high: int) -> int:
    value = number(request, name, default)
    assert value is not None
    if not low <= value <= high or value != int(value):
        raise AdminError(422, f"{name} must be a whole number from {low} to {high}")
    return int(value)


def answers(kind: type[Struct] | None, *errors: int, takes: type[Struct] | None = None) -> dict[str, Any]:
    """Keyword arguments of a route: its documented answers and body."""
    content = {"application/json": {"schema": {"$ref": _REF + kind.__name__} if kind is not None else {}}}
    responses: dict[int | str, dict[str, Any]] = {200: {"description": "The answer.", "content": content}}
    problem = {"application/problem+json": {"schema": {"$ref": _REF + "Problem"}}}
    for status in sorted({401, 403, *errors}):
        responses[status] = {"description": _MEANINGS[status], "content": problem}
    extra: dict[str, Any] = {"responses": responses}
    if takes is not None:
        taken = {"application/json": {"schema": {"$ref": _REF + takes.__name__}}}
        extra["openapi_extra"] = {"requestBody": {"required": True, "content": taken}}
    return extra


def query(*parameters: tuple[str, str, str]) -> dict[str, Any]:
    """`openapi_extra` of a route with query parameters `(name, JSON type, meaning)`."""
    described = [
        {"name": name, "in": "query", "required": False, "description": meaning, "schema": {"type": kind}}
        for name, kind, meaning in parameters
    ]
    return {"openapi_extra": {"parameters": described}}


def build_document(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for operation in (operation for path in document["paths"].values() for operation in path.values()):
        if "HTTPValidationError" in str(operation["responses"].get("422")):
            del operation["responses"]["422"]
    structs = [one for one in vars(schema).values() if isinstance(one, type) and issubclass(one, Struct)]
    _, found = msgspec.json.schema_components(
        [one for one in structs if one is not Struct], ref_template=_REF + "{name}"
    )
    schemas.update(found)
    components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{"token": []}]
    return document
