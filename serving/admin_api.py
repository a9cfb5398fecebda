"""The admin API as an ASGI application, for a listener of its own. See docs/admin-api.md.

Every route stands in a router that states the role it needs; only liveness and readiness are open.
"""

from __future__ import annotations

from fastapi import APIRouter, FastAPI
from fastapi.responses import JSONResponse, Response

from serving.admin_context import AdminContext
from serving.admin_control import keys_router, operate_router, supply_router
from serving.admin_errors import HANDLED, AdminError, answer_error
from serving.admin_http import build_document
from serving.admin_policy import policy_edit_router, policy_reload_router, policy_router, what_if_router
from serving.admin_records import exports_router, metrics_router, records_router
from serving.http_server import NO_TELEMETRY


def create_admin_app(context: AdminContext) -> FastAPI:
    app = FastAPI(
        title="gridserve admin",
        version=context.version,
        description="State, policies, holds, carbon, budgets and audit of one gridserve server.",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        telemetry=NO_TELEMETRY,
    )
    app.include_router(_open_router(context))
    for make in (
        exports_router,
        records_router,
        metrics_router,
        policy_router,
        policy_reload_router,
        policy_edit_router,
        what_if_router,
        supply_router,
        operate_router,
        keys_router,
    ):
        app.include_router(make(context))
    app.include_router(_document_router(app, context))
    for kind in HANDLED:
        app.add_exception_handler(kind, answer_error)
    return app


def _open_router(context: AdminContext) -> APIRouter:
    """Probes: no figures, no names."""
    router = APIRouter()

    @router.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "alive"}

    @router.get("/ready")
    async def ready() -> Response:
        state = context.service.engine.health
        if state.ready:
            return JSONResponse({"status": "ready"})
        return AdminError(503, f"the engine is not ready: {state.reason}", headers={"Retry-After": "5"}).response()

    return router


def _document_router(app: FastAPI, context: AdminContext) -> APIRouter:
    router = APIRouter(dependencies=[context.access.needs("viewer")])

    @router.get("/openapi.json", include_in_schema=False)
    def document() -> Response:
        if app.openapi_schema is None:
            app.openapi_schema = build_document(app)
        return JSONResponse(app.openapi_schema)

    return router
