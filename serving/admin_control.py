"""Routes of the admin API about control and supply: holds, carbon, feeds, evaluator, budgets, keys, jobs."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import Response

from power.messages import HoldMode
from serving import admin_answers as answers_of
from serving import admin_answers_carbon as carbon_answers
from serving import admin_schema as schema
from serving.admin_audit import now_us
from serving.admin_auth import principal_of
from serving.admin_context import AdminContext
from serving.admin_errors import AdminError
from serving.admin_http import answer, answers, body_of
from serving.holds import HoldsUnavailableError
from serving.ledger.rows import HoldRow
from serving.planes_carbon import SteeredCarbonPlane
from serving.tenants_keys import KeyEntry, KeyRing

DAY_S = 86_400.0


def carbon_of(context: AdminContext) -> SteeredCarbonPlane:
    plane = context.control.carbon
    if plane is None:
        raise AdminError(404, "no carbon feed runs; give the policy a section spec.carbon")
    return plane


def supply_router(context: AdminContext) -> APIRouter:
    """For viewers."""
    router = APIRouter(prefix="/api/v1", dependencies=[context.access.needs("viewer")])

    @router.get("/holds", **answers(schema.HoldList, 503))
    async def holds() -> Response:
        await context.sampler.refresh()
        rows = []
        if context.ledger is not None:
            rows = await asyncio.to_thread(context.ledger.reader.active_holds, now_us())
        recorded = [answers_of.hold_of(HoldRow(**row)) for row in rows]
        return answer(schema.HoldList(answers_of.hold_now(context), recorded))

    @router.get("/carbon", **answers(schema.CarbonState, 404))
    async def carbon() -> Response:
        plane = carbon_of(context)
        return answer(
            schema.CarbonState(
                enforce=plane.settings.enforce,
                intensity=carbon_answers.intensity_of(plane),
                levels=[
                    schema.LevelState(level.id, level.text, level.max_tokens) for level in plane.settings.levels.levels
                ],
                forecast=carbon_answers.forecast_of(plane),
                plan=carbon_answers.plan_of(plane),
                history=await _history(context),
            )
        )

    @router.get("/feeds", **answers(schema.FeedList, 404))
    async def feeds() -> Response:
        return answer(carbon_answers.feeds_of(carbon_of(context)))

    @router.get("/evaluator", **answers(schema.EvaluatorState, 404))
    async def evaluator() -> Response:
        return answer(await _evaluator(context))

    @router.get("/budgets", **answers(schema.BudgetList))
    async def budgets() -> Response:
        return answer(answers_of.budgets_of(context))

    @router.get("/jobs", **answers(schema.JobList))
    async def jobs() -> Response:
        found = [
            schema.JobState(
                name=one.name,
                every_s=one.every_s,
                timeout_s=one.timeout_s,
                next_run_unix_s=context.jobs.next_run_unix_s(one.name),
                last_success_unix_s=one.last_success_unix_s,
                last_error=one.last_error,
                runs=one.runs,
                failures=one.failures,
            )
            for one in context.jobs.records.values()
        ]
        return answer(schema.JobList(found))

    return router


async def _evaluator(context: AdminContext) -> schema.EvaluatorState:
    plane, ledger, keeper = carbon_of(context), context.ledger, context.keeper
    past = await asyncio.to_thread(ledger.reader.audit, kind="evaluation", limit=20) if ledger is not None else []
    prompts = await keeper.counts() if keeper is not None else {}
    return carbon_answers.evaluator_of(plane, context.evaluator, prompts, past)


async def _history(context: AdminContext) -> list[schema.ForecastPoint]:
    """The last day as the ledger has it; without one, nothing."""
    plane, ledger = carbon_of(context), context.ledger
    if ledger is None:
        return []
    until = now_us()
    rows = await asyncio.to_thread(ledger.reader.feed_values, plane.chain.zone, until - round(DAY_S * 1e6), until)
    return [
        schema.ForecastPoint(
            row["start_us"] / 1e6, row["end_us"] / 1e6, row["g_per_kwh"], row["low_g_per_kwh"], row["high_g_per_kwh"]
        )
        for row in rows
        if row["kind"] != "forecast"
    ]


def operate_router(context: AdminContext) -> APIRouter:
    """For operators."""
    router = APIRouter(prefix="/api/v1", dependencies=[context.access.needs("operator")])

    async def place(mode: HoldMode, body: schema.HoldBody, actor: str) -> Response:
        try:
            row, done = await context.holds.place(mode, body.duration_s, body.clock_mhz, body.reason, actor)
        except HoldsUnavailableError as error:
            raise AdminError(404, str(error)) from None
        await context.sampler.refresh()
        return answer(schema.HoldAnswer(answers_of.hold_of(row), [answers_of.actuation_of(one) for one in done]))

    @router.post("/holds", **answers(schema.HoldAnswer, 404, 422, 503, takes=schema.HoldBody))
    async def hold(request: Request) -> Response:
        body = await body_of(request, schema.HoldBody)
        return await place(HoldMode(body.mode), body, principal_of(request).name)

    @router.post("/panic", **answers(schema.HoldAnswer, 404, 422, 503, takes=schema.Reason))
    async def panic(request: Request) -> Response:
        body = await body_of(request, schema.Reason)
        reason = body.reason.strip() or "panic"
        return await place(HoldMode.DEFAULTS, schema.HoldBody("defaults", reason), principal_of(request).name)

    @router.post("/holds/release", **answers(schema.HoldAnswer, 404, 422, 503, takes=schema.Reason))
    async def release(request: Request) -> Response:
        body = await body_of(request, schema.Reason)
        try:
            await context.holds.release(body.reason, principal_of(request).name)
        except HoldsUnavailableError as error:
            raise AdminError(404, str(error)) from None
        await context.sampler.refresh()
        return answer(schema.HoldAnswer(None, []))

    @router.post("/evaluator/run", **answers(schema.EvaluatorState, 404, 409, 422, takes=schema.Reason))
    async def judge(request: Request) -> Response:
        carbon_of(context)
        body = await body_of(request, schema.Reason)
        if not body.reason.strip():
            raise AdminError(422, "give a reason; it is kept in the audit")
        if context.evaluator.running:
            raise AdminError(409, "a run is under way; see GET /api/v1/evaluator")
        try:
            await context.evaluator.begin(body.reason, principal_of(request).name)
        except (ValueError, OSError) as error:
            raise AdminError(422, str(error)) from None
        return answer(await _evaluator(context), 202)

    @router.post("/feeds/refresh", **answers(schema.FeedList, 404))
    async def refresh(request: Request) -> Response:
        plane = carbon_of(context)
        context.control.audit("access", principal_of(request).name, asked={"feeds": "refresh"}, result="asked")
        await plane.chain.refresh()
        await plane.replan()
        return answer(carbon_answers.feeds_of(plane))

    return router


def keys_router(context: AdminContext) -> APIRouter:
    """For admins."""
    router = APIRouter(prefix="/api/v1/keys", dependencies=[context.access.needs("admin")])

    def ring() -> KeyRing:
        if context.keys is None:
            raise AdminError(404, "keys are not managed here; start with --api-key-file keys.json")
        return context.keys

    def known(key_id: str) -> KeyEntry:
        entry = next((one for one in ring().entries if one.key_id == key_id), None)
        if entry is None:
            raise AdminError(404, f"no key {key_id[:40]!r}; see GET /api/v1/keys")
        return entry

    def note(request: Request, what: str, entry: KeyEntry, reason: str) -> None:
        if not reason.strip():
            raise AdminError(422, "give a reason; it is kept in the audit")
        asked = {"key": entry.key_id, "name": entry.name, "scopes": list(entry.scopes)}
        context.control.audit("access", principal_of(request).name, asked=asked, result=what, reason=reason)

    @router.get("", **answers(schema.KeyList, 404))
    async def keys(request: Request) -> Response:
        return _keys(ring())

    @router.post("", **answers(schema.NewKey, 404, 422, takes=schema.KeyBody))
    async def create(request: Request) -> Response:
        body = await body_of(request, schema.KeyBody)
        if not body.reason.strip():
            raise AdminError(422, "give a reason; it is kept in the audit")
        entry, secret = await asyncio.to_thread(
            lambda: ring().create(
                body.name,
                tuple(body.scopes),
                expires_in_s=body.expires_in_s,
                requests_per_minute=body.requests_per_minute,
                tokens_per_minute=body.tokens_per_minute,
                joules_per_minute=body.joules_per_minute,
            )
        )
        note(request, "key created", entry, body.reason)
        return answer(schema.NewKey(_key(entry), secret), 201)

    @router.post("/{key_id}/rotate", **answers(schema.NewKey, 404, 422, takes=schema.Reason))
    async def rotate(request: Request, key_id: str) -> Response:
        body = await body_of(request, schema.Reason)
        note(request, "key rotated", known(key_id), body.reason)
        entry, secret = await asyncio.to_thread(ring().rotate, key_id)
        return answer(schema.NewKey(_key(entry), secret))

    @router.post("/{key_id}/revoke", **answers(schema.KeyList, 404, 422, takes=schema.Reason))
    async def revoke(request: Request, key_id: str) -> Response:
        body = await body_of(request, schema.Reason)
        note(request, "key revoked", known(key_id), body.reason)
        await asyncio.to_thread(ring().revoke, key_id)
        return _keys(ring())

    return router


def _keys(ring: KeyRing) -> Response:
    return answer(schema.KeyList([_key(entry) for entry in ring.entries]))


def _key(entry: KeyEntry) -> schema.KeyInfo:
    return schema.KeyInfo(
        key_id=entry.key_id,
        name=entry.name,
        kind="admin" if entry.is_control else "inference",
        scopes=list(entry.scopes),
        created_unix_s=entry.created_unix_s,
        expires_unix_s=entry.expires_unix_s,
        last_used_unix_s=entry.last_used_unix_s,
        requests_per_minute=entry.requests_per_minute,
        tokens_per_minute=entry.tokens_per_minute,
        joules_per_minute=entry.joules_per_minute,
    )
