"""Routes of the admin API that read: state, series, requests and audit."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import time
from collections.abc import Iterator

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from prometheus_client.exposition import choose_encoder

from serving import admin_answers as answers_of
from serving import admin_schema as schema
from serving.admin_auth import principal_of
from serving.admin_context import AdminContext
from serving.admin_errors import AdminError
from serving.admin_http import answer, answers, number, query, whole
from serving.ledger.export import EXPORTS, safe_cell
from serving.ledger_access import Ledger
from serving.live_series import help_of, spec_of

MAX_POINTS = 2000
MAX_SERIES = 16
KINDS = ("decision", "actuation", "restore", "hold", "release", "policy", "access", "alarm", "evaluation")
_RANGE = (
    ("since_unix_s", "number", "from this moment on"),
    ("until_unix_s", "number", "up to this moment"),
)


def ledger_of(context: AdminContext) -> Ledger:
    if context.ledger is None:
        raise AdminError(503, "no ledger is kept; start with --ledger FOLDER")
    return context.ledger


def records_router(context: AdminContext) -> APIRouter:
    """For viewers."""
    router = APIRouter(prefix="/api/v1", dependencies=[context.access.needs("viewer")])

    @router.get("/whoami", **answers(schema.WhoAmI))
    async def whoami(request: Request) -> Response:
        principal = principal_of(request)
        return answer(schema.WhoAmI(principal.name, principal.role))

    @router.get("/state", **answers(schema.State))
    async def state() -> Response:
        return answer(answers_of.state_of(context))

    @router.get("/series", **answers(schema.SeriesList))
    async def series() -> Response:
        live = context.sampler.series
        found = [
            schema.SeriesInfo(name, spec_of(name).unit, spec_of(name).is_counter, help_of(name)) for name in live.names
        ]
        return answer(schema.SeriesList(live.window_s, live.step_s, found))

    @router.get(
        "/series/data",
        **answers(schema.SeriesAnswer, 422, 503)
        | query(("name", "string", "a series; may be given 16 times"), *_RANGE, ("points", "integer", "at most 2000")),
    )
    async def series_data(request: Request) -> Response:
        names = request.query_params.getlist("name")
        points = whole(request, "points", 600, 1, MAX_POINTS)
        now = time.time()
        until = number(request, "until_unix_s", now + 1e-3) or now
        since = number(request, "since_unix_s", until - context.sampler.series.window_s)
        assert since is not None
        if not 1 <= len(names) <= MAX_SERIES or since >= until:
            raise AdminError(422, f"give 1 to {MAX_SERIES} names and a range that is not empty")
        found = []
        for name in names:
            found.append(await _series_data(context, name, since, until, points, now))
            # Streams are served by this loop too: 16 series of a full window would hold them up for 8 ms in one piece.
            await asyncio.sleep(0)
        return answer(schema.SeriesAnswer(since, until, (until - since) / points, found))

    @router.get(
        "/requests",
        **answers(schema.RequestPage, 422, 503)
        | query(
            ("limit", "integer", "1 to 1000"),
            ("cursor", "string", "`next_cursor` of the page before"),
            ("tenant", "string", "of this tenant alone"),
            *_RANGE,
        ),
    )
    async def requests(request: Request) -> Response:
        ledger, limit = ledger_of(context), whole(request, "limit", 100, 1, 1000)
        since, until = number(request, "since_unix_s", 0.0), number(request, "until_unix_s")
        rows = await asyncio.to_thread(
            lambda: ledger.reader.requests(
                since_us=round((since or 0.0) * 1e6),
                until_us=round(until * 1e6) if until is not None else None,
                tenant=request.query_params.get("tenant") or None,
                before=_cursor(request.query_params.get("cursor")),
                limit=limit,
            )
        )
        last = rows[-1] if len(rows) == limit else None
        cursor = f"{last['arrived_us']}.{last['request_id']}" if last is not None else None
        return answer(schema.RequestPage([answers_of.request_of(row) for row in rows], cursor))

    @router.get("/requests/{request_id}", **answers(schema.RequestRecord, 404, 503))
    async def one_request(request_id: str) -> Response:
        row = await asyncio.to_thread(ledger_of(context).reader.request, request_id)
        if row is None:
            raise AdminError(404, f"no request {request_id[:80]!r} is on record (yet: joules settle within seconds)")
        return answer(answers_of.request_of(row))

    @router.get(
        "/audit",
        **answers(schema.AuditPage, 422, 503)
        | query(
            ("limit", "integer", "1 to 1000"),
            ("before_seq", "integer", "`next_before_seq` of the page before"),
            ("kind", "string", ", ".join(KINDS)),
        ),
    )
    async def audit(request: Request) -> Response:
        ledger, limit = ledger_of(context), whole(request, "limit", 100, 1, 1000)
        before, kind = number(request, "before_seq"), request.query_params.get("kind") or None
        if kind is not None and kind not in KINDS:
            raise AdminError(422, f"kind is one of {', '.join(KINDS)}")
        rows = await asyncio.to_thread(
            lambda: ledger.reader.audit(before_seq=int(before) if before is not None else None, kind=kind, limit=limit)
        )
        next_seq = rows[-1]["seq"] if len(rows) == limit and rows[-1]["seq"] > 1 else None
        return answer(schema.AuditPage([answers_of.audit_of(row) for row in rows], next_seq))

    @router.get("/audit/verify", **answers(schema.AuditVerification, 503))
    async def verify() -> Response:
        found = await asyncio.to_thread(ledger_of(context).reader.verify_audit)
        head = found.head
        return answer(
            schema.AuditVerification(found.ok, found.rows, head.seq, head.hash, found.broken_seq, found.problem)
        )

    return router


def exports_router(context: AdminContext) -> APIRouter:
    """For operators: whole tables of a range, read straight through."""
    router = APIRouter(prefix="/api/v1", dependencies=[context.access.needs("operator")])
    described = answers(None, 422, 503) | query(("format", "string", "csv or json"), *_RANGE)

    def export(request: Request, table: str) -> Response:
        ledger, kind = ledger_of(context), request.query_params.get("format", "csv")
        if kind not in ("csv", "json"):
            raise AdminError(422, "format is csv or json")
        since, until = number(request, "since_unix_s", 0.0), number(request, "until_unix_s", time.time() + 1.0)
        principal = principal_of(request)
        context.control.audit("access", principal.name, asked={"export": table, "format": kind}, result="given")
        spans = (round((since or 0.0) * 1e6), round((until or 0.0) * 1e6))
        rows = _lines(ledger, table, kind, *spans)
        name = {"Content-Disposition": f'attachment; filename="gridserve-{table}.{kind}"'}
        media = "text/csv; charset=utf-8" if kind == "csv" else "application/json"
        return StreamingResponse(rows, media_type=media, headers=name)

    @router.get("/exports/requests", **described)
    def export_requests(request: Request) -> Response:
        return export(request, "requests")

    @router.get("/exports/audit", **described)
    def export_audit(request: Request) -> Response:
        return export(request, "audit")

    return router


def metrics_router(context: AdminContext) -> APIRouter:
    router = APIRouter(dependencies=[context.access.needs("viewer")])

    @router.get("/metrics", **answers(None))
    def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(context.service.metrics.registry), media_type=content_type)

    return router


async def _series_data(
    context: AdminContext, name: str, since: float, until: float, points: int, now: float
) -> schema.SeriesData:
    live, ledger = context.sampler.series, context.ledger
    try:
        unit = spec_of(name).unit
    except KeyError:
        raise AdminError(422, f"there is no series {name[:80]!r}; see GET /api/v1/series") from None
    if ledger is None or live.covers(since, now):
        if name not in live.names:
            return schema.SeriesData(name, unit, "memory", [], [], None, None)
        found = live.data(name, since, until, points)
        return schema.SeriesData(name, unit, "memory", found.start_unix_s, found.mean, found.low, found.high)
    reader = ledger.telemetry
    try:
        rows = await asyncio.to_thread(reader.range, name, round(since * 1e6), round(until * 1e6), points)
    except ValueError:
        rows = []
    starts = [row.start_us / 1e6 for row in rows]
    return schema.SeriesData(
        name, unit, "ledger", starts, [row.mean for row in rows], [row.min for row in rows], [row.max for row in rows]
    )


def _cursor(text: str | None) -> tuple[int, str] | None:
    if not text:
        return None
    at, _, identity = text.partition(".")
    if not at.isdigit() or len(at) > 18 or not identity:
        raise AdminError(422, "cursor is not one this server gave")
    return int(at), identity


def _lines(ledger: Ledger, table: str, kind: str, since_us: int, until_us: int) -> Iterator[str]:
    """A CSV whose text no spreadsheet runs, or one JSON array."""
    described, column = EXPORTS[table]
    names = [one.name for one in described.columns]
    if kind == "csv":
        yield _csv([names])
        for rows in ledger.reader.stream(described, since_us, until_us, column):
            yield _csv([[safe_cell(row[name]) for name in names] for row in rows])
        return
    lead = "["
    for rows in ledger.reader.stream(described, since_us, until_us, column):
        yield lead + ",\n".join(json.dumps(dict(row), ensure_ascii=False) for row in rows)
        lead = ",\n"
    yield "[]" if lead == "[" else "]"


def _csv(rows: list[list[object]] | list[list[str]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()
