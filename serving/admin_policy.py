"""Routes of the admin API about the policy: read, check, compare, change."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import Response

from serving import admin_answers as answers_of
from serving import admin_schema as schema
from serving.admin_auth import principal_of
from serving.admin_context import AdminContext
from serving.admin_errors import AdminError, shown
from serving.admin_http import answer, answers, body_of, query, whole
from serving.policy.diff import diff
from serving.policy.history import RevisionRecord
from serving.policy.load import parse_policy
from serving.policy.model import Policy
from serving.policy.problems import PolicyError
from serving.policy.schema import policy_schema
from serving.policy.store import PolicyStore
from serving.what_if import WhatIf, WhatIfError


def store_of(context: AdminContext) -> PolicyStore:
    store = context.control.store
    if store is None:
        raise AdminError(404, "the server runs without a policy file; start it with --policy FILE")
    return store


def policy_router(context: AdminContext) -> APIRouter:
    """For viewers: nothing changes."""
    router = APIRouter(prefix="/api/v1/policy", dependencies=[context.access.needs("viewer")])

    @router.get("", **answers(schema.PolicyState, 404))
    async def policy() -> Response:
        return _policy(context)

    @router.get("/schema", **answers(None))
    async def json_schema() -> dict[str, object]:
        return policy_schema()

    @router.get("/revisions", **answers(schema.PolicyRevisions, 404, 422) | query(("limit", "integer", "1 to 1000")))
    async def revisions(request: Request) -> Response:
        limit = whole(request, "limit", 100, 1, 1000)
        found = await asyncio.to_thread(store_of(context).log.latest, limit)
        return answer(schema.PolicyRevisions([_revision(record, with_text=False) for record in found]))

    @router.get("/revisions/{revision}", **answers(schema.PolicyRevision, 404, 422))
    async def revision(revision: str) -> Response:
        return answer(_revision(await _found(context, revision), with_text=True))

    @router.post("/validate", **answers(schema.PolicyValidation, 422, takes=schema.PolicyText))
    async def validate(request: Request) -> Response:
        body = await body_of(request, schema.PolicyText)
        try:
            policy, warnings = await asyncio.to_thread(_parsed, context, body.text)
        except PolicyError as error:
            return answer(schema.PolicyValidation(False, None, shown(error.problems)))
        return answer(schema.PolicyValidation(True, policy.revision, warnings))

    @router.post("/diff", **answers(schema.PolicyDiff, 404, 422, takes=schema.PolicyDiffBody))
    async def difference(request: Request) -> Response:
        body = await body_of(request, schema.PolicyDiffBody)
        if (body.text is None) == (body.revision is None):
            raise AdminError(422, "give either text or revision")
        text = body.text if body.text is not None else (await _found(context, body.revision or "")).text
        old = store_of(context).active.policy
        new, _ = await asyncio.to_thread(_parsed, context, text)
        changes = [schema.PolicyChange(one.path, one.old, one.new) for one in diff(old, new)]
        return answer(schema.PolicyDiff(old.revision, new.revision, changes))

    return router


def policy_reload_router(context: AdminContext) -> APIRouter:
    """For operators."""
    router = APIRouter(prefix="/api/v1/policy", dependencies=[context.access.needs("operator")])

    @router.post("/reload", **answers(schema.PolicyReload, 404, 422, takes=schema.Reason))
    async def reload(request: Request) -> Response:
        body, actor = await body_of(request, schema.Reason), principal_of(request).name
        done = await asyncio.to_thread(store_of(context).reload, actor, body.reason)
        await context.control.follow()
        return answer(schema.PolicyReload(done.ok, done.changed, done.revision, done.error), 200 if done.ok else 422)

    return router


def what_if_router(context: AdminContext) -> APIRouter:
    """For operators: it costs a core for seconds."""
    router = APIRouter(prefix="/api/v1/what-if", dependencies=[context.access.needs("operator")])
    asker = WhatIf(context)

    @router.post("", **answers(schema.WhatIfAnswer, 404, 422, 503, takes=schema.WhatIfBody))
    async def what_if(request: Request) -> Response:
        body = await body_of(request, schema.WhatIfBody)
        policy, _ = await asyncio.to_thread(_parsed, context, body.text)
        try:
            found = await asker.ask(policy, body.window_s, body.gpu)
        except WhatIfError as error:
            raise AdminError(503 if error.busy else 404, str(error)) from None
        return answer(schema.WhatIfAnswer("simulated", body.window_s, *found.both, list(found.notes)))

    return router


def policy_edit_router(context: AdminContext) -> APIRouter:
    """For admins: the file is written."""
    router = APIRouter(prefix="/api/v1/policy", dependencies=[context.access.needs("admin")])
    refusals = (404, 409, 422, 503)

    @router.post("/activate", **answers(schema.PolicyState, *refusals, takes=schema.PolicyEdit))
    async def activate(request: Request) -> Response:
        body, actor = await body_of(request, schema.PolicyEdit), principal_of(request).name
        store = store_of(context)
        await asyncio.to_thread(
            lambda: store.edit(body.text, if_match=body.expected_revision, actor=actor, reason=body.reason)
        )
        await context.control.follow()
        return _policy(context)

    @router.post("/rollback", **answers(schema.PolicyState, *refusals, takes=schema.PolicyRollback))
    async def rollback(request: Request) -> Response:
        body, actor = await body_of(request, schema.PolicyRollback), principal_of(request).name
        store = store_of(context)
        await asyncio.to_thread(
            lambda: store.rollback(body.revision, if_match=body.expected_revision, actor=actor, reason=body.reason)
        )
        await context.control.follow()
        return _policy(context)

    return router


def _policy(context: AdminContext) -> Response:
    store_of(context)
    found = answers_of.policy_of(context)
    assert found is not None
    return answer(found)


def _parsed(context: AdminContext, text: str) -> tuple[Policy, list[schema.PolicyProblem]]:
    """By the one validator, against the devices at hand."""
    loaded = parse_policy(text.encode("utf-8", "surrogatepass"), "policy", context.control.device_range)
    return loaded.policy, shown(loaded.warnings)


async def _found(context: AdminContext, revision: str) -> RevisionRecord:
    record = await asyncio.to_thread(store_of(context).log.find, revision)
    if record is None:
        raise AdminError(404, f"no revision {revision[:80]!r} is on record; see GET /api/v1/policy/revisions")
    return record


def _revision(record: RevisionRecord, *, with_text: bool) -> schema.PolicyRevision:
    return schema.PolicyRevision(
        revision=record.revision,
        body_revision=record.body_revision,
        mode=record.mode,
        activated_unix_s=record.activated_at.timestamp(),
        actor=record.actor,
        reason=record.reason,
        text=record.text if with_text else None,
    )
