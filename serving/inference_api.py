"""The OpenAI-compatible inference API as an ASGI application."""

from __future__ import annotations

from importlib import metadata
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import Response
from msgspec import Struct
from prometheus_client.exposition import choose_encoder
from starlette.exceptions import HTTPException

from serving import openai_responses as responses
from serving.auth import authenticate
from serving.bodies import read_body
from serving.edge import Edge
from serving.generation_routes import WithKey, generation_endpoints, generation_router
from serving.http_server import NO_TELEMETRY
from serving.openai_errors import ApiError, ErrorResponse, ModelNotFoundError
from serving.openai_requests import DetokenizeRequest, TokenizeRequest
from serving.openapi_document import Responses, answers, build_document, json_of, takes
from serving.service import InferenceService
from serving.settings import ApiSettings
from serving.tokenization import detokenize, tokenize

VERSION = metadata.version("gridserve")


def create_app(service: InferenceService, settings: ApiSettings) -> FastAPI:
    """The application. Every route stands in a router that states who may use it; there is no other place for one."""
    app = FastAPI(
        title="gridserve",
        version=VERSION,
        description="OpenAI-compatible inference.",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        telemetry=NO_TELEMETRY,
        redirect_slashes=False,
    )
    generation = generation_endpoints(service, settings)
    app.include_router(generation_router(generation, _key_check(settings)))
    app.include_router(_inference_router(service, settings))
    app.include_router(_open_router(service))
    app.include_router(_metrics_router(service, settings))
    app.include_router(_document_router(app, settings))
    direct = {path: WithKey(endpoint, settings.api_keys) for path, endpoint in generation.items()}
    app.add_middleware(Edge, settings=settings, metrics=service.metrics, direct=direct)
    app.add_exception_handler(ApiError, _answer_api_error)
    app.add_exception_handler(HTTPException, _answer_http_exception)
    return app


def _json(struct: Struct, status: int = 200) -> Response:
    return Response(responses.encode(struct), status, media_type="application/json")


async def _answer_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _answer_http_exception(request: Request, error: Exception) -> Response:
    """The router's own 404 and 405."""
    assert isinstance(error, HTTPException)
    message = {404: "There is no such route.", 405: "This route does not take this method."}.get(error.status_code)
    return ApiError(error.status_code, message or str(error.detail), headers=error.headers).response()


def _key_check(settings: ApiSettings) -> Any:
    async def check_key(request: Request) -> None:
        request.state.key_name = authenticate(request, settings.api_keys)

    return Depends(check_key)


def _open_router(service: InferenceService) -> APIRouter:
    """What anyone may ask: that the service is there, and whether it is well."""
    router = APIRouter()

    async def info() -> Response:
        endpoints = ["/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/metrics", "/openapi.json"]
        return _json(responses.ServiceInfo("gridserve", VERSION, service.engine.info.model_id, endpoints))

    router.add_api_route("/", info, methods=["GET"], responses=answers(responses.ServiceInfo))
    router.add_api_route("/", info, methods=["HEAD"], include_in_schema=False)

    unhealthy: Responses = {
        503: {"description": "The engine is not ready.", "content": json_of(responses.HealthResponse)}
    }

    @router.get("/health", responses=answers(responses.HealthResponse) | unhealthy)
    async def health() -> Response:
        state = service.engine.health
        if state.ready:
            return _json(responses.HealthResponse("ready", None))
        answer = _json(responses.HealthResponse("unavailable", state.reason), 503)
        answer.headers["Retry-After"] = "5"
        return answer

    @router.get("/version", responses=answers(responses.VersionResponse))
    async def version() -> Response:
        return _json(responses.VersionResponse(VERSION))

    return router


def _inference_router(service: InferenceService, settings: ApiSettings) -> APIRouter:
    router = APIRouter(dependencies=[_key_check(settings)])

    @router.get("/v1/models", responses=answers(responses.ModelList, 401))
    async def models() -> Response:
        return _json(responses.ModelList([_model_card(service)]))

    @router.get("/v1/models/{model_id:path}", responses=answers(responses.ModelCard, 401, 404))
    async def model(model_id: str) -> Response:
        if model_id != service.engine.info.model_id:
            raise ModelNotFoundError(model_id, service.engine.info.model_id)
        return _json(_model_card(service))

    @router.post(
        "/tokenize",
        responses=answers(responses.TokenizeResponse, 401, 404, body=True),
        openapi_extra=takes(TokenizeRequest),
    )
    async def tokenize_route(request: Request) -> Response:
        body, caller = await read_body(request, TokenizeRequest, settings.body_timeout_s)
        return _json(await tokenize(service, body, caller))

    @router.post(
        "/detokenize",
        responses=answers(responses.DetokenizeResponse, 401, 404, body=True),
        openapi_extra=takes(DetokenizeRequest),
    )
    async def detokenize_route(request: Request) -> Response:
        body, caller = await read_body(request, DetokenizeRequest, settings.body_timeout_s)
        return _json(await detokenize(service, body, caller))

    return router


def _metrics_router(service: InferenceService, settings: ApiSettings) -> APIRouter:
    """Open to this machine alone; with a key where others can reach the listener."""
    router = APIRouter(dependencies=[] if settings.loopback else [_key_check(settings)])
    content: dict[str, Any] = {"text/plain": {"schema": {"type": "string"}}}
    described = answers(ErrorResponse, 401) | {200: {"description": "Prometheus text format.", "content": content}}

    @router.get("/metrics", responses=described, response_class=Response)
    def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(service.metrics.registry), media_type=content_type)

    return router


def _document_router(app: FastAPI, settings: ApiSettings) -> APIRouter:
    router = APIRouter(dependencies=[_key_check(settings)])

    @router.get("/openapi.json", include_in_schema=False)
    def document() -> Response:
        if app.openapi_schema is None:
            app.openapi_schema = build_document(app, with_keys=settings.api_keys is not None)
        return Response(responses.encode(app.openapi_schema), media_type="application/json")

    return router


def _model_card(service: InferenceService) -> responses.ModelCard:
    info = service.engine.info
    return responses.ModelCard(info.model_id, service.created_s, info.max_model_len)
